"""`merged BASE ADAPTER MERGED`: whether a model is a base with an adapter merged into it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shadow.checks.old import (
    Against,
    Answer,
    Claim,
    Figure,
    all_tensors,
    apart_in_words,
    are,
    largest_first,
    not_compared,
)
from shadow.quantities import text_of
from shadow.run.scanned import Apart, Scanned
from shadow.text import counted, with_article

MERGED = Claim(
    "merged",
    "a merged adapter",
    "every matrix is the base's plus the scaled update of the adapter, within the rounding of"
    " storage and of the merge's own arithmetic in every entry; every other tensor is the base's",
)
# of the residual's energy: what a quantised copy of the base must leave less of, to explain it. To
# a residual that has another cause a copy adds its own error
LEFT = 0.5
NEAR = 0.06  # the same of another scale
ROUNDINGS = 3  # energies of rounding that another scale may leave: of base, update and sum
CLOSE = 0.02  # how near to half, twice or nothing a scale by least squares is called so
SCALES = {0.0: "not applied", 0.5: "merged at half its scale", 2.0: "merged twice"}


@dataclass(frozen=True, slots=True)
class Module:
    """A matrix that the adapter changes, or holds whole, beside the merged model's."""

    place: str
    tensor: str
    """Of the merged model."""
    formats: tuple[str, str]
    """The stored dtypes of base and merged."""
    entries: int
    wide: Mapping[float, int]
    """By share of the claimed scale: entries beyond the bound of a merge in float32 or wider."""
    narrow: Mapping[float, int]
    """The same of a merge in the format of the merged model."""
    update: float
    """The energy of the update; that below of merged - (base + update)."""
    residual: float
    inner: float
    """<merged - base, update>."""
    rounding: float
    """The energy that rounding to the merged model's format leaves on average."""
    visible: int
    """Entries that the update changes when the sum is stored."""
    finite: bool
    onto_rounded: bool
    """Whether the base was rounded to the merged model's format before."""
    quantised: tuple[str, float] | None = None
    """The quantised copy of the base that comes nearest, and the energy that it leaves."""

    @property
    def fits(self) -> bool:
        """Whether every entry is base plus update within one of the bounds."""
        return self.finite and (not self.wide[1.0] or not self.narrow[1.0])

    def fits_at(self, scale: float) -> bool:
        """Whether every entry is within the bound that fits, at another scale."""
        bounds = self.narrow if self.wide[1.0] else self.wide
        return not bounds[scale]

    @property
    def is_ambiguous(self) -> bool:
        """Whether the merged matrix may as well hold no update, half of it, or twice as much."""
        return self.visible > 0 and any(self.fits_at(scale) for scale in SCALES)

    @property
    def scale(self) -> float | None:
        """How much of the update it holds, by least squares; None without an update."""
        return self.inner / self.update if self.update else None

    @property
    def error(self) -> float | None:
        """The norm of merged - (base + update) over that of the update."""
        return math.sqrt(self.residual / self.update) if self.update else None

    @property
    def onto(self) -> str | None:
        """The quantised copy of the base that explains most of the residual; None where none does,
        or where it explains what a wrong scale does.
        """
        if self.quantised is None:
            return None
        name, left = self.quantised
        return name if left < LEFT * self.residual else None

    @property
    def other_scale(self) -> float | None:
        """The scale by least squares, where it explains most of the residual, and leaves what
        rounding does; None where it does not.
        """
        found = self.scale
        if found is None:
            return None
        explained = self.update * (1 - found) ** 2
        left = self.residual - explained
        fits = left < NEAR * self.residual + ROUNDINGS * self.rounding
        return found if fits and explained > LEFT * self.residual else None

    @property
    def verdict(self) -> str:
        """What is wrong with it, in words; empty where it fits."""
        if not self.finite:
            return "some entries are not finite"
        if self.fits:
            return ""
        for scale, words in SCALES.items():
            if not self.wide[scale] or not self.narrow[scale]:
                return words
        if self.onto is not None:
            return f"merged onto {with_article(f'{self.onto} copy')} of the base"
        found = self.other_scale
        if found is not None:
            for near, words in SCALES.items():
                if abs(found - near) < CLOSE:
                    return words
            return f"merged at {_times(found)} times its scale"
        beyond = min(self.wide[1.0], self.narrow[1.0])
        return f"{beyond:,} of {self.entries:,} entries are not base plus update"


