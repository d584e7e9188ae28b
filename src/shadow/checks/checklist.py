"""The checklist of a model: the claims that its sides allow, in a fixed order."""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadow.checks.answer import (
    Answer,
    FailedVerification,
    Outcome,
    Question,
    Verification,
    first_code,
)
from shadow.checks.registry import question, verifying
from shadow.errors import ShadowError, UsageError
from shadow.run.runtime import Access, Gathering, Runtime, gather_together
from shadow.run.sides import client_for, find_checkpoint, listing_of, open_checkpoint
from shadow.storage import as_given
from shadow.targets.references import AnyReference, Reference
from shadow.templates import Reason, said
from shadow.text import Shown

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.safetensors_files import TensorInfo

SCHEMA = 1
CARD = "README.md"
FRONT = 1 << 16  # bytes at the beginning of a card that are looked at
BASE_OF_CARD = re.compile(
    r"\A---\s.*?^base_model:\s*(?:-\s*)?['\"]?([\w-][\w.-]{0,95}/[\w.-]{1,96})['\"]?\s*$",
    re.MULTILINE | re.DOTALL | re.ASCII,
)
NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)  # of a model on the Hub
Answered = Verification | FailedVerification


@dataclass(frozen=True)
class CheckRequest:
    """A model, what it was made from, and how strictly it is checked."""

    model: AnyReference
    base: AnyReference | None = None
    adapter: AnyReference | None = None
    full: AnyReference | None = None
    headers: bool = False  # whether values are left out
    drop_in: bool = False  # whether a difference from the base is a fault
    accept: Mapping[str, str] = field(default_factory=dict)  # by code of a fault, the reason

    @property
    def named(self) -> dict[str, AnyReference]:
        """The checkpoints that were given, by their words."""
        words = ("model", "base", "adapter", "full")
        return {word: side for word in words if (side := getattr(self, word)) is not None}


@dataclass(frozen=True)
class Checklist(Shown):
    """The answers about a model, the first of which is that of `whole`."""

    sides: CheckRequest
    lines: tuple[Answered, ...]
    named_base: str = ""  # what the model names as its base, where none was given
    digests: Mapping[str, str] = field(default_factory=dict)  # of the sides that could be opened
    access: Access = field(default_factory=Access)  # which commands repeat

    @property
    def exit_code(self) -> int:
        """The first of 1, 4, 5, 0 that occurred."""
        return first_code({line.exit_code for line in self.lines})

    @property
    def holds(self) -> bool | None:
        """True or False; None if a line is inconclusive or a fault."""
        return {0: True, 4: False}.get(self.exit_code)

    @property
    def proposed(self) -> str:
        """The command that compares the model with the base that it names; empty without one."""
        if not self.named_base:
            return ""
        sides = self.sides
        words = ["shadow check", typed(str(sides.model)), "--base", self.named_base]
        if sides.full is not None:
            words += ["--full", typed(str(sides.full))]
        if sides.headers:
            words.append("--headers")
        if sides.drop_in:
            words.append("--drop-in")
        return " ".join([*words, *_options(sides.accept, self.access)])

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.lines))

    def as_json(self) -> dict[str, Any]:
        """Every line, for machines."""
        lines = [_line(line, self.access) for line in self.lines]
        if self.named_base:
            unasked = {"claim": "moved", "outcome": "does_not_apply", "code": "no_base"}
            lines.append({**unasked, "figures": {}, "command": self.proposed, "accepted": {}})
        of = {word: str(side) for word, side in self.sides.named.items()}
        return {"schema": SCHEMA, "of": of, "lines": lines}


def _line(line: Answered, access: Access) -> dict[str, Any]:
    return {
        "claim": line.claim,
        "outcome": line.outcome,
        "code": line.code,
        "figures": dict(line.figures),
        "command": command_of(line, access),
        "accepted": _accepted(line),
    }


def command_of(line: Answered | Question, access: Access = Access()) -> str:  # noqa: B008 - frozen
    """The command that asks a claim by itself."""
    words = ["shadow verify", line.claim]
    for name, text in line.of.items():
        if name.startswith("--"):
            words.append(name)
        if name != "--headers":
            words.append(typed(text))
    return " ".join([*words, *_options(_accepted(line), access)])


def _options(accept: Mapping[str, str], access: Access) -> list[str]:
    """Options that change an answer: what is accepted, and which files are read."""
    words = []
    for code, because in accept.items():
        words += ["--accept", shlex.quote(f"{code}={because}")]
    if access.allow_pickle:
        words.append("--allow-pickle")
    if access.offline:
        words.append("--offline")
    if access.file:
        words += ["--file", shlex.quote(access.file)]
    return words


def _accepted(line: Answered | Question) -> dict[str, str]:
    """By the code of a fault that a person accepts, the reason."""
    rows = line.answer.against if isinstance(line, Verification) else ()
    return {row.why.code: row.accepted for row in rows if row.accepted}


def typed(text: str) -> str:
    """A checkpoint as a person types it: a folder from here, with quotes where a shell needs
    them.
    """
    path = Path(text)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        text = f"./{path.relative_to(Path.cwd()).as_posix()}"
    return shlex.quote(text.replace(" @ ", "@"))


