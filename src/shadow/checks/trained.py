"""`trained BASE TUNED --moved PATTERN --frozen PATTERN`: whether training moved what it should."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import Against, Answer, Check, Evidence, Figure, Verification
from shadow.checks.patterns import NEEDS_PATTERN, Patterns, Should
from shadow.errors import UsageError
from shadow.run.scanned import Scanned, Unmatched, not_compared, unmatched_reasons
from shadow.templates import Reason, Value

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.pairing import MatrixPair
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.checks.answer import Question
    from shadow.places.architecture import Place
    from shadow.run.adapted import Reach
    from shadow.run.runtime import Gathering, Runtime
    from shadow.spectra.entries import Cell
    from shadow.spectra.spectrum import Sides

FREE = 0.9  # of the entries of a binade: where so many moved, the grid did not hold them
CHANCE = 0.01  # that a tensor stays by rounding alone: where it is less, it was not trained
WIDE = ("BF16", "F16", "F32", "F64")  # formats of training, which have infinities
SAMPLE = 100  # entries that a typical step is taken from, at least
WORDS = {
    "broken": "{some:count} of {tensors:count tensor|tensors} that should have moved {some|is|are}"
    " all zeros or not finite",
    "not_moved": "{some:count} of {tensors:count tensor|tensors} that should have moved did not"
    "[; {cast:count} of them {cast|is|are} equal up to a cast {casts:and}]",
    "leaked": "{some:count} of {tensors:count tensor|tensors} that should be frozen"
    " {some|differs|differ}",
    "cast_lost": "{some:count} of {tensors:count tensor|tensors} that should be frozen"
    " {some|is|are} equal up to a cast {casts:and}, which changed {changed:count} of"
    " {entries:count entry|entries}",
    "moved": "{tensors:all tensor|tensors} that should have moved did",
    "frozen": "{tensors:all tensor|tensors} that should be frozen {tensors|is|are} equal in every"
    " entry",
    "nothing": "no tensor that the patterns name was compared, or none could move",
    # of a tensor
    "zeros": "every entry is 0, and the base's are not",
    "nonfinite": "{lost/entries:all entry|entries} {lost|has|have} become NaN or infinite",
    "equal": "it is equal to the base's in every entry[, after a cast {cast}]",
    "changed": "it has changed",
    "rounded": "it is equal to the base's up to a cast {cast}, which changed {changed:count} of"
    " {entries:count entry|entries}",
    "base_cast": "the base's is equal to it up to a cast {cast}, which changed {changed:count} of"
    " {entries:count entry|entries}",
    "entries": "{changed/entries:all entry|entries} {changed|differs|differ}",
    # why it is unknown whether a tensor moved
    "not_told_apart": "its parts or experts, of which different things are asked, are not"
    " distinguished",
    "calibrated": "{tuned} may leave this of the base's, as by GPTQ or AWQ",
    "unknown_levels": "what {tuned} makes of the base's is unknown",
    "both_quantised": "rounding to its format and to the base's may leave this",
    "base_rounded": "the base's may be this, rounded to {base}",
    "few_levels": "it may be the base's after a round trip through 8 bits or fewer",
    "another_way": "rounding to {tuned} in another way may leave this",
    # notes
    "cast": "{tensors:count tensor|tensors} that should be frozen {tensors|is|are} equal up to a"
    " cast {casts:and} that changed no entry",
    "idle": "the adapter does nothing in {idle:count} of {modules:count module|modules}: the"
    " product of its factors is 0",
    "stuck": "{share:share} of the entries that should have moved did not, where half a unit of"
    " {formats:and} is above the typical step of {step:ratio}",
    "beside": "no pattern names {tensors:count tensor|tensors}; {moved:count} of them moved",
    "initial": "{vectors:count vector|vectors} of 1 or of 0 did not move, and may be unable to:"
    " {names}",
    "too_coarse": "{tensors:count tensor|tensors} did not move, and may be unable to, as"
    " {formats:and} cannot hold the typical step of {step:ratio} there: {names}",
}


@dataclass(frozen=True, slots=True)
class Moved:
    """A tensor, and what is required of it."""

    row: Scanned
    place: Place
    should: Should
    cells: tuple[Cell, ...] = ()  # its entries by binade, of floats that should have moved
    is_initial: bool = False
    """Whether it is a vector of 1 or of 0 that is equal to the base's: it may get no gradient, and
    no step that BF16 holds at 1.
    """
    is_update: bool = False  # whether it is an adapter's
    is_counted: bool = True
    """Whether it is known how many entries changed; of a snapshot, only whether any did."""
    broken: Reason | None = None
    """Why no training leaves such values, of what should have moved."""

    @property
    def rounded_to(self) -> str | None:
        """The format to which the base's values were only rounded; it may be stored in a
        wider one.
        """
        rounded = self.row.rounded
        return rounded[1] if rounded and rounded[0] == "tuned" else None

    @property
    def cast(self) -> str | None:
        """The formats that the values of one side went through to become those of the other, such
        as `F32 -> BF16`; None if that is not all that happened to them.
        """
        row = self.row
        side, rounded = row.rounded or ("tuned", row.formats[1])
        first, last = row.formats if side == "tuned" else row.formats[::-1]
        if self.is_update or (row.changed and row.rounded is None) or first == last == rounded:
            return None
        steps = [first, rounded]
        if rounded != last:
            steps.append(last)
        return " -> ".join(steps)

    @property
    def has_moved(self) -> bool:
        """True if an entry differs by more than a cast, and values are what training leaves."""
        return self.row.changed > 0 and self.rounded_to is None and self.broken is None

    @property
    def against(self) -> Against:
        """The reason that it is not what it should be."""
        row = self.row
        if self.broken:
            return Against(row.tuned, self.broken)
        if not row.changed:
            return Against(row.tuned, Reason("equal", cast=self.cast))
        if not self.is_counted:
            return Against(row.tuned, Reason("changed"), row.relative)
        changes = {"changed": row.changed, "entries": row.entries}
        if not row.rounded:
            return Against(row.tuned, Reason("entries", changes), row.relative)
        code = "rounded" if self.rounded_to else "base_cast"
        why = Reason(code, changes, cast=self.cast, format=self.rounded_to)
        return Against(row.tuned, why, None if self.should is Should.MOVE else row.relative)

    def stuck(self, step: float) -> int:
        """Count entries that stayed as half a unit in the last place exceeds the step."""
        return sum(cell.entries - cell.changed for cell in self.cells if cell.half_ulp > step)

    def may_stay(self, step: float | None) -> bool:
        """True if normal steps of half that size may leave every entry what it was."""
        if step is None or not self.cells or self.row.changed:
            return False
        chance = 1.0
        for cell in self.cells:
            chance *= math.erf(math.sqrt(2) * cell.half_ulp / step) ** cell.entries
        return chance > CHANCE


@dataclass(frozen=True)
class Training(Evidence):
    """Every tensor of a base and of a model trained from it. Unmatched are tensors that a pattern
    names and one side lacks; those not compared include tensors whose step is unknown.
    """

    tensors: Sequence[Moved]
    reach: Reach | None = None  # of an adapter: how many of its modules the base lacks


def judge(training: Training) -> Answer:
    """Judge whether all tensors that should move did, by more than a cast, and no frozen one."""
    named, frozen, others = (
        [tensor for tensor in training.tensors if tensor.should is should] for should in Should
    )
    named = [tensor for tensor in named if tensor.row.entries]
    step = typical_step(named)
    should = [tensor for tensor in named if not (tensor.is_initial or tensor.may_stay(step))]
    broken = [tensor for tensor in should if tensor.broken]
    stayed = [tensor for tensor in should if not (tensor.has_moved or tensor.broken)]
    differ = [tensor for tensor in frozen if tensor.row.changed]
    leaked = [tensor for tensor in differ if tensor.rounded_to is None]
    rounded = [tensor for tensor in differ if tensor.rounded_to]
    figures, notes = _noted(training, named, others, step)
    equal = [tensor for tensor in frozen if tensor.cast and not tensor.row.changed]
    if equal:
        notes.append(Reason("cast", tensors=len(equal), casts=_casts(equal)))
    figures |= {
        "tensors_to_move": len(should),
        "tensors_not_moved": len(stayed),
        "tensors_broken": len(broken),
        "tensors_frozen": len(frozen),
        "tensors_frozen_moved": len(leaked),
        "tensors_frozen_rounded": len(rounded),
        "entries_to_move": sum(tensor.row.entries for tensor in should),
    }
    if all(tensor.is_counted for tensor in should):
        changed = sum(tensor.row.changed for tensor in should)
        figures["entries_not_moved"] = figures["entries_to_move"] - changed
    cast = [tensor for tensor in stayed if tensor.cast]
    faults = some_of("broken", broken, should)
    faults += some_of(
        "not_moved", stayed, should, cast=len(cast) or None, casts=_casts(cast) or None
    )
    faults += some_of("leaked", leaked, frozen)
    faults += some_of(
        "cast_lost",
        rounded,
        frozen,
        casts=_casts(rounded),
        changed=sum(tensor.row.changed for tensor in rounded),
        entries=sum(tensor.row.entries for tensor in rounded),
    )
    doubts = not_compared(training.unread)
    if not (doubts or should or frozen):
        doubts = [Reason("nothing")]
    every = (("moved", should), ("frozen", frozen))
    apart = unmatched_reasons(training.unmatched)
    reach = training.reach
    if reach is not None and reach.modules:
        figures |= {"modules": reach.modules, "modules_unnamed": len(reach.unnamed)}
        if apart and reach.reasons:
            shared = [tensor for tensor in training.unmatched if tensor.is_shared]
            apart = [*reach.reasons, *unmatched_reasons(shared)]
    return training.judged(
        figures,
        faults=faults + apart,
        doubts=doubts,
        holds=[Reason(code, tensors=len(of)) for code, of in every if of],
        against=[tensor.against for tensor in (*broken, *stayed, *differ)],
        notes=notes,
    )


def some_of(
    code: str, some: Sequence[object], tensors: Sequence[object], **figures: Value
) -> list[Reason]:
    """The number of tensors of which a reason is true, with its figures; empty without any."""
    if not some:
        return []
    return [Reason(code, some=len(some), tensors=len(tensors), **figures)]


def _casts(tensors: Iterable[Moved]) -> list[str]:
    return sorted({tensor.cast for tensor in tensors if tensor.cast})


def typical_step(tensors: Sequence[Moved]) -> float | None:
    """The root mean square of the steps of entries; None if the grid hides it."""
    cells = []
    for tensor in tensors:
        cells += [cell for cell in tensor.cells if cell.changed >= FREE * cell.entries]
    entries = sum(cell.entries for cell in cells)
    if entries < SAMPLE:
        return None
    energy = math.fsum(cell.energy for cell in cells)
    return math.sqrt(energy / entries) or None


def _noted(
    training: Training, named: Sequence[Moved], others: Sequence[Moved], step: float | None
) -> tuple[dict[str, Figure], list[Reason]]:
    """Make notes on the answer, and their figures."""
    figures: dict[str, Figure] = {}
    notes = list[Reason]()
    updates = [tensor for tensor in training.tensors if tensor.is_update]
    idle = sum(not tensor.row.changed for tensor in updates)
    if idle:
        figures["modules_without_update"] = idle
        notes.append(Reason("idle", idle=idle, modules=len(updates)))
    if step is not None:
        figures["typical_step"] = step
        stuck = sum(tensor.stuck(step) for tensor in named)
        figures["entries_stuck"] = stuck
        if stuck:
            formats = sorted({tensor.row.formats[1] for tensor in named if tensor.cells})
            entries = sum(tensor.row.entries for tensor in named)
            share = stuck / entries
            notes.append(Reason("stuck", share=share, step=step, formats=formats))
    if others:
        moved = sum(tensor.has_moved for tensor in others)
        notes.append(Reason("beside", tensors=len(others), moved=moved))
    initial = [tensor.row.tuned for tensor in named if tensor.is_initial]
    if initial:
        figures["tensors_initial"] = len(initial)
        notes.append(Reason("initial", vectors=len(initial), names=initial))
    coarse = [tensor.row for tensor in named if not tensor.is_initial and tensor.may_stay(step)]
    if coarse:
        figures["tensors_too_coarse"] = len(coarse)
        note = Reason(
            "too_coarse",
            tensors=len(coarse),
            step=step,
            names=[row.tuned for row in coarse],
            formats=sorted({row.formats[1] for row in coarse}),
        )
        notes.append(note)
    return figures, notes


def gather(
    question: Question, runtime: Runtime, scratch: Path, *, with_steps: bool = True
) -> Gathering[Training]:
    """Compare every tensor of a base with the trained one, and find which steps the grid allows,
    unless that is not wanted: it takes most of the time.
    """
    from shadow.run.adapted import line_up_adapter, reach_of
    from shadow.run.aligned import align_all
    from shadow.run.merged_by_peft import applied
    from shadow.run.scan import scan
    from shadow.run.sides import find_checkpoints, open_checkpoint, opened_models

    patterns = Patterns.of(question.moved, question.frozen)
    sides = find_checkpoints(question.named, runtime, scratch)
    tuned = open_checkpoint(sides.pop("TUNED"), runtime, scratch / "TUNED")
    (base,) = opened_models(sides, runtime, scratch)
    if not (patterns.each or tuned.adapter):
        raise UsageError(f"trained {NEEDS_PATTERN}", "such as --moved layers --frozen embed")
    merges = None
    if tuned.adapter and tuned.adapter.is_merged_by_peft:
        merged, merges = applied(base, tuned, runtime)
        aligned = align_all(base, merged, ("the base", "the tuned model"))
        names = {*merges}
        own = [pair for pair in aligned.pair.pairs if pair.tuned.info.name in names]
        aligned = replace(aligned, pair=replace(aligned.pair, pairs=own))
    elif tuned.adapter:
        aligned = line_up_adapter(base, tuned)
    else:
        aligned = align_all(base, tuned, ("the base", "the tuned model"))
    absent = {tensor.tensor for tensor in aligned.unmatched}
    reach = reach_of(tuned, base) if tuned.adapter and not base.parts else None
    patterns = patterns.of_model(aligned.places)
    measure = partial(_moved, partial(_required, aligned.places, patterns), with_steps)
    rows = yield from scan(aligned.pair, measure, runtime, scratch / "scan", aligned.unread)
    if tuned.adapter:
        known = {*merges} if merges else tuned.tensors.keys() - absent
        changed = {place for name in known for place in aligned.places.get(name, ())}
        rows += _left_alone(base, changed, patterns)

    def counts(tensor: Unmatched) -> bool:
        if not patterns.each:
            return True
        places = aligned.places.get(tensor.tensor, ())
        return any(patterns.at(place) != {Should.EITHER} for place in places)

    return Training(
        rows,
        reach,
        unmatched=[*filter(counts, aligned.unmatched)],
        unread=[*filter(counts, aligned.unread)],
        notes=aligned.notes,
    )


def _moved(
    required_of: Callable[[MatrixPair], set[Should]],
    with_steps: bool,
    pair: MatrixPair,
    base: Checkpoint,
    tuned: Checkpoint,
) -> Moved | Unmatched:
    """Measure a pair; Unmatched if it is unknown whether it moved as it should."""
    from shadow.run.aligned import row_of
    from shadow.run.merged_by_peft import SHARD
    from shadow.run.scan import binades_of, is_initial, is_raw, rounding_between, sides_of

    required = required_of(pair)
    should = Should.first(required)
    should_move = should is Should.MOVE
    is_update = pair.tuned.factor is not None or pair.tuned.info.shard == SHARD
    # which keep what they have read; None of bytes
    sides = None if is_raw(pair) else sides_of(pair, base, tuned)
    binades = binades_of(pair) if with_steps and should_move and not is_update else None
    row = row_of(pair, base, tuned, binades, sides)
    name = row.tuned
    if row.changed and len(required) > 1:
        return Unmatched(name, "tuned", Reason("not_told_apart"))
    broken = None
    is_suspect = row.changed and not (row.finite and row.tuned_energy)
    if sides and is_suspect and should_move:
        broken = _broken(sides, row.entries)
    if sides and row.changed and not (is_update or broken):
        rounding = rounding_between(sides, row, is_matrix=pair.is_matrix)
        if rounding == "copy":
            row = replace(row, rounded=("tuned", row.formats[1]))
        elif rounding and should_move:
            formats = {"base": row.formats[0], "tuned": row.formats[1]}
            return Unmatched(name, "tuned", Reason(rounding, formats))
    if pair.tuned.part.experts:
        row = replace(row, tuned=f"{name}[{pair.place.expert}]")
    cells: tuple[Cell, ...] = ()
    if binades and row.finite and not broken:
        cells = tuple(binades.cells())
    stays = should_move and not (row.changed or pair.is_matrix)
    is_first = sides is not None and stays and is_initial(sides)
    return Moved(row, pair.place, should, cells, is_first, is_update, broken=broken)


def _broken(sides: Sides, entries: int) -> Reason | None:
    """The fault of a tuned tensor that differs if it has values that no training leaves."""
    from shadow.spectra.spectrum import tiles

    lost = 0
    others = 0
    for index, _ in tiles(sides.tuned):
        base, tuned = sides.read(index)
        lost += int((base.isfinite() & ~tuned.isfinite()).sum())
        others += int((tuned != 0).sum())
    if lost:
        return Reason("nonfinite", lost=lost, entries=entries)
    return None if others else Reason("zeros")


def _required(
    places: Mapping[str, set[Place]], patterns: Patterns, pair: MatrixPair
) -> set[Should]:
    """The requirements on the matrices of a pair; without patterns, an adapter's move."""
    from shadow.run.aligned import is_whole
    from shadow.run.scan import is_raw

    if not patterns.each:
        return {Should.MOVE}
    own = places[pair.tuned.info.name] if is_whole(pair) else {pair.place}
    required = {should for place in own for should in patterns.at(place)}
    modules = {place.module for place in own}
    if is_raw(pair) and pair.place.module == "other" and "other" not in modules:
        # what belongs to packed numbers need not move with them
        required = {Should.EITHER if should is Should.MOVE else should for should in required}
    return required


