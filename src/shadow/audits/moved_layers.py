"""Which layers of a tuned model are other layers of its base, by their content: after layers were
dropped or inserted, the rest has other numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from torch import Tensor

from shadow.audits.runtime import AlignedPair
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Side, Skipped
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.sources import ByteRanges, Source, WholeFile
from shadow.errors import ShadowError
from shadow.places.architecture import Place

if TYPE_CHECKING:
    from shadow.checkpoints.hub_client import Say  # which imports the client of the Hub

KINDS = 2  # kinds of tensors that are read, as one of attention and one of the MLP
ROWS = 16  # of each tensor, its first ones as stored
SAMPLE = 1 << 14  # entries of them at most
LIKE = 0.9  # cosine of two samples; after noise of a tenth of the norm it is 0.995


@dataclass(frozen=True)
class _Kind:
    """Tensors that may be each other's content: one of every layer has it."""

    component: str
    module: str
    slot: str
    shape: tuple[int, ...]

    @property
    def family(self) -> str:
        """`attn` or `mlp`, and the like."""
        return self.module.partition(".")[0]


_Layers = Mapping[_Kind, Mapping[int, TensorInfo]]
_Samples = Mapping[str, Tensor]  # by name of a tensor


def moved_layers(
    lined: AlignedPair, far: Collection[str], scratch: Path, say: Say
) -> dict[str, str]:
    """By the name of a tuned tensor in a layer that is another one of the base: the base's tensor
    that has its content, for the few kinds of tensors that were read.

    far: keys of the matrix pairs that have nothing in common. Where most of a layer is so, the
    first rows of a few of its tensors are looked for in all layers of the base; nothing is read
    otherwise. scratch is where byte ranges may lie meanwhile.
    """
    lost = _lost(lined, far)
    if not lost:
        return {}
    base, tuned = _layers_of("base", lined), _layers_of("tuned", lined)
    paired = {(pair.place.component, pair.place.layer) for pair in lined.pairs if pair.base}
    looked_for = {
        kind: {
            layer: info
            for layer, info in layers.items()
            if (kind.component, layer) in lost or (kind.component, layer) not in paired
        }
        for kind, layers in tuned.items()
        if kind in base
    }
    chosen = _chosen({kind: layers for kind, layers in looked_for.items() if layers}, lost)
    found: defaultdict[tuple[str, int], dict[str, TensorInfo | None]] = defaultdict(dict)
    of_base = _read(lined.base, "base", [base[kind] for kind in chosen], scratch, say)
    of_tuned = _read(lined.tuned, "tuned", [looked_for[kind] for kind in chosen], scratch, say)
    for kind in chosen:
        for layer, info in looked_for[kind].items():
            content = _content(of_tuned[info.name], layer, base[kind], of_base)
            found[kind.component, layer][info.name] = content
    return _agreed(found, base, chosen)


def _lost(lined: AlignedPair, far: Collection[str]) -> set[tuple[str, int]]:
    """Components and numbers of layers most of which has nothing in common with the base's."""
    counts, of = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for pair in lined.pairs:
        place = pair.place
        if place.layer is not None and place.expert is None and pair.is_matrix and pair.base:
            of[place.component, place.layer] += 1
            counts[place.component, place.layer] += pair.key in far
    return {layer for layer, count in counts.items() if 2 * count > of[layer]}


def _layers_of(side: Side, lined: AlignedPair) -> _Layers:
    """The matrices of a side's layers, by kind and layer; those of an adapter are none, and those
    that are decoded, whose first bytes are not their first rows.
    """
    layers: defaultdict[_Kind, dict[int, TensorInfo]] = defaultdict(dict)
    for place, info in _matrices(side, lined):
        plain = len(info.shape) == 2 and info.packing is None
        if place.layer is not None and place.expert is None and plain:
            kind = _Kind(place.component, place.module, place.slot, info.shape)
            layers[kind][place.layer] = info
    return layers


def _matrices(side: Side, lined: AlignedPair) -> Iterator[tuple[Place, TensorInfo]]:
    for pair in lined.pairs:
        operand = pair.base if side == "base" else pair.tuned
        if operand is not None and operand.factor is None and pair.is_matrix:
            yield pair.place, operand.info
    for skip in lined.skipped:
        if skip.side == side and _has_no_partner(skip) and min(skip.info.shape, default=0) > 1:
            yield skip.place, skip.info