@dataclass(frozen=True)
class Merge:
    """What a scan found of base, adapter and merged model."""

    modules: Sequence[Module]
    """Matrices that the adapter updates."""
    others: Sequence[Scanned]
    """Tensors that it leaves alone, of base and merged; and those that it holds whole."""
    lone: Sequence[Apart]
    unread: Sequence[Apart]
    absent: Sequence[str]
    """Modules of the adapter that base or merged model lacks."""
    scale: float | None
    """Of the adapter, where all its modules share one."""
    whole: Sequence[bool] = ()
    """Of every tensor that the adapter holds whole, whether it differs from the base's."""


def merged(found: Merge) -> tuple[Answer, tuple[Against, ...], tuple[str, ...]]:
    """The answer, what speaks against it, and notes."""
    wrong = [module for module in found.modules if not module.fits]
    other = [row for row in found.others if not _is_kept(row)]
    figures = _figures(found, wrong, other)
    against = [Against(one.tensor, one.what) for one in found.lone]
    against += [Against(one.tensor, one.verdict, one.error) for one in wrong]
    against += [Against(row.tuned, _changed(row), row.relative) for row in other]
    notes = _notes(found, wrong)
    if wrong or other or found.lone:
        reason = "; ".join(_faults(found, wrong, other))
        return Answer("merged", "does_not_hold", reason, figures), largest_first(against), notes
    unsure = [module for module in found.modules if module.is_ambiguous]
    doubts = [Against(one.tensor, one.what) for one in found.unread]
    doubts += [Against(name, "base or merged model lacks it") for name in found.absent]
    doubts += [
        Against(module.tensor, "with or without the update it is within the rounding")
        for module in unsure
    ]
    if why := _doubt(found, unsure):
        return Answer("merged", "inconclusive", why, figures), largest_first(doubts), notes
    texts = []
    if found.modules:
        texts += [
            f"base plus update{_at(found.scale)} in every entry of"
            f" {counted(len(found.modules), 'matrix', 'matrices')}, within the rounding of"
            f" {_format(found.modules)}",
            _arithmetic(found.modules),
        ]
    if found.whole:
        count = len(found.whole)
        every = f"{all_tensors(count)} that the adapter holds whole"
        texts.append(f"{every} {are(count)} in the merged model")
    return Answer("merged", "holds", "; ".join(texts), figures), (), notes


def _is_kept(row: Scanned) -> bool:
    """Whether a tensor is the base's, or the base's cast to the format of the merged model."""
    return not row.changed or row.rounded == ("tuned", row.formats[1])


def _figures(found: Merge, wrong: Sequence[Module], other: Sequence[Scanned]) -> dict[str, Figure]:
    update = math.fsum(module.update for module in found.modules)
    figures: dict[str, Figure] = {
        "matrices": len(found.modules),
        "matrices_wrong": len(wrong),
        "tensors_beside": len(found.others),
        "tensors_beside_changed": len(other),
        "entries": sum(module.entries for module in found.modules),
        "entries_visible": sum(module.visible for module in found.modules),
    }
    if update:
        residual = math.fsum(module.residual for module in found.modules)
        figures["error_over_update"] = math.sqrt(residual / update)
        figures["scale_found"] = math.fsum(module.inner for module in found.modules) / update
    if found.scale is not None:
        figures["scale"] = found.scale
    return figures


