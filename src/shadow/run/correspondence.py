"""Correspondence in a pair whose numbers disagree with its content.

An audit pairs layers, experts and rows of a vocabulary by number. Where counts differ, or where it
found matrices that have little in common with those of their number, these are read for signatures,
and what corresponds is measured instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair, Operands, Partner, grows, operands_of
from shadow.places.architecture import Place
from shadow.places.names import Shape
from shadow.reasons import ONE_SIDED
from shadow.relations.facts import matched_rows, unit_numbers
from shadow.relations.matching import (
    NEAR,
    RowPairs,
    UnitChoice,
    Units,
    choose,
    elected,
    match_rows,
    rows_of_units,
)
from shadow.relations.signature import row_signatures_of, signature_of
from shadow.run.journal import MatrixOutcome
from shadow.run.runtime import AlignedPair, Runtime, ignore
from shadow.run.scan import scan
from shadow.run.scanned import Unmatched
from shadow.run.workers import Cut, matrix_of, own_workspace
from shadow.spectra.spectrum import Workspace
from shadow.summary import record

Outcomes = Mapping[str, MatrixOutcome]  # by key of a pair
Made = TypeVar("Made")
Sign = Callable[[Cut, Workspace], Made]
Group = tuple[str, int | None]
"""Of units that are numbered together: a component of its layers, and a layer of its experts."""
NO_LIMIT = 1 << 62  # bytes
SAME_ROWS = 0.999  # cosine of a vocabulary that grew, from which its rows have their numbers
NO_VOTE = ("norm", "bias", "other", "router")  # modules that do not say which unit theirs is


def group_of(place: Place) -> Group:
    """Return the units that a matrix is of one of."""
    return place.component, None if place.expert is None else place.layer


def number_of(place: Place) -> int:
    """Return the number of the unit: of the expert, or of the layer."""
    return (place.layer if place.expert is None else place.expert) or 0


def _votes(place: Place) -> bool:
    """Return whether a matrix says which unit of the base its unit is."""
    return place.layer is not None and place.module not in NO_VOTE


class Matching:
    """Parts of a pair that correspond, but not by number, as far as they were looked for."""

    def __init__(self, runtime: Runtime, scratch: Path) -> None:
        # what is fetched for it alone does not stay
        limit = runtime.access.max_disk or NO_LIMIT
        access = replace(runtime.access, max_disk=limit)
        self._runtime, self._scratch = replace(runtime, show=ignore, access=access), scratch
        self.partners: dict[Place, Partner] = {}
        # of the groups of which some units were looked for, all of the tuned side
        self.units: dict[Group, Units] = {}
        # the layer, or the expert, that each matrix was found to be of
        self.chosen: dict[Place, UnitChoice] = {}
        self._tried: set[Place] = set()
        self._zeros: set[Place] = set()

    def extend(self, aligned: AlignedPair, outcomes: Outcomes | None) -> bool:
        """Look for partners where numbers fail; return whether there are new ones.

        outcomes: of the pairs as they are aligned now; None before anything is measured.
        """
        suspects = differing(aligned)
        if outcomes is not None:
            suspects |= self._unlike(aligned, outcomes)
        return self.seek(aligned, suspects - self._tried)

    def seek(self, aligned: AlignedPair, suspects: set[Place]) -> bool:
        """Look for partners of these matrices; return whether there are new ones."""
        if not suspects:
            return False
        self._tried |= suspects
        self._aligned = aligned
        self._base, self._tuned = operands_of(aligned.base, aligned.tuned)
        before = dict(self.partners)
        of_experts = {place for place in suspects if place.expert is not None}
        self._match_units({place for place in suspects - of_experts if _votes(place)})
        self._match_units(of_experts)
        self._pair_units()
        self._match_vocabulary({place for place in suspects if grows(place)})
        return self.partners != before

    def unit_of(self, group: Group, number: int) -> UnitChoice | None:
        """Return the unit of the base that corresponds to a unit, None for a new one."""
        return self.units.get(group, {}).get(number, UnitChoice(number, "number"))

    def base_group(self, group: Group) -> Group | None:
        """Return the group of the base in which units of a group are; None for a new layer's."""
        component, layer = group
        if layer is None:
            return group
        unit = self.unit_of((component, None), layer)
        return None if unit is None else (component, unit.unit)

    def _unlike(self, aligned: AlignedPair, outcomes: Outcomes) -> set[Place]:
        """Return the matrices that have little in common with their partners; note the others."""
        suspects = set()
        for pair in aligned.pairs:
            if pair.base is None or not pair.is_matrix:
                continue
            deltas = outcomes[pair.key].deltas
            cosine = deltas[0].number("cosine") if deltas else 1.0
            has_grown = grows(pair.place) and pair.base.shape != pair.tuned.shape
            least = SAME_ROWS if has_grown and pair.chosen is None else NEAR
            if cosine is not None and cosine < least:
                suspects.add(pair.place)
            else:
                choice = UnitChoice(number_of(pair.base.part.place), pair.matched_by)
                self.chosen[pair.place] = choice
        return suspects

    def _match_units(self, suspects: set[Place]) -> None:
        """Find the unit of the base that each suspect matrix is of, and then each unit."""
        of_base, of_tuned = grouped(self._base), grouped(self._tuned)
        for group, own in grouped(suspects).items():
            there = self.base_group(group)
            if there is None:
                continue
            self.chosen |= self._choices(own, of_base[there])
            votes: dict[int, list[tuple[UnitChoice, int]]] = {number_of(place): [] for place in own}
            for number, place, choice in self._ballots(group):
                rows, cols = self._tuned[place].shape
                votes.setdefault(number, []).append((choice, rows * cols))
            numbers = set(map(number_of, of_tuned[group]))
            by_number = {number: self.unit_of(group, number) for number in sorted(numbers)}
            found = elected(votes, set(map(number_of, of_base[there])))
            self.units[group] = by_number | found

    def _ballots(self, group: Group) -> Iterator[tuple[int, Place, UnitChoice]]:
        """Yield which unit of the base matrices say that theirs is, with the number of theirs.
        Experts that were compared say that their layer is the one that they were found in.
        """
        component, layer = group
        for place, choice in self.chosen.items():
            if group_of(place) == group and _votes(place):
                yield number_of(place), place, choice
            elif layer is None and place.component == component and place.expert is not None:
                unit = self.unit_of(group, place.layer or 0)
                if unit is not None:
                    yield place.layer or 0, place, unit

    def _choices(self, own: Iterable[Place], there: Iterable[Place]) -> dict[Place, UnitChoice]:
        """Return the units of the base that matrices are of, as far as their entries say it."""
        candidates = _by_role(self._base, there)
        roles = [
            (places, candidates[role])
            for role, places in _by_role(self._tuned, own).items()
            if len(candidates[role]) > 1
        ]
        of_tuned = {place: self._tuned[place] for places, _ in roles for place in places}
        of_base = {place: self._base[place] for _, places in roles for place in places}
        tuned = self._read(self._aligned.tuned, of_tuned, signature_of)
        base = self._read(self._aligned.base, of_base, signature_of)
        self._zeros |= {place for place, one in tuned.items() if one.is_zero}
        choices: dict[Place, UnitChoice] = {}
        for places, others in roles:
            read = list(filter(tuned.__contains__, places))
            found = choose(
                [(number_of(place), tuned[place]) for place in read],
                [(number_of(place), base[place]) for place in others if place in base],
            )
            choices |= {read[at]: choice for at, choice in found.items()}
        return choices

    def _pair_units(self) -> None:
        """Pair everything inside layers as its unit corresponds, or as its own entries say."""
        for place, operand in self._tuned.items():
            if place.layer is None:
                continue
            self.partners.pop(place, None)
            layer = self.unit_of((place.component, None), place.layer)
            own = self.chosen.get(place) or self.unit_of(group_of(place), number_of(place))
            if layer is None or own is None:
                self.partners[place] = Partner(None)
                continue
            there = replace(place, layer=own.unit)
            if place.expert is not None:
                there = replace(place, layer=layer.unit, expert=own.unit)
            if there != place:
                by = layer.by if own.by == "number" else own.by
                self.partners[place] = Partner(None if place in self._zeros else there, by)
            experts = self.units.get((place.component, place.layer), {})
            if place.module == "router" and there in self._base:
                sizes = self._base[there].shape[0], operand.shape[0]
                pairs = rows_of_units(experts, *sizes)
                if pairs is not None:
                    self.partners[place] = Partner(there, pairs.by, pairs.rows)

    def _match_vocabulary(self, suspects: set[Place]) -> None:
        """Find the rows of the base's vocabulary that rows are."""
        found: dict[tuple[Shape, Shape], RowPairs | None] = {}
        for pair in self._aligned.pairs:
            is_packed = pair.tuned.info.packing or (pair.base and pair.base.info.packing)
            if pair.base is None or pair.place not in suspects or is_packed:
                continue
            shapes = pair.base.shape, pair.tuned.shape
            if shapes not in found:
                first = self._read(self._aligned.base, {pair.place: pair.base}, row_signatures_of)
                second = self._read(
                    self._aligned.tuned, {pair.place: pair.tuned}, row_signatures_of
                )
                sides = [*first.values(), *second.values()]
                found[shapes] = match_rows(*sides) if len(sides) == 2 else None
            if rows := found[shapes]:
                there = pair.base.part.place
                self.partners[pair.place] = Partner(there, rows.by, rows.rows)

    def _read(
        self, checkpoint: Checkpoint, operands: Operands, sign: Sign[Made]
    ) -> dict[Place, Made]:
        """Read matrices once, and return what is made of those that can be decoded."""
        pairs = [
            MatrixPair(place, None, operand, *operand.shape, is_matrix=False)
            for place, operand in operands.items()
        ]

        def measure(pair: MatrixPair, _: Checkpoint, own: Checkpoint) -> tuple[Place, Made]:
            return pair.place, sign(matrix_of(pair.tuned, own), own_workspace())

        aligned = AlignedPair(checkpoint, checkpoint, pairs, [])
        unread: list[Unmatched] = []
        return dict(scan(aligned, measure, self._runtime, self._scratch, unread))


