"""Both sides of a pair: found, opened and aligned. Only `.bin` files are fetched for that."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.listing import Listing, top_of_folder
from shadow.checkpoints.opening import (
    AnyCheckpoint,
    Assembled,
    Checkpoint,
    Located,
    combine,
    locate,
    open_folder,
    open_located,
)
from shadow.checkpoints.pairing import Filter, Partners, pair_checkpoints
from shadow.checkpoints.sources import WholeFile
from shadow.errors import ShadowError, UsageError
from shadow.places.names import name_rules
from shadow.process_settings import uncollected
from shadow.reports.provenance import SCHEMA
from shadow.run.runtime import AlignedPair, Progress, Runtime
from shadow.targets.references import AnyReference, ComponentBase, Reference, as_folder
from shadow.text import and_list, byte_size, short
from shadow.version import __version__

if TYPE_CHECKING:
    from shadow.checkpoints.snapshots import Snapshot
    from shadow.reports.provenance import CheckpointMetadata, ReportMetadata
    from shadow.run.settings import Settings
    from shadow.targets.families import Pair


def references_of(pair: Pair) -> list[Reference]:
    """The checkpoints that both sides are made of."""
    parts = [*pair.base.parts, *pair.tuned.parts]
    return [reference for _, reference in parts]


def client_for(references: Sequence[Reference]) -> contextlib.AbstractContextManager[None]:
    """Hold the Hub's client while these are read; if all are folders it is not imported."""
    if all(reference.is_folder for reference in references):
        return contextlib.nullcontext()
    try:
        from shadow.checkpoints.hub_client import own_client
    except ValueError as error:  # of the client, which reads them when it is imported
        hint = "check HF_ENDPOINT, HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
        raise ShadowError(f"the Hub's client cannot use a setting: {error}", hint) from error
    return own_client()


def identity_of(pair: Pair, settings: Settings, runtime: Runtime) -> ReportMetadata:
    """The identity that a report of the pair would have with the present commits and files,
    without fetching weights.
    """
    with tempfile.TemporaryDirectory() as unpacked, client_for(references_of(pair)):
        sides = find_sides(pair, runtime, Path(unpacked))
        return identity(pair, settings, *sides)


def identity(
    pair: Pair, settings: Settings, base: AnyCheckpoint, tuned: AnyCheckpoint
) -> ReportMetadata:
    """The identity of the numbers of a report of these checkpoints, every value as JSON has
    it: equal identities give equal data.
    """
    content = {
        "version": __version__,
        "schema": SCHEMA,
        "family": pair.family,
        "pair": pair.name,
        "base": side_of(base),
        "tuned": side_of(tuned),
        "settings": {**settings.as_json(), "relation": pair.relation},
    }
    stored: ReportMetadata = json.loads(json.dumps(content))
    return stored


def side_of(checkpoint: AnyCheckpoint) -> CheckpointMetadata:
    """The identity of a checkpoint as a report has it."""
    return {
        "repo": checkpoint.reference,
        "commit": checkpoint.commit,
        "fingerprint": checkpoint.fingerprint,
    }


def reference_of(side: CheckpointMetadata) -> AnyReference:
    """The checkpoint that a report names. Raises ShadowError if it cannot be identified."""
    repo = side["repo"]
    commit = side["commit"]
    owner, _, _ = repo.partition("/")
    if "=" not in owner and (commit or side["fingerprint"]):
        return _reference(repo, commit)
    repos = _by_component(repo)
    commits = _by_component(commit) if commit else dict.fromkeys(repos, "a folder")
    if not side["fingerprint"] or list(repos) != list(commits):
        raise ShadowError(f"the report does not say which files of {repo} were read")
    references = []
    for component, name in repos.items():
        commit = commits[component]
        reference = _reference(name, None if commit == "a folder" else commit)
        references.append((component, reference))
    return ComponentBase(tuple(references))


def _by_component(text: str) -> dict[str, str]:
    """Split `language=... vision=...`."""
    component = rf"(?:^| )({'|'.join(name_rules().components)})="
    _, *words = re.split(component, text)
    return dict(zip(words[::2], words[1::2], strict=True))


def _reference(repo: str, commit: str | None) -> Reference:
    if commit is None:
        return Reference(str(Path(repo).expanduser()), True)
    owner, _, rest = repo.partition("/")
    name, _, subfolder = rest.partition("/")
    return Reference(f"{owner}/{name}", False, commit, subfolder or None)


def find_sides(pair: Pair, runtime: Runtime, scratch: Path) -> tuple[AnyCheckpoint, AnyCheckpoint]:
    """Find base and tuned side."""
    sides = find_checkpoints({"base": pair.base, "tuned": pair.tuned}, runtime, scratch)
    return sides["base"], sides["tuned"]


@uncollected()
def find_checkpoint(reference: AnyReference, runtime: Runtime, scratch: Path) -> AnyCheckpoint:
    """Find the checkpoint in a folder, of a commit on the Hub, or of each component."""
    if reference in runtime.checkpoints:
        return runtime.checkpoints[reference]
    if not isinstance(reference, ComponentBase):
        return _find(reference, runtime, scratch)
    parts = [(name, _find(part, runtime, scratch / name)) for name, part in reference.parts]
    return Assembled(tuple(parts))


def find_audited(
    side: CheckpointMetadata, reference: AnyReference, runtime: Runtime, scratch: Path
) -> AnyCheckpoint:
    """Find the checkpoint that a report names. Raises ShadowError if it has changed since."""
    checkpoint = find_checkpoint(reference, runtime, scratch)
    if side["fingerprint"] not in (None, checkpoint.fingerprint):
        raise ShadowError(f"{side['repo']} has changed since it was audited")
    return checkpoint


