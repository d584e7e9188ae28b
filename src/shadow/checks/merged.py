"""`merged BASE ADAPTER MERGED`: whether a model is a base with an adapter merged into it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import Against, Answer, Check, Evidence, Figure
from shadow.errors import UsageError
from shadow.run.scanned import Scanned, Unmatched, not_compared, unmatched_reasons
from shadow.templates import Reason, Value
from shadow.text import short

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.pairing import MatrixPair
    from shadow.checks.answer import Question
    from shadow.run.adapted import OpenAdapter
    from shadow.run.aligned import Alignment
    from shadow.run.runtime import Runtime
    from shadow.spectra.relations.merging import MergeFit

# of the residual's energy: what a quantised copy of the base must leave less of, to explain it. To
# a residual that has another cause a copy adds its own error
LEFT = 0.5
NEAR = 0.06  # the same of another scale
ROUNDINGS = 3  # energies of rounding that another scale may leave: of base, update and sum
CLOSE = 0.02  # how near to half, twice or nothing a scale by least squares is called so
SCALES = {0.0: "not_applied", 0.5: "half", 2.0: "twice"}
ALIKE = 0.1  # of a scale: what two digits show
SIDES = {"base": "the base", "tuned": "the merged model", "adapter": "the adapter"}
ERROR = "[: the error is {error:ratio} times the update]"
WORDS = {
    "base_plus_update": "base plus update[ at scale {scale:number}] in every entry of"
    " {matrices:count matrix|matrices}, within the rounding of {formats}",
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
    "all_matrices": "{matrices:all matrix|matrices}",
    "some_matrices": "{some:count} of {matrices:count matrix|matrices}",
    "beside": "{tensors:count tensor|tensors} beside the adapter {tensors|differs|differ} from the"
    " base",
    "changed": "{changed/entries:all entry|entries} {changed|differs|differ} from the base"
    "[; {remark}]",
    "absent": "base or merged model lacks {modules:count module|modules} of the adapter",
    "lacked": "base or merged model lacks it",
    "no_update": "the adapter updates no matrix",
    "whole_is_base": "what the adapter holds whole is the base's: a merge changes nothing",
    "hidden": "the update is below the rounding of storage in every entry: a merge changes nothing",
    "ambiguous": "[{matrices:count matrix is|matrices are} ]within the rounding at another scale"
    " too, such as without the update",
    "unseen": "in {matrices:count matrix|matrices} the update is below the rounding everywhere",
    "base_rounded": "the base was rounded to the format of the merged model before the merge",
    "no_norms": "the DoRA adapter has no norms (lora_magnitude_vector) for it",
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


def judge(merge: Merge) -> Answer:
    """Judge whether every matrix is base plus update, and every other tensor what it should be."""
    modules = merge.modules
    fits = [module.fit for module in modules]
    wrong = [(module, why) for module in modules if (why := verdict(module.fit)) is not None]
    changed = [tensor for tensor in merge.beside if not tensor.is_unchanged]
    either = [module.tensor for module in modules if _is_either(module.fit)]
    hidden = sum(fit.update > 0 and not fit.visible and fit.fits for fit in fits)
    notes = []
    if hidden:
        notes.append(Reason("unseen", matrices=hidden))
    if not wrong and any(fit.onto_rounded for fit in fits):
        notes.append(Reason("base_rounded"))
    against = [Against(module.tensor, why, _error([module])) for module, why in wrong]
    doubtful = [Against(name, Reason("lacked")) for name in merge.absent]
    doubtful += [Against(name, Reason("ambiguous")) for name in either]
    return merge.judged(
        _figures(merge, len(wrong), len(changed)),
        faults=_faults(merge, wrong, len(changed)),
        doubts=_doubts(merge, len(either)),
        holds=_confirmed(merge),
        against=against + [_changed(tensor) for tensor in changed],
        doubtful=doubtful,
        notes=notes,
    )


def verdict(fit: MergeFit) -> Reason | None:
    """Say what is wrong with a matrix; None if it fits."""
    if not fit.finite:
        return Reason("not_finite")
    if fit.fits:
        return None
    for scale, code in SCALES.items():
        if not fit.wide[scale] or not fit.narrow[scale]:
            return Reason(code)
    if fit.quantised is not None and fit.quantised[1] < LEFT * fit.residual:
        return Reason("onto_copy", copy=fit.quantised[0])
    other = _other_scale(fit)
    if other is None:
        beyond = min(fit.wide[1.0], fit.narrow[1.0])
        return Reason("beyond", beyond=beyond, entries=fit.entries)
    for scale, code in SCALES.items():
        if abs(other - scale) < CLOSE:
            return Reason(code)
    return Reason("rescaled", scale=other)


def _other_scale(fit: MergeFit) -> float | None:
    """The least-squares scale if it explains most of the residual and leaves only rounding;
    otherwise None.
    """
    scale = fit.scale
    if scale is None:
        return None
    explained = fit.update * (1 - scale) ** 2
    is_fit = fit.residual - explained < NEAR * fit.residual + ROUNDINGS * fit.rounding
    return scale if is_fit and explained > LEFT * fit.residual else None


def _is_either(fit: MergeFit) -> bool:
    """True if a matrix may just as well hold no update, half of it, or twice as much."""
    bounds = fit.narrow if fit.wide[1.0] else fit.wide
    return fit.visible > 0 and any(not bounds[scale] for scale in SCALES)


def _error(modules: Sequence[Module]) -> float | None:
    """The norm of merged - (base + update) over the update's; None without an update."""
    update = math.fsum(module.fit.update for module in modules)
    residual = math.fsum(module.fit.residual for module in modules)
    return math.sqrt(residual / update) if update else None


