"""`merged BASE ADAPTER MERGED`: whether a model is a base with an adapter merged into it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from shadow.checks.answer import Against, Answer, Check, Evidence, Figure
from shadow.errors import UsageError
from shadow.run.scanned import Scanned, Unmatched, not_compared, unmatched_reasons
from shadow.templates import Reason, Value
from shadow.text import short

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.pairing import MatrixPair
    from shadow.checks.answer import Question
    from shadow.run.adapted import OpenAdapter, Reach
    from shadow.run.aligned import Alignment
    from shadow.run.runtime import Gathering, Runtime
    from shadow.spectra.relations.merging import MergeFit, UpdateScale, Way

ERRORS = 5  # standard errors on each side of an estimated scale
NEAR_ONE = 3e-4  # from 1: scales that programs round, as bfloat16 of alpha / rank
OTHER = 1e-3  # from 1: the nearest scale that must be excluded
# of the residual's energy: what a quantised copy of the base must leave less of, to explain it. To
# a residual that has another cause a copy adds its own error
LEFT = 0.5
NEAR = 0.06  # the same of another scale
ROUNDINGS = 3  # energies of rounding that another scale may leave: of base, update and sum
CLOSE = 0.02  # how near to half, twice or nothing a scale by least squares is called so
SCALES = {0.0: "not_applied", 0.5: "half", 2.0: "twice"}
HEADS = ("lm_head.", "cls.")  # names of heads that have no place
ALIKE = 0.1  # of a scale: what two digits show
SIDES = {"base": "the base", "tuned": "the merged model", "adapter": "the adapter"}
ERROR = "[: the error is {error:ratio} times the update]"
WORDS = {
    "base_plus_update": "base plus update[ at scale {scale:number}] in every entry of"
    " {matrices:count matrix|matrices} in {formats}, {how}",
    "to_the_bit": "to the bit, computed {order}",
    "within_rounding": "within rounding: {off/entries:all entry|entries} {off|differs|differ} from"
    " any order that is replayed, and the scale is {low:factor} to {high:factor} times the"
    " adapter's",
    # orders that are replayed
    "in_float32": "in float32, as peft does",
    "in_one_sum": "in float32 and one sum, as Unsloth does",
    "left_scaled": "in float32 from a scaled factor, as torchtune does",
    "update_rounded": "in float32 with the update rounded first, as peft's safe_merge does",
    "factors_rounded": "from factors in 16 bits, as peft does on a CPU where they are not raised",
    "in_16_bits": "in 16 bits, as peft does on a GPU where factors are not raised",
    "left_scaled_in_16_bits": "in 16 bits from a scaled factor, as mlx does",
    "in_float64": "in float64",
    "whole": "{tensors:all tensor|tensors} that the adapter holds whole {tensors|is|are} in the"
    " merged model",
    "other_base": "check BASE first: most of what the adapter leaves alone differs or is missing,"
    " so the adapter was merged into another model[ (its config names {named})], or MERGED was"
    " trained further",
    # of one matrix, and of several
    "not_finite": f"some entries are not finite[ in {{where}}]{ERROR}",
    "not_applied": "the adapter is not applied[ in {where}]",
    "half": "merged at half its scale[ in {where}]",
    "twice": "merged twice[ in {where}]",
    "rescaled": "merged at [{least:factor} to ]{scale:factor} times its scale[ in {where}]",
    "onto_copy": f"merged onto an {{copy}} copy of the base[ in {{where}}]{ERROR}",
    "beyond": "[{beyond:count} of {entries:count} entries are ]not base plus update[ in {where}]"
    + ERROR,
    "scrambled": "the experts' factors are read in the other packing[ in {where}]",
    "other_expert": "the update of another expert is applied[ in {where}][: of expert {expert}]",
    "all_matrices": "{matrices:all matrix|matrices}",
    "some_matrices": "{some:count} of {matrices:count matrix|matrices}",
    "beside": "{tensors:count tensor|tensors} beside the adapter {tensors|differs|differ} from the"
    " base",
    "changed": "{changed/entries:all entry|entries} {changed|differs|differ} from the base"
    "[; {remark}]",
    "lost": "{tensors:count tensor|tensors} that the adapter holds {tensors|is|are} not in the"
    " merged model",
    "is_base": "it is the base's, not the adapter's",
    "not_adapters": "{changed/entries:all entry|entries} {changed|differs|differ} from the adapter",
    "absent": "base or merged model lacks {modules:count module|modules} of the adapter",
    "lacked": "base or merged model lacks it",
    "no_update": "the adapter updates no matrix",
    "whole_is_base": "what the adapter holds whole is the base's: a merge changes nothing",
    "hidden": "the update is below the rounding of storage in every entry: a merge changes nothing",
    "ambiguous": "every entry is within the rounding, but the scale is only known to be"
    " {low:factor} to {high:factor} times the adapter's",
    "unseen": "in {matrices:count matrix|matrices} the update is below the rounding everywhere",
    "packed_by_expert": "the factors of stacked experts are packed expert by expert, as Unsloth"
    " writes them; peft reads them rank by rank",
    "base_rounded": "the base was rounded to the format of the merged model before the merge",
    "no_norms": "the DoRA adapter has no norms (lora_magnitude_vector) for it",
    "dora_embedding": "DoRA of an embedding is not judged",
    "other_shape": "not of the shape of its update",
    "quantised": "{format}: not judged; give the merge before it was quantised",
}


@dataclass(frozen=True, slots=True)
class Module:
    """A matrix that the adapter updates."""

    tensor: str  # of the merged model
    place: str
    format: str
    fit: MergeFit
    by_expert: MergeFit | None = None  # of a stack: the fit if factors are packed by expert
    owner: int | None = None  # the expert whose update it holds instead of its own


@dataclass(frozen=True, slots=True)
class Beside:
    """A tensor without an update: the base's, or the adapter's if it holds it whole."""

    row: Scanned
    whole: bool | None = None
    """Whether the merged model's differs from the base's; None unless the adapter holds it."""

    @property
    def is_unchanged(self) -> bool:
        """True if it is the same, or the same after a cast to the merged model's format."""
        row = self.row
        return not row.changed or row.rounded == ("tuned", row.formats[1])