def _find(reference: Reference, runtime: Runtime, scratch: Path) -> Checkpoint | Located:
    access = runtime.access
    if reference.is_folder:
        return open_folder(
            reference.repo,
            allow_pickle=access.allow_pickle,
            scratch=scratch,
            file=access.file,
        )
    return locate(
        snapshot_of(reference, runtime),
        allow_pickle=access.allow_pickle,
        say=runtime.say,
        file=access.file,
    )


def listing_of(reference: Reference, runtime: Runtime) -> Listing:
    """The files in a folder itself, or of a commit on the Hub; none of a file that is named."""
    if not reference.is_folder:
        return snapshot_of(reference, runtime)
    root = Path(reference.repo)
    if not root.is_dir():
        return Listing(reference.repo, {})
    return top_of_folder(root)


def snapshot_of(reference: Reference, runtime: Runtime) -> Snapshot:
    """The files of a commit on the Hub."""
    from shadow.checkpoints.snapshots import pin

    offline = runtime.access.offline
    hint = as_folder(reference.repo)
    if hint and not offline:
        runtime.say(f"{reference.repo} is taken for a model on the Hub; {hint}")
    return pin(
        reference.repo,
        runtime.commits.get(reference, reference.revision),
        reference.subfolder,
        offline=offline,
        say=runtime.say,
    )


def _parts(side: AnyCheckpoint) -> list[Checkpoint | Located]:
    """The checkpoints that a side is made of."""
    if isinstance(side, Assembled):
        return [part for _, part in side.parts]
    return [side]


def pickled_part(side: AnyCheckpoint) -> Located | None:
    """A part whose weights must be fetched before anything is known about them, or None."""
    for part in _parts(side):
        if isinstance(part, Located) and part.weights.pickled:
            return part
    return None


@uncollected()
def line_up(
    base: AnyCheckpoint,
    tuned: AnyCheckpoint,
    chosen: Filter,
    runtime: Runtime,
    *,
    scratch: Path,
    partners: Partners = {},  # noqa: B006 - it is only read
) -> AlignedPair:
    """Read the headers and pair the tensors."""
    first = open_checkpoint(base, runtime, scratch / "base")
    second = open_checkpoint(tuned, runtime, scratch / "tuned")
    if first.adapter:
        raise ShadowError(
            f"{first.reference}: the base is an adapter",
            "name the model that the adapter was trained from",
        )
    if second.adapter and second.adapter.is_merged_by_peft:
        from shadow.run.merged_by_peft import applied

        second, _ = applied(first, second, runtime)
    return align(first, second, chosen, partners)


def align(first: Checkpoint, second: Checkpoint, chosen: Filter, partners: Partners) -> AlignedPair:
    """Pair the tensors of two open checkpoints."""
    pairs, skipped = pair_checkpoints(first, second, chosen, partners=partners)
    return AlignedPair(first, second, pairs, skipped, partners)


def open_checkpoint(side: AnyCheckpoint, runtime: Runtime, scratch: Path) -> Checkpoint:
    """Open a checkpoint with its headers; its `.bin` files are fetched and unpacked."""
    if isinstance(side, Assembled):
        parts = []
        for component, part in side.parts:
            parts.append((component, open_checkpoint(part, runtime, scratch / component)))
        return combine(side, parts)
    if isinstance(side, Checkpoint):
        return side
    to_move = 0
    moved = 0
    if side.weights.pickled:
        from shadow.checkpoints.snapshots import Snapshot
        from shadow.run.plan import require_disk_at_once

        assert isinstance(side.listing, Snapshot), "a folder is opened when it is found"
        files = [WholeFile(side.listing.files[shard]) for shard in side.weights.shards]
        to_move = require_disk_at_once(f"{side.reference}: its .bin files", files, runtime.access)
        if to_move:
            runtime.say(f"fetching {byte_size(to_move)} of .bin files")

    def report(count: int) -> None:
        nonlocal moved
        moved += count
        runtime.show(
            Progress(done=0, total=0, cost_done=0, cost_total=1, moved=moved, to_move=to_move)
        )

    return open_located(side, scratch, runtime.say, report)


def find_checkpoints(
    references: Mapping[str, AnyReference], runtime: Runtime, scratch: Path
) -> dict[str, AnyCheckpoint]:
    """Find the checkpoints that are named, by their names in answers."""
    sides = {
        name: find_checkpoint(reference, runtime, scratch / name)
        for name, reference in references.items()
    }
    require_gguf(runtime.access.file, sides.values())
    return sides


def opened_models(
    sides: Mapping[str, AnyCheckpoint], runtime: Runtime, scratch: Path
) -> list[Checkpoint]:
    """Open these checkpoints. Raises UsageError for an adapter among them."""
    checkpoints = {
        name: open_checkpoint(side, runtime, scratch / name) for name, side in sides.items()
    }
    for name, checkpoint in checkpoints.items():
        if checkpoint.adapter:
            hint = "name a whole model; `shadow verify merged BASE ADAPTER MERGED` checks a merge"
            raise UsageError(f"{name}: {checkpoint.reference} is an adapter, not a model", hint)
    return list(checkpoints.values())


def require_gguf(file: str | None, sides: Iterable[AnyCheckpoint]) -> None:
    """Raise ShadowError if a pattern should choose among GGUF files, and there are none."""
    if file is None:
        return
    names = []
    for side in sides:
        for part in _parts(side):
            names.append(part.reference)
            shards = part.sources if isinstance(part, Checkpoint) else part.weights.shards
            if any(shard.endswith(GGUF) for shard in shards):
                return
    fault = f"--file {short(file)}: no GGUF file in {and_list(names)}"
    raise ShadowError(fault, "leave out --file")