def _figures(merge: Merge, wrong: int, changed: int) -> dict[str, Figure]:
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
    return figures


def _faults(merge: Merge, wrong: Sequence[tuple[Module, Reason]], changed: int) -> list[Reason]:
    """Say what is wrong: first that the base is another model, then the most frequent."""
    kinds: dict[tuple[str, Value], list[Module]] = {}
    for module, why in wrong:
        kinds.setdefault((why.code, why.figures.get("copy")), []).append(module)
    reasons = []
    if _is_other_base(merge, wrong):
        reasons.append(Reason("other_base", named=merge.named))
    for (code, copy), modules in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        reasons.append(_fault(code, copy, modules, len(merge.modules)))
    if changed:
        reasons.append(Reason("beside", tensors=changed))
    for side, name in SIDES.items():
        unmatched = [tensor for tensor in merge.unmatched if tensor.side == side]
        reasons += unmatched_reasons(unmatched, Reason("only_in", where=name))
    return reasons


def _is_other_base(merge: Merge, wrong: Sequence[tuple[Module, Reason]]) -> bool:
    """True if most matrices are nothing like base plus update, and most of what the adapter leaves
    alone differs from the base or has no partner of its shape.
    """
    unlike = sum(why.code == "beyond" for _, why in wrong)
    if 2 * unlike < len(merge.modules):
        return False
    left_alone = [tensor for tensor in merge.beside if tensor.whole is None]
    entries = sum(tensor.row.entries for tensor in left_alone)
    changed = sum(tensor.row.entries for tensor in left_alone if not tensor.is_unchanged)
    unmatched = [
        tensor
        for tensor in merge.unmatched
        if tensor.side != "adapter" and tensor.why.code != "rows_only_in"
    ]
    tensors = len(merge.modules) + len(merge.beside) + len(unmatched)
    differs = 2 * changed > entries
    # an adapter of which no module is in the base says nothing of what differs
    return (differs and bool(merge.modules)) or 2 * len(unmatched) > tensors