def _left_alone(base: Checkpoint, moved: set[Place], patterns: Patterns) -> list[Moved]:
    """The tensors of a base that an adapter does not touch."""
    from shadow.run.aligned import parts_of
    from shadow.run.scan import in_words

    rows = []
    for name, parts in parts_of(base).items():
        info = base.tensors[name]
        for part in parts:
            place = part.place
            if place not in moved:
                entries = math.prod(part.shape(info.shape))
                row = Scanned(in_words(place), name, name, (info.dtype, info.dtype), entries, 0)
                rows.append(Moved(row, place, Should.first(patterns.at(place))))
    return rows


CHECK = Check(
    "trained",
    "what training moved",
    "every tensor that should have moved did, by more than a cast to another format, and every"
    " tensor that should be frozen is equal to the base's in every entry",
    judge,
    WORDS,
    gather,
    checkpoints=("BASE", "TUNED"),
    says="what should move did, and no frozen weight",
    options=("moved", "frozen"),
)


@dataclass(frozen=True)
class SnapshotTensors:
    """The tensors of a model in memory at the time of a snapshot."""

    tensors: Mapping[str, TensorInfo]
    checksums: Mapping[str, str | None]  # in memory each has one


def taken(model: Checkpoint) -> SnapshotTensors:
    """Take a snapshot of a model, reading every entry once."""
    checksums = {}
    for name, info in model.tensors.items():
        checksums[name] = model.sources[info.shard].checksum(info)
    return SnapshotTensors(model.tensors, checksums)