@dataclass(frozen=True)
class Merge(Evidence):
    """A base, an adapter and a merged model."""

    modules: Sequence[Module]
    beside: Sequence[Beside] = ()
    absent: Sequence[str] = ()  # tensors of the adapter whose module base or merged model lacks
    scale: float | None = None  # of the adapter, where all its modules share one
    named: str | None = None  # the base that the adapter's config names
    reach: Reach | None = None


@dataclass(frozen=True)
class Replay:
    """The way that explains a merge best, and the entries of matrices that fit which it leaves."""

    way: Way
    off: int  # entries that differ from it
    scale: UpdateScale

    @property
    def bounds(self) -> dict[str, Value]:
        """The interval of the scale."""
        reach = ERRORS * self.scale.error
        return {"low": self.scale.value - reach, "high": self.scale.value + reach}


def judge(merge: Merge) -> Answer:
    """Judge whether every matrix is base plus update, and every other tensor what it should be."""
    modules, is_by_expert = _packed(merge.modules)
    merge = replace(merge, modules=modules)
    fits = [module.fit for module in modules]
    replay = _replay([fit for fit in fits if fit.fits])
    wrong = _wrong(modules, replay)
    changed = [tensor for tensor in merge.beside if not tensor.is_unchanged]
    hidden = sum(fit.update > 0 and not fit.visible and fit.fits for fit in fits)
    notes = []
    if hidden:
        notes.append(Reason("unseen", matrices=hidden))
    if not wrong and replay and replay.way[1]:
        notes.append(Reason("base_rounded"))
    faults = _faults(merge, wrong, len(changed))
    if merge.reach and not faults:
        notes += merge.reach.reasons
    if is_by_expert:
        notes.append(Reason("packed_by_expert"))
    return merge.judged(
        _figures(merge, len(wrong), len(changed), replay),
        faults=faults,
        doubts=_doubts(merge, replay),
        holds=_confirmed(merge, replay),
        against=[Against(module.tensor, why, _error([module])) for module, why in wrong]
        + [_changed(tensor) for tensor in changed],
        doubtful=[Against(name, Reason("lacked")) for name in merge.absent],
        notes=notes,
    )