def _fault(code: str, copy: Value, some: Sequence[Module], matrices: int) -> Reason:
    """Describe what is wrong with some of all matrices."""
    which = "all_matrices" if len(some) == matrices else "some_matrices"
    where = Reason(which, matrices=matrices, some=len(some))
    figures: dict[str, Value] = {"where": where, "copy": copy, "error": _error(some)}
    if code == "rescaled":
        scales = sorted(module.fit.scale or 0.0 for module in some)
        figures["scale"] = scales[len(scales) // 2]
        if scales[-1] - scales[0] > ALIKE * abs(scales[-1]):
            figures |= {"least": scales[0], "scale": scales[-1]}
    return Reason(code, figures)


def _changed(tensor: Beside) -> Against:
    row = tensor.row
    of = {"changed": row.changed, "entries": row.entries, "remark": row.remark or None}
    return Against(row.tuned, Reason("changed", of), row.relative)


def _doubts(merge: Merge, either: int) -> list[Reason]:
    """Say why the answer is inconclusive, if it is. either: matrices that fit at two scales."""
    whole = [tensor.whole for tensor in merge.beside if tensor.whole is not None]
    if merge.unread:
        return not_compared(merge.unread)
    if merge.absent:
        return [Reason("absent", modules=len(merge.absent))]
    if not merge.modules and not any(whole):
        return [Reason("whole_is_base" if whole else "no_update")]
    if merge.modules and not any(module.fit.visible for module in merge.modules):
        return [Reason("hidden")]
    return [Reason("ambiguous", matrices=either)] if either else []


def _confirmed(merge: Merge) -> list[Reason]:
    reasons = []
    if merge.modules:
        confirmed = Reason(
            "base_plus_update",
            matrices=len(merge.modules),
            formats=sorted({module.format for module in merge.modules}),
            scale=merge.scale,
        )
        reasons.append(confirmed)
    whole = sum(tensor.whole is not None for tensor in merge.beside)
    if whole:
        reasons.append(Reason("whole", tensors=whole))
    return reasons


def gather(question: Question, runtime: Runtime, scratch: Path) -> Merge:
    """Compare every matrix with base plus update, and every other tensor with the base's."""
    from shadow.run.adapted import open_adapter
    from shadow.run.aligned import align_all
    from shadow.run.scan import fetch_all, require_unchanged, scan
    from shadow.run.sides import found_all, open_found, opened_models

    sides = found_all(question.named, runtime, scratch)
    opened = open_found(sides.pop("ADAPTER"), runtime, scratch / "ADAPTER")
    if opened.adapter is None:
        hint = f"name a folder with adapter_config.json; in order: {CHECK.usage}"
        raise UsageError(f"ADAPTER: {opened.reference} is a model, not an adapter", hint)
    base, tuned = opened_models(sides, runtime, scratch)
    runtime = fetch_all([opened], runtime)
    aligned = align_all(base, tuned, (SIDES["base"], SIDES["tuned"]))
    adapter = open_adapter(opened, aligned.pair.base)
    measure = partial(_measured, adapter=adapter)
    rows = list(scan(aligned.pair, measure, runtime, scratch / "scan", aligned.unread))
    require_unchanged([opened])
    modules = [row for row in rows if isinstance(row, Module)]
    beside = [row for row in rows if isinstance(row, Beside)]
    return Merge(
        sorted(modules, key=lambda module: (module.tensor, module.place)),
        sorted(beside, key=lambda tensor: (tensor.row.tuned, tensor.row.place)),
        adapter.outside({pair.place for pair in aligned.pair.pairs}),
        adapter.scale,
        short(opened.adapter.base) if opened.adapter.base else None,
        unmatched=_unmatched(aligned, adapter),
        unread=[*aligned.unread, *adapter.unread],
        notes=aligned.notes,
    )


def _unmatched(aligned: Alignment, adapter: OpenAdapter) -> list[Unmatched]:
    """The tensors that only one side has, except rows that the adapter adds; and rows of the
    adapter, such as those of new tokens, that the merged model lacks.
    """
    brought = set()
    lost = []
    for pair in aligned.pair.pairs:
        name = pair.tuned.info.name
        whole = adapter.whole.get(pair.place)
        if whole is not None and whole.tuned.shape == pair.tuned.shape:
            brought.add(name)
        own = whole or adapter.updates.get(pair.place)
        rows = own.tuned.shape[0] - pair.tuned.shape[0] if own is not None else 0
        if rows > 0:
            why = Reason("rows_only_in", rows=rows, where=SIDES["adapter"])
            lost.append(Unmatched(name, "adapter", why, is_shared=True))
    unmatched = [
        tensor
        for tensor in aligned.unmatched
        if tensor.side != "tuned" or tensor.tensor not in brought
    ]
    return unmatched + lost


def _measured(
    pair: MatrixPair, base: Checkpoint, tuned: Checkpoint, adapter: OpenAdapter
) -> Module | Beside | Unmatched:
    from shadow.run.adapted import EMBED
    from shadow.run.aligned import row_of
    from shadow.run.scan import in_words
    from shadow.spectra.lazy import is_quantised

    name = pair.tuned.info.name
    stored = pair.tuned.info.dtype
    place = pair.place
    not_judged = Unmatched(name, "tuned", Reason("quantised", format=stored))
    if place in adapter.updates:
        if is_quantised(tuned.tensor(pair.tuned.info)):
            return not_judged
        if adapter.is_dora and place not in adapter.norms:
            return Unmatched(name, "tuned", Reason("no_norms"))
        fit = adapter.fit(pair, base, tuned, place)
        if fit is None:
            return Unmatched(name, "tuned", Reason("other_shape"))
        return Module(name, in_words(place), stored, fit)
    row = row_of(pair, base, tuned)
    if place in adapter.whole:
        is_moved = row.changed > 0 or pair.base is None or pair.base.shape != pair.tuned.shape
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