def differing(aligned: AlignedPair) -> set[Place]:
    """Return the matrices of units of which the sides have different numbers."""
    is_alone = (one.place.layer is not None and one.reason in ONE_SIDED for one in aligned.skipped)
    if not any(is_alone):
        return set()
    base, tuned = map(grouped, operands_of(aligned.base, aligned.tuned))
    suspects: set[Place] = set()
    for group, places in tuned.items():
        numbers = [set(map(number_of, side)) for side in (base[group], places)]
        if all(numbers) and numbers[0] != numbers[1]:
            suspects |= set(filter(_votes, places))
    return suspects


def grouped(places: Iterable[Place]) -> defaultdict[Group, list[Place]]:
    """Return the places inside layers by the group that they are of."""
    found = defaultdict[Group, list[Place]](list)
    for place in places:
        if place.layer is not None:
            found[group_of(place)].append(place)
    return found


def _by_role(
    operands: Operands, places: Iterable[Place]
) -> defaultdict[tuple[object, ...], list[Place]]:
    """Return the places of matrices that may correspond to each other, in order."""
    found = defaultdict[tuple[object, ...], list[Place]](list)
    for place in sorted(places, key=number_of):
        found[place.module, place.slot, operands[place].shape].append(place)
    return found


def facts(known: Matching, aligned: AlignedPair) -> record.Correspondence:
    """Return what corresponds, as summaries have it."""
    base, _ = operands_of(aligned.base, aligned.tuned)
    of_base = grouped(base)
    layers: list[record.UnitNumbers] = []
    experts: list[record.UnitNumbers] = []
    for group in sorted(known.units, key=lambda group: (group[0], group[1] or 0)):
        component, layer = group
        there = known.base_group(group) or group
        row = unit_numbers(component, known.units[group], set(map(number_of, of_base[there])))
        if layer is None:
            layers.append(row)
            continue
        same = [one for one in experts if one.with_values(layers=[]) == row]
        experts += [] if same else [row]
        (same or [row])[0].layers.append(layer)
    pairs = [pair for pair in aligned.pairs if pair.chosen is not None and grows(pair.place)]
    return record.Correspondence(
        layers=[row for row in layers if row.has_others],
        experts=[row for row in experts if row.has_others],
        rows=[matched_rows(pair) for pair in pairs],
        matrices=other_layers(known),
    )


def other_layers(known: Matching) -> list[record.OtherLayer]:
    """Rows of layers with matrices that are of another layer than most of theirs."""
    found = defaultdict[tuple[str, int, int, str], list[str]](list)
    for place, choice in known.chosen.items():
        number = number_of(place)
        unit = known.unit_of((place.component, None), number)
        if place.expert is None and _votes(place) and unit is not None and unit.unit != choice.unit:
            found[place.component, number, choice.unit, choice.by].append(place.module)
    return [
        record.OtherLayer(
            component=component, modules=sorted(modules), layer=layer, base_layer=number, by=by
        )
        for (component, layer, number, by), modules in sorted(found.items())
    ]