def _faults(found: Merge, wrong: Sequence[Module], other: Sequence[Scanned]) -> list[str]:
    texts = []
    verdicts = Counter(_kind(module) for module in wrong)
    for verdict, _ in verdicts.most_common(3):
        some = [module for module in wrong if _kind(module) == verdict]
        texts.append(_fault(verdict, some, len(found.modules)))
    if other:
        texts.append(
            f"{counted(len(other), 'tensor', 'tensors')} beside the adapter"
            f" {'differs' if len(other) == 1 else 'differ'} from the base"
        )
    for side, name in (("base", "base"), ("tuned", "merged model"), ("adapter", "adapter")):
        lone = [one for one in found.lone if one.side == side]
        texts += apart_in_words(lone, f"only in the {name}")
    return texts


def _kind(module: Module) -> str:
    verdict = module.verdict
    if "entries are not base" in verdict:
        return "not base plus update"
    return "merged at another scale" if "times its scale" in verdict else verdict


def _fault(kind: str, some: Sequence[Module], of: int) -> str:
    if of == 1:
        where = "the only matrix"
    else:
        where = f"all {of:,} matrices" if len(some) == of else f"{len(some):,} of {of:,} matrices"
    update = math.fsum(module.update for module in some)
    if kind == "not applied":
        return f"the adapter is not applied in {where}"
    if kind == "merged at another scale":
        scales = [one.scale for one in some if one.scale is not None]
        ends = list(dict.fromkeys([_times(min(scales)), _times(max(scales))]))
        return f"merged at {' to '.join(ends)} times its scale in {where}"
    if kind in SCALES.values():
        return f"{kind} in {where}"
    if not update:
        return f"{kind} in {where}"
    error = math.sqrt(math.fsum(module.residual for module in some) / update)
    return f"{kind} in {where}: the error is {text_of(error, 'ratio')} times the update"


def _times(scale: float) -> str:
    """A scale other than 1, with as many digits as show that it is."""
    text = text_of(scale, "ratio")
    if text != "1.0" or scale == 1:
        return text
    return f"{scale:.{-math.floor(math.log10(abs(scale - 1)))}f}"


def _changed(row: Scanned) -> str:
    text = f"{row.changed:,} of {row.entries:,} entries differ from the base"
    return f"{text}; {row.remark}" if row.remark else text


def _doubt(found: Merge, unsure: Sequence[Module]) -> str | None:
    """Why it cannot be told; None where it can."""
    if found.unread:
        return not_compared(found.unread)
    if found.absent:
        modules = counted(len(found.absent), "module", "modules")
        return f"{modules} of the adapter have no matrix in base or merged model"
    if not found.modules and not found.whole:
        return "the adapter updates no matrix"
    if not found.modules and not any(found.whole):
        return (
            "what the adapter holds whole is equal to the base's: merged or not, the model is the"
            " same"
        )
    if found.modules and not any(module.visible for module in found.modules):
        return (
            "the update is below the rounding of storage in every entry: merged or not, the model"
            " is the same"
        )
    if unsure:
        matrices = counted(len(unsure), "matrix is", "matrices are")
        return f"{matrices} within the rounding at another scale too, such as without the update"
    return None


def _notes(found: Merge, wrong: Sequence[Module]) -> tuple[str, ...]:
    notes = []
    if hidden := [one for one in found.modules if one.update and not one.visible and one.fits]:
        matrices = counted(len(hidden), "matrix", "matrices")
        notes.append(f"in {matrices} the update is below the rounding of storage everywhere")
    if not wrong and any(module.onto_rounded for module in found.modules):
        notes.append("the base was rounded to the format of the merged model before the merge")
    return tuple(notes)


def _at(scale: float | None) -> str:
    return "" if scale is None else f" at scale {text_of(scale, 'number')}"


def _format(modules: Sequence[Module]) -> str:
    return " and ".join(sorted({module.formats[1] for module in modules}))


def _arithmetic(modules: Sequence[Module]) -> str:
    if all(not module.wide[1.0] for module in modules):
        return "computed in float32 or wider"
    return f"computed in {_format(modules)}"
