"""What a model held at a moment, as checksums: a base for `trained` that takes a few MB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shadow.checks.patterns import Patterns, Should, parse_pattern
from shadow.checks.trained import Moved, Training
from shadow.run.scanned import Apart, Scanned
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.safetensors_files import TensorInfo


@dataclass(frozen=True)
class Snapshot:
    """The tensors of a model in memory when it was taken."""

    tensors: Mapping[str, TensorInfo]
    checksums: Mapping[str, str]


def taken(model: Checkpoint) -> Snapshot:
    """A snapshot of a model, every entry of which is read once."""
    checksums = {}
    for name, info in model.tensors.items():
        found = model.sources[info.shard].checksum(info)
        assert found is not None, "in memory"
        checksums[name] = found
    return Snapshot(model.tensors, checksums)


def training_since(
    before: Snapshot, model: Checkpoint, moved: Sequence[str], frozen: Sequence[str]
) -> Training:
    """The evidence of `trained`: a tensor whose bytes changed moved, by how much is not known."""
    from shadow.run.aligned import parts_of

    each = [(Should.STAY, parse_pattern(text)) for text in frozen]
    each += [(Should.MOVE, parse_pattern(text)) for text in moved]
    patterns = Patterns(each)
    every = replace(model, tensors={**before.tensors, **model.tensors})
    places = {name: [part.place for part in parts] for name, parts in parts_of(every).items()}
    patterns.require_there({place for name in model.tensors for place in places[name]})
    now = taken(model)
    rows, lone, unread = list[Moved](), list[Apart](), list[Apart]()
    for name, of in places.items():
        asked = {should for place in of for should in patterns.at(place)}
        old, info = before.tensors.get(name), now.tensors.get(name)
        if old is None or info is None or (old.shape, old.dtype) != (info.shape, info.dtype):
            if asked != {Should.EITHER}:
                lone.append(Apart(name, "base" if info is None else "tuned", Reason("one_side")))
            continue
        changed = before.checksums[name] != now.checksums[name]
        if changed and len(asked) > 1:
            unread.append(Apart(name, "tuned", Reason("not_told_apart")))
            continue
        entries, formats = info.parameters, (old.dtype, info.dtype)
        row = Scanned(name, name, name, formats, entries, entries if changed else 0)
        stays = not changed and len(info.shape) < 2
        is_first = stays and _is_even(model, info)
        rows.append(Moved(row, of[0], Should.first(asked), is_initial=is_first, is_counted=False))
    return Training(rows, lone, unread)


def _is_even(model: Checkpoint, info: TensorInfo) -> bool:
    """Whether every entry of a vector is 1, or every one is 0, as norms and biases begin."""
    whole = model.tensor(info).whole()
    return bool((whole == 1).all() or (whole == 0).all())