def _packed(modules: Sequence[Module]) -> tuple[list[Module], bool]:
    """Read the factors of stacked experts in the packing that explains more matrices, peft's if
    both explain as many. Return also whether it is the other.
    """
    pairs = [(module.fit.fits, module.by_expert.fits) for module in modules if module.by_expert]
    if sum(second for _, second in pairs) <= sum(first for first, _ in pairs):
        return [*modules], False
    turned = [
        replace(module, fit=module.by_expert, by_expert=module.fit) if module.by_expert else module
        for module in modules
    ]
    return turned, True


def _replay(fits: Sequence[MergeFit]) -> Replay | None:
    """Choose the way that leaves the fewest entries in all matrices together. Matrices that it
    leaves nothing of do not count for the scale: one that is off may be the only one.
    """
    from shadow.spectra.relations.merging import UpdateScale, best_way

    if not fits:
        return None
    way, off = best_way(fits)
    differing = [fit for fit in fits if fit.rests[way].entries]
    return Replay(way, off, UpdateScale.of(differing, way))


def _wrong(modules: Sequence[Module], replay: Replay | None) -> list[tuple[Module, Reason]]:
    """The matrices that are no right merge, and why: entries that rounding cannot explain,
    or a scale that excludes 1, of one matrix or of all together.
    """
    from shadow.spectra.relations.merging import UpdateScale

    wrong = [(module, why) for module in modules if (why := _verdict_of(module)) is not None]
    if replay is None:
        return wrong
    scales = [
        (module, UpdateScale.of([module.fit], replay.way))
        for module in modules
        if module.fit.fits and module.fit.rests[replay.way].entries
    ]
    rescaled = [(module, scale) for module, scale in scales if not _is_near(scale)]
    if not rescaled and not _is_near(replay.scale):
        rescaled = scales
    return wrong + [(module, Reason("rescaled", scale=scale.value)) for module, scale in rescaled]


def _is_near(scale: UpdateScale) -> bool:
    """True if the interval of a scale contains 1."""
    return abs(scale.value - 1) <= NEAR_ONE + ERRORS * scale.error


def _excludes_others(scale: UpdateScale) -> bool:
    """True if the interval of a scale excludes 1.001 and 0.999."""
    return abs(scale.value - 1) + ERRORS * scale.error < OTHER


def _verdict_of(module: Module) -> Reason | None:
    """The fault of the entries of a matrix, which may be of a stack."""
    why = verdict(module.fit)
    if why is None or why.code in ("not_finite", "not_applied"):
        return why
    if module.by_expert is not None and module.by_expert.fits:
        return Reason("scrambled")
    if module.owner is not None:
        return Reason("other_expert", expert=str(module.owner))
    return why


def verdict(fit: MergeFit) -> Reason | None:
    """The fault of the entries of a matrix; None if it fits."""
    if not fit.finite:
        return Reason("not_finite")
    if fit.fits:
        return None
    if not fit.moved:
        return Reason("not_applied")
    if fit.quantised is not None and fit.quantised[1] < LEFT * fit.residual:
        return Reason("onto_copy", copy=fit.quantised[0])
    other = _other_scale(fit)
    if other is None:
        return Reason("beyond", beyond=fit.beyond, entries=fit.entries)
    for scale, code in SCALES.items():
        if abs(other - scale) < CLOSE:
            return Reason(code)
    return Reason("rescaled", scale=other)


def _other_scale(fit: MergeFit) -> float | None:
    """The least-squares scale if it explains most of what rounding does not, and leaves only
    rounding; otherwise None.
    """
    scale = fit.scale
    if scale is None:
        return None
    explained = fit.update * (1 - scale) ** 2
    is_fit = fit.residual - explained < NEAR * fit.residual + ROUNDINGS * fit.rounding
    is_seen = explained * fit.entries > ERRORS**2 * fit.rounding
    is_most = explained > LEFT * (fit.residual - fit.rounding)
    return scale if is_fit and is_seen and is_most else None


def _error(modules: Sequence[Module]) -> float | None:
    """The norm of merged - (base + update) over the update's; None without an update."""
    update = math.fsum(module.fit.update for module in modules)
    if not update:
        return None
    residual = math.fsum(module.fit.residual for module in modules)
    return math.sqrt(residual / update)