def _has_no_partner(skip: Skipped) -> bool:
    return skip.reason in ("only_in_base", "only_in_tuned")


def _chosen(
    looked_for: Mapping[_Kind, Mapping[int, TensorInfo]], lost: Collection[tuple[str, int]]
) -> list[_Kind]:
    """Of each component the kinds that most layers have, one of a family, the smallest first."""
    chosen: list[_Kind] = []
    for component in sorted({component for component, _ in lost}):
        kinds = [kind for kind in looked_for if kind.component == component]
        kinds.sort(
            key=lambda kind: (
                -len(looked_for[kind]),
                kind.shape[0] * kind.shape[1],
                kind.module,
                kind.slot,
            )
        )
        of_family = {kind.family: kind for kind in reversed(kinds)}
        chosen += sorted(of_family.values(), key=kinds.index)[:KINDS]
    return chosen


def _content(
    sample: Tensor, layer: int, base: Mapping[int, TensorInfo], samples: _Samples
) -> TensorInfo | None:
    """The base's tensor with this content; of several, that of the nearest layer."""
    likenesses = [
        (abs(other - layer), other, info)
        for other, info in base.items()
        if other != layer and _alike(sample, samples[info.name])
    ]
    return min(likenesses, key=lambda found: found[:2])[2] if likenesses else None


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether their cosine is LIKE or more; of what is 0 or not finite it is not."""
    size = first.norm() * second.norm()
    return bool(size.isfinite() and first @ second > LIKE * size)


def _agreed(
    found: Mapping[tuple[str, int], Mapping[str, TensorInfo | None]],
    base: _Layers,
    chosen: Sequence[_Kind],
) -> dict[str, str]:
    """What was found of layers all tensors of which were found in one layer of the base."""
    layer_of = {info.name: layer for kind in chosen for layer, info in base[kind].items()}
    agreed: dict[str, str] = {}
    for contents in found.values():
        names = {name: info.name for name, info in contents.items() if info is not None}
        if len(names) == len(contents) and len({layer_of[name] for name in names.values()}) == 1:
            agreed |= names
    return agreed


def _read(
    checkpoint: Checkpoint,
    side: Side,
    wanted: Iterable[Mapping[int, TensorInfo]],
    scratch: Path,
    say: Say,
) -> _Samples:
    """The first entries of tensors, float64, by name."""
    of_shard: defaultdict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for layers in wanted:
        for info in layers.values():
            of_shard[info.shard][info.name] = info
    samples: dict[str, Tensor] = {}
    for shard, infos in sorted(of_shard.items()):
        source = checkpoint.sources[shard]
        heads = {name: _head(info) for name, info in infos.items()}
        path = scratch / f"{side}-layers.part"
        reader = _fetched(source, list(heads.values()), path, say, ranges=checkpoint.ranges)
        try:
            samples |= {name: _sample(reader.tensor(head).whole()) for name, head in heads.items()}
        finally:
            reader.free()
    return samples


def _head(info: TensorInfo) -> TensorInfo:
    """The first rows of a tensor as a tensor of its own."""
    rows, cols = info.shape
    few = min(rows, ROWS)
    if info.strides is not None:
        return replace(info, shape=(few, cols))
    return replace(info, shape=(few, cols), end=info.start + (info.end - info.start) // rows * few)


def _sample(head: Tensor) -> Tensor:
    return head[:, : SAMPLE // len(head)].double().reshape(-1)


def _fetched(
    source: Source, heads: Sequence[TensorInfo], path: Path, say: Say, *, ranges: bool
) -> Source:
    """What reads a few rows of a shard: not more of it than that, where the server allows."""
    if not isinstance(source, WholeFile):
        return _having_fetched(source, say)
    from shadow.checkpoints.hub import cached

    if (there := cached(source.snapshot, source.file)) is not None:
        return replace(source, path=there)  # what was measured has been checked
    if ranges and not source.snapshot.offline:
        with suppress(ShadowError):  # whatever ranges lack, fetching the whole shard tells
            part = ByteRanges(source.snapshot, source.file, wanted=tuple(heads), path=path)
            return _having_fetched(part, say)
    return _having_fetched(replace(source, keep=source.snapshot.offline), say)


def _having_fetched(source: Source, say: Say) -> Source:
    source.fetch(say=say, report=lambda count: None, stop=Event())
    return source
