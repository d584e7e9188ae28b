"""References -> Checkpoint: its tensors and where each lies. Reads no weights."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checkpoints.formats import with_matrices
from shadow.checkpoints.gguf_files import KIND as REORDERED
from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.gguf_files import model_of
from shadow.checkpoints.listing import (
    AGAIN,
    Listing,
    listing_of_file,
    listing_of_folder,
    top_of_folder,
)
from shadow.checkpoints.pickles import DISTRIBUTED
from shadow.checkpoints.safetensors_files import (
    Packing,
    TensorInfo,
    Tensors,
    has_too_many_values,
    usable_name,
)
from shadow.checkpoints.sources import Shard, Shards, Source
from shadow.checkpoints.transfers import OnBytes, Say, Transfer, in_threads, unheard
from shadow.checkpoints.weight_files import ADAPTER_CONFIG, Adapter, Weights, choose_weights
from shadow.dtypes import FLOATS
from shadow.errors import FileError, PointerError, ShadowError, naming
from shadow.places.names import Config
from shadow.text import several

if TYPE_CHECKING:
    from threading import Event

    from shadow.checkpoints.stored_tensors import DecodedTensor, StoredTensor

PARAMS = "params.json"  # of Mistral's and Meta's own files, in place of a config
HEADS = {"num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads"}
PAIRED = re.compile(
    r"(?P<head>(?:model\.)?layers\.\d+\.attention\.)w(?P<kind>[qk])\.(?P<what>weight|bias)"
)
CONFIG = "config.json"
CONNECTIONS = 8  # headers read at a time


@dataclass(frozen=True)
class Checkpoint:
    """One side of a pair."""

    reference: str  # what was asked for
    commit: str | None  # 40 hexadecimal digits; None for a folder
    fingerprint: str  # a sha256 that changes when any file does
    config: Config  # its config.json; empty where there is none
    tensors: Tensors  # by name, in the order of the shards
    sources: Mapping[str, Source]  # by shard
    adapter: Adapter | None = None  # scales the tensors of a LoRA adapter
    parts: tuple[tuple[str, Checkpoint], ...] = ()  # by component, of a base that was put together
    # by module: a quantised format that is not decoded, and why
    refused: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, info: TensorInfo) -> StoredTensor | DecodedTensor:
        """Open the tensor, whose parts are read on demand. Raises ShadowError if it is gone."""
        if info.packing is None:
            return self._stored(info)
        from shadow.checkpoints.decoders import packed_tensor

        return packed_tensor(info, self._stored)

    def differ(self, first: TensorInfo, second: TensorInfo) -> bool:
        """Return whether the bytes of two tensors are known to differ; on the Hub they
        are unknown.
        """
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return True
        sources = [self.sources.get(info.shard) for info in (first, second)]
        one, other = (source and source.held for source in sources)
        if not one or not other or first.packing or second.packing:
            return False
        return not one.holds_same(first.start, other, second.start, first.end - first.start)

    def _stored(self, info: TensorInfo) -> StoredTensor:
        return self.sources[info.shard].tensor(info)


@dataclass(frozen=True)
class Located:
    """A checkpoint whose files are known, before any header is read."""

    listing: Listing
    weights: Weights
    config: Config  # its config.json; empty where there is none
    fingerprint: str  # a sha256 over names, sizes and checksums of the files

    @property
    def reference(self) -> str:
        """`org/name`, with the subfolder if it lies in one."""
        return self.listing.name

    @property
    def commit(self) -> str | None:
        """40 hexadecimal digits; None for a folder."""
        return self.listing.commit

    @property
    def access(self) -> str | None:
        """`open`, `gated` or `private`; None when nothing was asked."""
        return self.listing.access


@dataclass(frozen=True)
class Assembled:
    """A base put together from another checkpoint for each component."""

    parts: tuple[tuple[str, Checkpoint | Located], ...]  # by component

    @property
    def reference(self) -> str:
        """The name of each part: `language=org/name vision=./tower`."""
        return self._said([part.reference for _, part in self.parts])

    @property
    def commit(self) -> str | None:
        """The commit of each part; None if all are folders."""
        commits = [part.commit for _, part in self.parts]
        return self._said([one or "a folder" for one in commits]) if any(commits) else None

    @property
    def fingerprint(self) -> str:
        """A sha256 that changes when that of any part does."""
        said = self._said([part.fingerprint for _, part in self.parts])
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def access(self) -> str | None:
        """Return who may read all parts: `private` before `gated` before `open`; None for
        folders.
        """
        of_parts = {part.access for _, part in self.parts if isinstance(part, Located)}
        return next((access for access in ("private", "gated", "open") if access in of_parts), None)

    def _said(self, texts: Iterable[str]) -> str:
        return " ".join(f"{name}={text}" for (name, _), text in zip(self.parts, texts, strict=True))


Found = Checkpoint | Located | Assembled


def listings_of(found: Found, skipped: Sequence[Path] = ()) -> list[tuple[str, Listing]]:
    """The files of each part of a side: by component for a base with one part per component,
    otherwise of the one part "". skipped: folders to pass over, such as that of the report.
    """
    parts = found.parts if isinstance(found, Assembled) else (("", found),)
    listings: list[tuple[str, Listing]] = []
    for name, part in parts:
        if isinstance(part, Located):
            listing = part.listing
            shards = frozenset(part.weights.shards)
        else:
            root = Path(part.reference)
            listing = listing_of_file(root) if root.is_file() else listing_of_folder(root, skipped)
            shards = frozenset(part.sources)
        listings.append((name, replace(listing, read_from=shards)))
    return listings


def combine(assembled: Assembled, parts: Sequence[tuple[str, Checkpoint]]) -> Checkpoint:
    """Put the opened parts of a base together.

    A shard is called `component/shard`, and a tensor whose name occurs in two parts
    `component/tensor`. The config is that of the language component, or of the first part.
    """
    renamed = {
        component: replace(
            part,
            tensors={name: _moved(info, component) for name, info in part.tensors.items()},
            sources={f"{component}/{shard}": source for shard, source in part.sources.items()},
        )
        for component, part in parts
    }
    every = renamed.values()
    names = Counter(name for part in every for name in part.tensors)
    tensors = {
        name if names[name] == 1 else f"{component}/{name}": info
        for component, part in renamed.items()
        for name, info in part.tensors.items()
    }
    return Checkpoint(
        assembled.reference,
        assembled.commit,
        assembled.fingerprint,
        renamed.get("language", next(iter(every))).config,
        tensors,
        sources={shard: source for part in every for shard, source in part.sources.items()},
        parts=tuple(renamed.items()),
        refused={module: why for part in every for module, why in part.refused.items()},
    )


def _moved(info: TensorInfo, folder: str) -> TensorInfo:
    packing = info.packing
    if packing is not None:
        raw, *beside = (_moved(one, folder) for one in (packing.raw, *packing.beside))
        packing = replace(packing, raw=raw, beside=tuple(beside))
    return replace(info, shard=f"{folder}/{info.shard}", packing=packing)


def in_order(info: TensorInfo, config: Config) -> TensorInfo:
    """Undo the order of rows in q and k of Mistral's and Meta's own files, if config has their
    heads: rotary embeddings turn neighbouring rows there, but halves of a head in transformers.

    A reordered tensor has the name of a projection in transformers.
    """
    found = PAIRED.fullmatch(info.name)
    heads = config.get("num_attention_heads")
    if found and found["kind"] == "k":
        heads = config.get("num_key_value_heads") or heads
    is_plain = info.packing is None and info.dtype in FLOATS and len(info.shape) in (1, 2)
    if not found or not is_plain or type(heads) is not int or heads < 1:
        return info
    if info.shape[0] % (2 * heads):
        return info
    raw = replace(info, shape=(info.shape[0], math.prod(info.shape[1:])))
    name = f"{found['head']}{found['kind']}_proj.{found['what']}"
    return replace(info, name=name, packing=Packing(REORDERED, raw, facts=(heads, 0)))


def open_folder(
    reference: str,
    *,
    allow_pickle: bool = False,
    scratch: Path | None = None,
    file: str | None = None,
) -> Checkpoint:
    """Open the checkpoint in a local folder: safetensors first, torch `.bin` only with
    allow_pickle; or in a file.

    scratch: a folder for raw copies of `.bin` files of the old format. file: a pattern that chooses
    among several GGUF files. Raises ShadowError if the folder is not a trustworthy checkpoint.
    """
    root, alone = Path(reference), ""
    if root.is_file() and root.suffix == GGUF:
        root, file = root.parent, glob.escape(root.name)
    elif root.is_file():
        root, alone = root.parent, root.name
    try:
        if not root.is_dir():
            hint = "name the folder that holds the .safetensors files"
            raise ShadowError(f"no such folder: {reference}", hint)
        listing = replace(top_of_folder(root), name=reference)
        located = locate(listing, allow_pickle=allow_pickle, file=file, alone=alone)
        return open_located(located, scratch)
    except OSError as error:
        raise ShadowError(
            f"{reference}: {error.strerror or error}", "check that the folder can be read"
        ) from error


def locate(
    listing: Listing,
    *,
    allow_pickle: bool,
    say: Say = unheard,
    file: str | None = None,
    alone: str = "",
) -> Located:
    """Find the weight files in a listing, reading its config and index but no shard. alone: a file
    that was named itself.

    Raises ShadowError if none can be read, or one that the index names is missing.
    """

    def read(name: str) -> Config:
        return read_object(listing.read(name, say), name)

    usable = filter(usable_name, listing.files)
    names = {name for name in usable if "/" not in name or name.endswith(GGUF)}
    if listing.commit:  # it needs other files beside it
        names.discard(DISTRIBUTED)
    ends = (".safetensors", ".bin", ".index.json", GGUF)
    if not listing.is_complete and not any(name.endswith(ends) for name in names):
        message = f"{listing.name}: none of its weight files is in the cache"
        raise ShadowError(message, "run once without --offline")
    with naming(listing.name, listing.hint):
        weights = choose_weights(
            listing.name, names, read, allow_pickle=allow_pickle, file=file, alone=alone
        )
        # a GGUF file has its config inside: one that lies beside it may be of another model
        config = read(CONFIG) if CONFIG in names and not weights.are_gguf else {}
    missing = [shard for shard in weights.shards if not listing.holds(shard)]
    if missing:
        where, hint = listing.absent
        count = f"{len(missing)} of {len(weights.shards)} shards are not in the {where}"
        raise ShadowError(f"{listing.name}: {count}: {several(missing, 3)}", hint)
    digest = hashlib.sha256()
    for name in (*weights.shards, CONFIG, ADAPTER_CONFIG):
        stored = listing.files.get(name)
        facts = [name, stored.size, stored.checksum] if stored else [name]
        digest.update(json.dumps(facts).encode())
    return Located(listing, weights, config, digest.hexdigest())


def open_located(
    located: Located, scratch: Path | None, say: Say = unheard, report: OnBytes = unheard
) -> Checkpoint:
    """Read the headers of a checkpoint: those of files on the Hub from the cache or by requests.

    `.bin` files have no header: they are fetched whole, and unpacked into scratch if necessary.
    report gets the number of bytes as they come. Raises ShadowError for a file that is not
    available or not trusted.
    """
    listing = located.listing
    weights = located.weights

    def open_one(shard: str, stop: Event) -> Shard:
        return listing.shard(shard, Transfer(say, report, stop), scratch)

    with naming(listing.name, listing.hint):
        opened = in_threads(open_one, weights.shards, 1 if weights.pickled else CONNECTIONS)
        shards = dict(zip(weights.shards, opened, strict=True))
        every = [info for header, _ in opened for info in header.tensors]
        config = located.config
        if not config and PARAMS in listing.files and any(map(PAIRED.fullmatch, every)):
            params = read_object(listing.read(PARAMS, say), PARAMS)
            config = {ours: params[theirs] for ours, theirs in HEADS.items() if theirs in params}
        fingerprint = located.fingerprint
        if listing.folder is not None:
            fingerprint = _fingerprint(listing.folder, shards, config, weights)
        return _opened(located, fingerprint, config, shards, say)


def _fingerprint(folder: Path, shards: Shards, config: Config, weights: Weights) -> str:
    """A sha256 over headers and a sample of the weights."""
    fingerprint = hashlib.sha256()
    for shard, (header, source) in shards.items():
        assert source.held is not None, "of a folder"
        state = (folder / shard).stat()
        said = json.dumps([shard, state.st_size, state.st_mtime_ns, header.text])
        # no more of Python than this for a tensor, of which there may be a million
        starts = [info.start for info in header.tensors.values()]
        sizes = [info.end - info.start for info in header.tensors.values()]
        fingerprint.update(said.encode() + source.held.sample(starts, sizes))
        source.require_unchanged()
    fingerprint.update(json.dumps(config, sort_keys=True).encode())
    if weights.adapter:
        fingerprint.update(repr(weights.adapter).encode())
    return fingerprint.hexdigest()


def _opened(
    located: Located, fingerprint: str, config: Config, shards: Shards, say: Say
) -> Checkpoint:
    """Make a checkpoint of its shards, with an entry a packed matrix and transformers' names."""
    weights = located.weights
    sources = {name: source for name, (_, source) in shards.items()}
    stored: Tensors = {}
    for header, _ in shards.values():
        for name, info in header.tensors.items():
            if name in stored:
                message = f"tensor {name!r} is in {stored[name].shard} and in {info.shard}"
                raise FileError(message, "keep one set of weight files in the folder")
            stored[name] = info
    for name, shard in weights.weight_map.items():
        problem = f"the index puts it in {shard}, which has no such tensor"
        stored.setdefault(name, TensorInfo(name, "unknown", (), shard, 0, 0, problem=problem))
    if not stored:
        raise FileError("its weight files hold no tensors", "check that this is the right folder")
    tensors, refused = with_matrices(
        stored, config, lambda info: sources[info.shard].small_tensor(info, say)
    )
    moved = (in_order(info, config) for info in tensors.values())
    own = {one.name: one for one in moved}
    if len(own) == len(tensors):  # otherwise two would have one name
        tensors = own
    if weights.are_gguf:
        tensors, config = model_of([header for header, _ in shards.values()], weights.shards[0])
    return Checkpoint(
        located.reference,
        located.commit,
        fingerprint,
        config,
        tensors,
        sources,
        adapter=weights.adapter,
        refused=refused,
    )


def read_object(raw: bytes, name: str) -> Config:
    """Parse a JSON file with an object. Raises FileError for anything else."""
    if raw.startswith(b"version https://git-lfs"):
        message = f"{name}: a Git-LFS pointer, not the file itself"
        raise PointerError(message, "run `git lfs pull` in the folder")
    if has_too_many_values(raw):
        raise FileError(f"{name}: larger than that of any released model", AGAIN)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: not JSON ({type(error).__name__})", AGAIN) from error
    if not isinstance(content, dict):
        raise FileError(f"{name}: not a JSON object", AGAIN)
    return content