def check(sides: CheckRequest, runtime: Runtime) -> Checklist:
    """Ask every claim that the sides allow. Raises ShadowError if `whole` cannot be asked."""
    first = question("whole", [sides.model], headers=sides.headers, accept=sides.accept)
    references: list[Reference] = []
    for side in sides.named.values():
        references += [part for _, part in side.parts]
    with tempfile.TemporaryDirectory(prefix="shadow-check-") as folder, client_for(references):
        opened = {}
        digests = {}
        for word, side in sides.named.items():
            try:
                checkpoint = find_checkpoint(side, runtime, Path(folder, word))
                opened[word] = open_checkpoint(checkpoint, runtime, Path(folder, word))
                digests[word] = _digest(opened[word])
            except ShadowError:  # the claim about it says so
                continue
        model = opened.get("model")
        named = ""
        if sides.base is None:
            named = _named_base(sides, opened.get("adapter", model), runtime)
            if sides.adapter is not None:
                hint = f"it names one: add --base {named}" if named else "add --base REF"
                raise UsageError("--adapter needs the base of the adapter", hint)
        gatherings = [_asked(claim, sides, model, runtime) for claim in _claims(sides, model)]
        gatherings.append(verifying(first, runtime))
        begun = time.monotonic()
        *lines, whole = gather_together(gatherings)
        whole = replace(whole, seconds=time.monotonic() - begun)  # of all, which read together
    return Checklist(sides, (whole, *lines), named, digests, runtime.access)


def _digest(checkpoint: Checkpoint) -> str:
    """A sha256 that equal files have anywhere: of a folder, over headers and samples of tensors."""
    shards: dict[str, list[TensorInfo]] = {shard: [] for shard in sorted(checkpoint.sources)}
    for _, info in sorted(checkpoint.tensors.items()):
        shards[info.shard].append(info)
    digest = hashlib.sha256()
    for shard, infos in shards.items():
        held = checkpoint.sources[shard].held
        if held is None or any(info.packing for info in infos):  # in pieces that are not here
            return checkpoint.fingerprint  # on the Hub it has no times
        headers = [(info.name, info.dtype, info.shape) for info in infos]
        starts = [info.start for info in infos]
        sizes = [info.end - info.start for info in infos]
        digest.update(repr(headers).encode() + held.sample(starts, sizes))
    return digest.hexdigest()


def _claims(sides: CheckRequest, model: Checkpoint | None) -> Iterator[Question]:
    """The claims about more than the model itself. model: None if it cannot be opened."""
    from shadow.checks.whole.names import is_quantised

    is_adapter = model is not None and model.adapter is not None
    is_packed = model is not None and is_quantised(model)
    base = sides.base
    adapter = sides.model if is_adapter else sides.adapter
    if base is not None and not is_adapter:
        yield question("drop_in", [base, sides.model])
    if sides.headers:
        return
    if base is not None and not is_adapter and not (is_packed and sides.full):
        yield question("moved", [base, sides.model])
    if base is not None and adapter is not None:
        yield question("trained", [base, adapter])
    if base is not None and sides.adapter is not None:
        yield question("merged", [base, sides.adapter, sides.model])
    if sides.full is not None and is_packed:
        yield question("quantised", [sides.full, sides.model])
    elif sides.full is not None:
        yield question("stored", [sides.full, sides.model], base=base)


def _asked(
    claim: Question, sides: CheckRequest, model: Checkpoint | None, runtime: Runtime
) -> Gathering[Answered]:
    """Ask a claim about more than the model itself."""
    try:
        line = yield from verifying(claim, runtime)
    except UsageError:
        raise
    except ShadowError as error:
        return _failed(claim, error, is_known=model is None)
    return line if sides.drop_in else _softened(line)


def _failed(claim: Question, error: ShadowError, *, is_known: bool) -> Answered:
    """The line of a claim that could not be asked: open, where `whole` says what is wrong with the
    model; otherwise a fault.
    """
    fault = as_given(error.message)
    if is_known:
        answer = Answer(Outcome.INCONCLUSIVE, [said(fault)])
        return Verification(claim.check, claim.of, answer)
    return FailedVerification(claim.claim, claim.of, fault, error.hint)


def _softened(line: Verification) -> Verification:
    """Note differences from the base, which is all that they are unless they are required."""
    answer = line.answer
    if line.claim != "drop_in" or line.holds is not False:
        return line
    noted = [Reason("noted", what=[*answer.reasons])]
    outcome = Outcome.INCONCLUSIVE if answer.doubts else Outcome.HOLDS
    return replace(line, answer=replace(answer, outcome=outcome, reasons=noted, against=()))


def _named_base(sides: CheckRequest, opened: Checkpoint | None, runtime: Runtime) -> str:
    """The base that an adapter's config or the model's card names; empty without one."""
    if opened is not None and opened.adapter is not None:
        base = opened.adapter.base
        return base if NAME.fullmatch(base) else ""
    model = sides.model
    if not isinstance(model, Reference) or model in runtime.checkpoints:
        return ""
    try:
        listing = listing_of(model, runtime)
        if CARD not in listing.files:
            return ""
        text = listing.read(CARD, runtime.say)[:FRONT].decode(errors="replace")
    except ShadowError:
        return ""
    front = text.partition("\n---")[0]
    match = BASE_OF_CARD.search(front)
    return match[1] if match else ""
