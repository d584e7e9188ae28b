"""What the claim `trained` needs measured: which tensors moved, and what the grid let them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, pair_checkpoints
from shadow.checks.answer import Answer
from shadow.checks.old import combined
from shadow.checks.patterns import Pattern, parse_pattern
from shadow.checks.table import NEEDS_PATTERN
from shadow.checks.trained import Cell, Moved, Training, trained
from shadow.dtypes import FLOATS, float_format
from shadow.errors import UsageError
from shadow.places.architecture import Part, Place, place_tensors
from shadow.places.names import name_rules
from shadow.run.aligned import Lined, is_raw, is_whole, line_up_all, row_of
from shadow.run.runtime import AlignedPair, Runtime
from shadow.run.scan import in_words, scan, sides_of
from shadow.run.scanned import Apart, Scanned
from shadow.run.sides import found_all, open_found, opened_models
from shadow.spectra.entries import Binades
from shadow.spectra.format_noise import format_noise
from shadow.spectra.lazy import is_quantised
from shadow.spectra.merging import half_ulp
from shadow.spectra.repeats import has_few_levels
from shadow.spectra.spectrum import Sides, tiles
from shadow.targets.references import AnyReference
from shadow.templates import said
from shadow.text import counted, in_ranges

SMALLEST = 2.0**-24  # of F16, which may have come between


def verify_trained(
    of: Mapping[str, str],
    references: Sequence[AnyReference],
    moved: Sequence[str],
    frozen: Sequence[str],
    runtime: Runtime,
    scratch: Path,
) -> Answer:
    """Whether what should have moved did, and what should be frozen is equal.

    What both name should be frozen.
    """
    patterns = [
        *(("stay", parse_pattern(text)) for text in frozen),
        *(("move", parse_pattern(text)) for text in moved),
    ]
    found = found_all(dict(zip(("BASE", "TUNED"), references, strict=True)), runtime, scratch)
    tuned = open_found(found.pop("TUNED"), runtime, scratch / "TUNED")
    (base,) = opened_models(found, runtime, scratch)
    if not patterns and tuned.adapter is None:
        raise UsageError(f"trained {NEEDS_PATTERN}", "only an adapter says itself what moves")
    if tuned.adapter:
        lined = _adapted(base, tuned)
    else:
        lined = line_up_all(base, tuned, ("the base", "the tuned model"))
    pair = lined.pair
    places = lined.places
    whole = {place for of_name in places.values() for place in of_name}
    every = whole.union(*map(_parts, whole))
    for _, pattern in patterns:
        if not any(pattern.may_cover(place) for place in every):
            raise UsageError(f"no tensor lies at {pattern.text}", f"there are {_there(every)}")

    def measured(one: MatrixPair, a: Checkpoint, b: Checkpoint) -> tuple[MatrixPair, Moved] | Apart:
        asked = _asked(one, places, patterns) if patterns else {"move"}
        should = "move" if "move" in asked else max(asked)
        is_update = one.tuned.factor is not None
        binades = _binades(one) if should == "move" and not is_update else None
        row = row_of(one, a, b, binades)
        if row.changed and len(asked) > 1:
            inside = "experts" if any(pattern.experts for _, pattern in patterns) else "parts"
            return Apart(row.tuned, "tuned", said(f"its {inside} are not told apart"))
        if row.changed and not is_raw(one) and not is_update:
            row, why = _rounded(row, sides_of(one, a, b), is_matrix=one.is_matrix)
            if why and should == "move":
                return Apart(row.tuned, "tuned", said(why))
        if one.tuned.part.experts:
            row = replace(row, tuned=f"{row.tuned}[{one.place.expert}]")
        cells = tuple(Cell(*cell) for cell in binades.cells()) if binades and row.finite else ()
        stays = not (row.changed or one.is_matrix or is_raw(one)) and should == "move"
        is_initial = stays and _is_initial(sides_of(one, a, b))
        return one, Moved(row, _module(one.place), should, cells, is_initial)

    scanned = sorted(
        scan(pair, measured, runtime, scratch / "scan", lined.unread), key=lambda item: item[0].key
    )
    rows = [row for _, row in scanned]
    updates = [row.row for one, row in scanned if one.tuned.factor is not None]
    if tuned.adapter:
        rows += _left_alone(base, {one.place for one, _ in scanned}, patterns)
    judged = [row for row in rows if row.should]
    beside = [row for row in rows if not row.should]

    def named(apart: Sequence[Apart]) -> list[Apart]:
        return [
            one
            for one in apart
            if any(_at(place, patterns) - {""} for place in places.get(one.tensor, ()))
        ]

    answer, against, notes = trained(
        Training(
            judged,
            named(lined.lone),
            named(lined.unread),
            len(beside),
            sum(row.has_moved for row in beside),
        )
    )
    if idle := sum(not row.changed for row in updates):
        answer = replace(answer, figures={**answer.figures, "modules_without_update": idle})
        modules = f"{idle:,} of {counted(len(updates), 'module', 'modules')}"
        notes = (f"the adapter does nothing in {modules}: the product of its factors is 0", *notes)
    return combined(answer, against, (*lined.notes, *notes))


def _adapted(base: Checkpoint, adapter: Checkpoint) -> Lined:
    """A base and the modules that an adapter moves."""
    pairs, skipped = pair_checkpoints(base, adapter, Filter(), may_differ=True)
    lone, unread = list[Apart](), list[Apart]()
    for one in skipped:
        if one.side == "tuned":
            is_lone = one.reason == "only_in_tuned"
            what = "the base has no such module" if is_lone else one.detail or str(one.reason)
            (lone if is_lone else unread).append(Apart(one.info.name, "tuned", said(what)))
    pairs = [pair for pair in pairs if pair.base is not None]
    places = {name: {part.place for part in parts} for name, parts in _parts_of(base).items()}
    for pair in pairs:
        places.setdefault(pair.tuned.info.name, set()).add(pair.place)
    return Lined(AlignedPair(base, adapter, pairs, []), lone, unread, (), places)


def _parts_of(base: Checkpoint) -> dict[str, tuple[Part, ...]]:
    shapes = {name: info.shape for name, info in base.tensors.items()}
    return place_tensors(shapes, base.config)


def _left_alone(
    base: Checkpoint, moved: set[Place], patterns: Sequence[tuple[str, Pattern]]
) -> list[Moved]:
    """The tensors of a base that an adapter has no part of."""
    rows = []
    for name, parts in _parts_of(base).items():
        info = base.tensors[name]
        for part in parts:
            if part.place not in moved:
                entries = math.prod(part.shape(info.shape))
                formats = info.dtype, info.dtype
                row = Scanned(in_words(part.place), name, name, formats, entries, 0)
                rows.append(Moved(row, _module(part.place), max(_at(part.place, patterns))))
    return rows


def _rounded(row: Scanned, sides: Sides, *, is_matrix: bool) -> tuple[Scanned, str]:
    """The row of a tensor that differs, with the quantised format that made it of the base's, if
    one did; and why it cannot be told whether more than rounding lies between both.
    """
    first, second = sides.base, sides.tuned
    formats = row.formats
    if not row.finite:
        return row, "some entries are not finite"
    if is_quantised(first) and is_quantised(second):
        return row, "rounding to its format and to the base's may leave this"
    if is_quantised(second):
        noise = format_noise(first, second)
        if (is_copy := noise.is_copy(formats[1])) is None:
            return row, f"what {formats[1]} makes of the base's is not known"
        if not is_copy and noise.may_be_calibrated(formats[1]):
            return row, f"{formats[1]} may leave this of the base's, as by GPTQ or AWQ"
        return replace(row, rounded=("tuned", formats[1])) if is_copy else row, ""
    is_cast: bool | None = row.rounded == ("base", formats[0])
    if is_quantised(first):
        noise = format_noise(second, first)
        is_cast = noise.is_copy(formats[0])
        if is_cast is False and noise.may_be_calibrated(formats[0]):
            is_cast = True
    if is_cast is not False:
        return row, f"the base's may be this, rounded to {formats[0]}"
    if row.rounded is None and is_matrix and has_few_levels(first, second):
        return row, "it may be the base's after a round trip through 8 bits or fewer"
    if row.rounded is None and _is_within_a_unit(sides, formats, row.delta_energy):
        return row, f"rounding to {formats[1]} in another way may leave this"
    return row, ""


def _is_within_a_unit(sides: Sides, formats: tuple[str, str], energy: float) -> bool:
    """Whether no entry of a tuned side of fewer bits than the base lies a unit in the last place
    away, as none does after several roundings, or one that is not to the nearest. A file of more
    bits may hold what BF16 rounded, and F16 may have come between.
    """
    first, second = (float_format(stored) for stored in formats)
    is_file_alone = first.bits <= second.bits
    if is_file_alone:
        second = FLOATS["BF16"]
    units = 2 if first.mantissa_bits > second.mantissa_bits else 0
    if not units and energy > math.prod(sides.tuned.shape) * SMALLEST**2:
        return False
    for index, _ in tiles(sides.tuned):
        base, tuned = (tile.double().contiguous() for tile in sides.read(index))
        if is_file_alone and (tuned.bfloat16().double() != tuned).any():
            return False
        if ((tuned - base).abs() > units * half_ulp(base, second) + SMALLEST).any():
            return False
    return True


def _is_initial(sides: Sides) -> bool:
    """Whether every entry of the base is 1, or every one is 0, as norms and biases begin."""
    ends = {float(end) for index, _ in tiles(sides.tuned) for end in sides.read(index)[0].aminmax()}
    return ends in ({0.0}, {1.0})


def _asked(
    pair: MatrixPair, places: Mapping[str, set[Place]], patterns: Sequence[tuple[str, Pattern]]
) -> set[str]:
    """What each matrix of a pair should do: `move`, `stay`, or empty where no pattern names it."""
    held = places[pair.tuned.info.name] if is_whole(pair) else {pair.place}
    asked = set().union(*(_at(place, patterns) for place in held))
    if (
        is_raw(pair)
        and pair.place.module == "other"
        and all(place.module != "other" for place in held)
    ):
        # what belongs to packed numbers need not move with them
        asked = {word.replace("move", "") for word in asked}
    return asked


def _at(place: Place, patterns: Sequence[tuple[str, Pattern]]) -> set[str]:
    """The same of all that may lie at a place: the parts of a fused module that is not cut, and the
    experts of a stack of unknown size.
    """
    experts = [place.expert]
    if place.expert is None and place.module.startswith("experts."):
        ends = [pattern.experts for _, pattern in patterns if pattern.experts]
        experts += [expert for first, last in ends for expert in (first, last + 1)]
    asked = set()
    for here in (replace(place, expert=expert) for expert in experts):
        # what both the module and a part of it name should stay
        own = _should(here, patterns)
        asked |= {max(own, _should(part, patterns)) for part in _parts(here)}
    return asked


def _should(place: Place, patterns: Sequence[tuple[str, Pattern]]) -> str:
    """`move`, `stay`, or empty where no pattern names the place."""
    return next((should for should, pattern in patterns if pattern.covers(place)), "")


def _parts(place: Place) -> list[Place]:
    """The places of the parts of a fused module that is not cut; else the place."""
    fused = name_rules().fused
    found = fused.get(f"{place.module}/{place.slot}") or fused.get(place.module)
    return [replace(place, module=name) for name, _ in found.into] if found else [place]


def _there(places: set[Place]) -> str:
    """The components, layers, modules and experts that a model has, in words."""
    rules = name_rules()
    modules = {place.module for place in places}
    components = {place.component for place in places}
    text = ", ".join(name for name in rules.components if name in components)
    layers = [place.layer for place in places]
    experts = [place.expert for place in places if place.module.startswith("experts.")]
    for name, numbers in (("layers", layers), ("experts", experts)):
        if known := in_ranges(number for number in numbers if number is not None):
            text += f"; {name}.{known}"
    return f"{text}; {', '.join(name for name in rules.modules if name in modules)}"


def _module(place: Place) -> str:
    return f"{place.component}.{place.module}"


def _binades(pair: MatrixPair) -> Binades | None:
    """What counts the entries of a tensor that should have moved, by the size of the base's."""
    assert pair.base is not None, "lined up"
    infos = pair.base.info, pair.tuned.info
    if is_raw(pair) or any(one.packing or one.dtype not in FLOATS for one in infos):
        return None
    first, second = (FLOATS[one.dtype] for one in infos)
    # what the cast to fewer bits moved is no step
    return None if first.bits > second.bits else Binades(second)