def verified_since(
    before: SnapshotTensors, model: Checkpoint, moved: Sequence[str], frozen: Sequence[str]
) -> Verification:
    """Check `trained` since a snapshot: a tensor of other bytes moved, by an unknown amount."""
    from shadow.run.aligned import parts_of

    patterns = Patterns.of(moved, frozen)
    every = replace(model, tensors={**before.tensors, **model.tensors})
    places = {name: [part.place for part in parts] for name, parts in parts_of(every).items()}
    patterns = patterns.of_model({name: places[name] for name in model.tensors})
    now = taken(model)
    rows: list[Moved] = []
    unmatched: list[Unmatched] = []
    unread: list[Unmatched] = []
    for name, of_tensor in places.items():
        required = {should for place in of_tensor for should in patterns.at(place)}
        old = before.tensors.get(name)
        info = now.tensors.get(name)
        if old is None or info is None or (old.shape, old.dtype) != (info.shape, info.dtype):
            if required != {Should.EITHER}:
                side = "base" if info is None else "tuned"
                unmatched.append(Unmatched(name, side, Reason("one_side")))
            continue
        is_changed = before.checksums[name] != now.checksums[name]
        if is_changed and len(required) > 1:
            unread.append(Unmatched(name, "tuned", Reason("not_told_apart")))
            continue
        entries = info.parameters
        changed = entries if is_changed else 0
        row = Scanned(name, name, name, (old.dtype, info.dtype), entries, changed)
        should = Should.first(required)
        is_first = False
        broken = None
        if is_changed and should is Should.MOVE and info.dtype in WIDE:
            whole = model.tensor(info).whole()
            lost = int((~whole.isfinite()).sum())
            if 0 < lost < entries:  # they may be those of the snapshot
                unread.append(Unmatched(name, "tuned", Reason("not_finite")))
                continue
            if lost:
                broken = Reason("nonfinite", lost=lost, entries=entries)
            elif not whole.any():
                broken = Reason("zeros")
        elif not is_changed and len(info.shape) < 2:
            whole = model.tensor(info).whole()
            # all 1, or all 0, as norms and biases start
            is_first = bool((whole == 1).all() or (whole == 0).all())
        place = of_tensor[0]
        moved_row = Moved(row, place, should, is_initial=is_first, is_counted=False, broken=broken)
        rows.append(moved_row)
    evidence = Training(rows, unmatched=unmatched, unread=unread)
    return Verification(CHECK, {"BASE": "a snapshot", "TUNED": "memory"}, CHECK.judge(evidence))