def _figures(merge: Merge, wrong: int, changed: int, replay: Replay | None) -> dict[str, Figure]:
    fits = [module.fit for module in merge.modules]
    figures: dict[str, Figure] = {
        "matrices": len(fits),
        "matrices_wrong": wrong,
        "tensors_beside": len(merge.beside),
        "tensors_beside_changed": changed,
        "entries": sum(fit.entries for fit in fits),
        "entries_visible": sum(fit.visible for fit in fits),
    }
    error = _error(merge.modules)
    if error is not None:
        figures["error_over_update"] = error
        update = math.fsum(fit.update for fit in fits)
        figures["scale_found"] = math.fsum(fit.inner for fit in fits) / update
    if merge.scale is not None:
        figures["scale"] = merge.scale
    if replay is not None:
        figures["entries_off"] = replay.off
        if math.isfinite(replay.scale.error):
            figures["scale_relative"] = replay.scale.value
            figures["scale_error"] = replay.scale.error
    return figures


def _faults(merge: Merge, wrong: Sequence[tuple[Module, Reason]], changed: int) -> list[Reason]:
    """The faults: first that the base is another model, then the most frequent."""
    kinds: defaultdict[tuple[str, Value], list[tuple[Module, Reason]]] = defaultdict(list)
    for module, why in wrong:
        kind = why.code, why.figures.get("copy")
        kinds[kind].append((module, why))
    largest = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    reasons = []
    if _is_other_base(merge, wrong):
        reasons.append(Reason("other_base", named=merge.named))
    unreached = [tensor for tensor in merge.unmatched if tensor.side == "adapter"]
    if merge.reach and (wrong or changed or unreached or not merge.modules):
        reasons += merge.reach.reasons
    for (code, copy), some in largest:
        reasons.append(_fault(code, copy, some, len(merge.modules)))
    lost = sum(tensor.whole is not None and not tensor.is_unchanged for tensor in merge.beside)
    if lost:
        reasons.append(Reason("lost", tensors=lost))
    if changed > lost:
        reasons.append(Reason("beside", tensors=changed - lost))
    for side, name in SIDES.items():
        unmatched = [tensor for tensor in merge.unmatched if tensor.side == side]
        reasons += unmatched_reasons(unmatched, Reason("only_in", where=name))
    return reasons


def _is_other_base(merge: Merge, wrong: Sequence[tuple[Module, Reason]]) -> bool:
    """True if most matrices are nothing like base plus update, and most of what the adapter
    leaves alone differs from the base or has no partner of its shape.
    """
    unlike = sum(why.code == "beyond" for _, why in wrong)
    if 2 * unlike < len(merge.modules):
        return False
    alone = [tensor for tensor in merge.beside if tensor.whole is None]
    changed = sum(tensor.row.entries for tensor in alone if not tensor.is_unchanged)
    unmatched = [
        tensor
        for tensor in merge.unmatched
        if tensor.side != "adapter" and tensor.why.code != "rows_only_in"
    ]
    tensors = len(merge.modules) + len(merge.beside) + len(unmatched)
    differs = 2 * changed > sum(tensor.row.entries for tensor in alone)
    # an adapter of which no module is in the base says nothing of what differs
    return (differs and bool(merge.modules)) or 2 * len(unmatched) > tensors


def _fault(code: str, copy: Value, some: Sequence[tuple[Module, Reason]], matrices: int) -> Reason:
    """Describe what is wrong with some of all matrices."""
    which = "all_matrices" if len(some) == matrices else "some_matrices"
    where = Reason(which, matrices=matrices, some=len(some))
    error = _error([module for module, _ in some])
    figures: dict[str, Value] = {"where": where, "copy": copy, "error": error}
    if code == "rescaled":
        scales = sorted(cast(float, why.figures["scale"]) for _, why in some)
        figures["scale"] = scales[len(scales) // 2]
        if scales[-1] - scales[0] > ALIKE * abs(scales[-1]):
            figures |= {"least": scales[0], "scale": scales[-1]}
    return Reason(code, figures)


def _changed(tensor: Beside) -> Against:
    row = tensor.row
    if tensor.whole is False:
        return Against(row.tuned, Reason("is_base"))
    code = "changed" if tensor.whole is None else "not_adapters"
    of = {"changed": row.changed, "entries": row.entries, "remark": row.remark or None}
    return Against(row.tuned, Reason(code, of), row.relative)


def _doubts(merge: Merge, replay: Replay | None) -> list[Reason]:
    """Say why the answer is inconclusive, if it is."""
    whole = [tensor.whole for tensor in merge.beside if tensor.whole is not None]
    if merge.unread:
        return not_compared(merge.unread)
    if merge.absent:
        return [Reason("absent", modules=len(merge.absent))]
    if not merge.modules and not any(whole):
        return [Reason("whole_is_base" if whole else "no_update")]
    if merge.modules and not any(module.fit.visible for module in merge.modules):
        return [Reason("hidden")]
    if replay and replay.off and not _excludes_others(replay.scale):
        return [Reason("ambiguous", replay.bounds)]
    return []


def _confirmed(merge: Merge, replay: Replay | None) -> list[Reason]:
    reasons = []
    modules = merge.modules
    if modules and replay:
        formats = sorted({module.format for module in modules})
        of: dict[str, Value] = {"matrices": len(modules), "formats": formats, "scale": merge.scale}
        how = Reason("to_the_bit", order=Reason(replay.way[0]))
        if replay.off:
            entries = sum(module.fit.entries for module in modules)
            figures = {"off": replay.off, "entries": entries, **replay.bounds}
            how = Reason("within_rounding", figures)
        reasons.append(Reason("base_plus_update", {**of, "how": how}))
    whole = sum(tensor.whole is not None for tensor in merge.beside)
    if whole:
        reasons.append(Reason("whole", tensors=whole))
    return reasons


def gather(question: Question, runtime: Runtime, scratch: Path) -> Gathering[Merge]:
    """Compare every matrix with base plus update, and every other tensor with the base's."""
    from shadow.run.adapted import open_adapter, open_merges, reach_of
    from shadow.run.aligned import align_all
    from shadow.run.scan import fetch_all, require_unchanged, scan
    from shadow.run.sides import find_checkpoints, open_checkpoint, opened_models

    checkpoints = find_checkpoints(question.named, runtime, scratch)
    opened = open_checkpoint(checkpoints.pop("ADAPTER"), runtime, scratch / "ADAPTER")
    if opened.adapter is None:
        hint = f"name a folder with adapter_config.json; in order: {CHECK.usage}"
        raise UsageError(f"ADAPTER: {opened.reference} is a model, not an adapter", hint)
    base, tuned = opened_models(checkpoints, runtime, scratch)
    runtime = fetch_all([opened], runtime)
    aligned = align_all(base, tuned, (SIDES["base"], SIDES["tuned"]))
    if opened.adapter.is_merged_by_peft:
        adapter = open_merges(aligned.pair.base, opened, runtime)
    else:
        adapter = open_adapter(opened, aligned.pair.base)
    measure = partial(_measured, adapter=adapter)
    pairs = [*aligned.pair.pairs, *adapter.head_pairs(tuned)]
    every = replace(aligned.pair, pairs=pairs)
    rows = yield from scan(every, measure, runtime, scratch / "scan", aligned.unread)
    require_unchanged([opened])
    modules = [row for row in rows if isinstance(row, Module)]
    beside = [row for row in rows if isinstance(row, Beside)]
    return Merge(
        sorted(modules, key=lambda module: (module.tensor, module.place)),
        sorted(beside, key=lambda tensor: (tensor.row.tuned, tensor.row.place)),
        adapter.outside({pair.place for pair in aligned.pair.pairs}),
        adapter.scale,
        short(opened.adapter.base) if opened.adapter.base else None,
        reach_of(opened, aligned.pair.base),
        unmatched=[*_unmatched(aligned, adapter), *adapter.lost],
        unread=[*aligned.unread, *adapter.unread],
        notes=aligned.notes,
    )


def _unmatched(aligned: Alignment, adapter: OpenAdapter) -> list[Unmatched]:
    """Names that only one side has, except rows that the adapter adds; and rows of the adapter,
    such as those of new tokens, that the merged model lacks.
    """
    brought = {pair.tuned.info.name for pair in adapter.head_pairs(aligned.pair.tuned)}
    lost = [
        Unmatched(info.name, "adapter", Reason("only_in", where=SIDES["adapter"]))
        for name, info in adapter.heads.items()
        if name not in aligned.pair.tuned.tensors
    ]
    for pair in aligned.pair.pairs:
        name = pair.tuned.info.name
        whole = adapter.whole.get(pair.place)
        if whole is not None and whole.tuned.shape == pair.tuned.shape:
            brought.add(name)
        mine = whole or adapter.updates.get(pair.place)
        rows = mine.tuned.shape[0] - pair.tuned.shape[0] if mine else 0
        if rows > 0:
            why = Reason("rows_only_in", rows=rows, where=SIDES["adapter"])
            lost.append(Unmatched(name, "adapter", why, is_shared=True))
    unmatched = [
        tensor
        for tensor in aligned.unmatched
        if (tensor.side != "tuned" or tensor.tensor not in brought)
        and not (adapter.heads and _is_head(tensor, aligned))
    ]
    return [*unmatched, *lost]


def _is_head(unmatched: Unmatched, aligned: Alignment) -> bool:
    """True if only the base has it, and it is of its head: an adapter with another head was
    trained on another class.
    """
    modules = {place.module for place in aligned.places.get(unmatched.tensor, ())}
    return (
        unmatched.side == "base"
        and not unmatched.is_shared
        and (modules == {"head"} or unmatched.tensor.startswith(HEADS))
    )


def _measured(
    pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, adapter: OpenAdapter
) -> Module | Beside | Unmatched:
    from shadow.run.adapted import EMBED
    from shadow.run.aligned import row_of
    from shadow.run.scan import in_words
    from shadow.spectra.lazy import is_quantised

    info = pair.tuned.info
    place = pair.place
    name = info.name
    stored = info.dtype
    not_judged = Unmatched(name, "tuned", Reason("quantised", format=stored))
    if pair.base is None:
        return Beside(adapter.row_of_head(pair, tuned), True)
    if place in adapter.stacks:
        if is_quantised(tuned.tensor(info)):
            return not_judged
        return Module(name, in_words(place), stored, *adapter.fit_expert(pair, base, tuned))
    if place in adapter.updates:
        if is_quantised(tuned.tensor(pair.tuned.info)):
            return not_judged
        factor = adapter.updates[place].tuned.factor
        if adapter.is_dora and factor and factor.transposed:  # norms of columns
            return Unmatched(name, "tuned", Reason("dora_embedding"))
        if adapter.is_dora and place not in adapter.norms:
            return Unmatched(name, "tuned", Reason("no_norms"))
        fit = adapter.fit(pair, base, tuned, place)
        if fit is None:
            return Unmatched(name, "tuned", Reason("other_shape"))
        return Module(name, in_words(place), stored, fit)
    if adapter.merges is not None and pair.base.info.name in adapter.merges.updated:
        if is_quantised(tuned.tensor(info)):
            return not_judged
        return Module(name, in_words(place), stored, adapter.fit_merge(pair, base, tuned))
    row = row_of(pair, base, tuned)
    if place in adapter.biases:
        return Module(name, in_words(place), stored, adapter.fit_bias(pair, base, tuned))
    if place in adapter.tokens:
        return Beside(*adapter.row_of_tokens(pair, row, base, tuned))
    if place in adapter.whole:
        is_moved = row.changed > 0 or pair.base.shape != pair.tuned.shape
        return Beside(adapter.row_of_whole(pair, tuned), is_moved)
    if not row.changed:
        return Beside(row)
    if is_quantised(tuned.tensor(pair.tuned.info)):
        return not_judged
    if adapter.is_tied(pair):  # a head that is the base's embedding may go with its update
        fit = adapter.fit(pair, base, tuned, EMBED)
        if fit is not None and fit.fits:
            return Module(name, in_words(place), stored, fit)
    return Beside(row)


CHECK = Check(
    "merged",
    "a merged adapter",
    "every matrix is the base's plus the scaled update of the adapter, within the rounding of"
    " storage and of the merge's own arithmetic in every entry; every other tensor is the base's",
    judge,
    WORDS,
    gather,
    checkpoints=("BASE", "ADAPTER", "MERGED"),
    says="MERGED is BASE plus ADAPTER",
)
