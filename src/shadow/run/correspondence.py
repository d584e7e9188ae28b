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
    ReadTokens,
    RowPairs,
    UnitChoice,
    Units,
    Vote,
    choose,
    elected,
    match_rows,
    rows_of_units,
)
from shadow.relations.signature import row_signatures_of, signature_of
from shadow.run.journal import MatrixOutcome
from shadow.run.runtime import AlignedPair, Runtime, gather_together, ignore
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
Role = tuple[str, str, Shape]
NO_LIMIT = 1 << 62  # bytes
SAME_ROWS = 0.999  # cosine of a vocabulary that grew, from which its rows have their numbers
NO_VOTE = ("norm", "bias", "other", "router")  # modules that do not say which unit theirs is


def group_of(place: Place) -> Group:
    """The group of the unit that a matrix belongs to."""
    layer = None if place.expert is None else place.layer
    return place.component, layer


def number_of(place: Place) -> int:
    """The number of the unit: of the expert, or of the layer."""
    number = place.layer if place.expert is None else place.expert
    return number or 0


def _votes(place: Place) -> bool:
    """True if a matrix says which unit of the base its unit is."""
    return place.layer is not None and place.module not in NO_VOTE


class Matching:
    """Parts of a pair that correspond, but not by number, as far as they were looked for."""

    def __init__(self, runtime: Runtime, scratch: Path, tokens: ReadTokens = tuple) -> None:
        # what is fetched for it alone does not stay
        limit = runtime.access.max_disk or NO_LIMIT
        access = replace(runtime.access, max_disk=limit)
        self._runtime = replace(runtime, show=ignore, access=access)
        self._scratch = scratch
        self._tokens = tokens
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
        self.base, self._tuned = operands_of(aligned.base, aligned.tuned)
        before = dict(self.partners)
        of_experts = {place for place in suspects if place.expert is not None}
        of_layers = suspects - of_experts
        self._match_units(filter(_votes, of_layers))
        self._match_units(of_experts)
        self._pair_units()
        vocabularies = set(filter(grows, suspects))
        self._match_vocabulary(vocabularies)
        return self.partners != before

    def unit_of(self, group: Group, number: int) -> UnitChoice | None:
        """The unit of the base that corresponds to a unit, None for a new one."""
        units = self.units.get(group, {})
        return units.get(number, UnitChoice(number, "number"))

    def base_group(self, group: Group) -> Group | None:
        """The group of the base in which units of a group are; None for a new layer's."""
        component, layer = group
        if layer is None:
            return group
        choice = self.unit_of((component, None), layer)
        if choice is None:
            return None
        return component, choice.unit

    def _unlike(self, aligned: AlignedPair, outcomes: Outcomes) -> set[Place]:
        """The matrices that have little in common with their partners; note the others."""
        suspects = set()
        for pair in aligned.pairs:
            if pair.base is None or not pair.is_matrix:
                continue
            deltas = outcomes[pair.key].deltas
            cosine = deltas[0].number("cosine") if deltas else 1.0
            least = NEAR
            if grows(pair.place) and pair.chosen is None and pair.base.shape != pair.tuned.shape:
                least = SAME_ROWS
            if cosine is not None and cosine < least:
                suspects.add(pair.place)
            else:
                number = number_of(pair.base.part.place)
                self.chosen[pair.place] = UnitChoice(number, pair.matched_by)
        return suspects

    def _match_units(self, suspects: Iterable[Place]) -> None:
        """Find the unit of the base that each suspect matrix is of, and then each unit."""
        of_base = grouped(self.base)
        of_tuned = grouped(self._tuned)
        for group, own in grouped(suspects).items():
            base_group = self.base_group(group)
            if base_group is None:
                continue
            base_units = of_base[base_group]
            self.chosen |= self._choices(own, base_units)
            votes: dict[int, list[Vote]] = {number_of(place): [] for place in own}
            for number, place, choice in self._ballots(group):
                rows, cols = self._tuned[place].shape
                entries = rows * cols
                vote = (choice, entries)
                votes.setdefault(number, []).append(vote)
            numbers = set(map(number_of, base_units))
            units = elected(votes, numbers)
            for place in of_tuned[group]:
                number = number_of(place)
                units.setdefault(number, self.unit_of(group, number))
            self.units[group] = units

    def _ballots(self, group: Group) -> Iterator[tuple[int, Place, UnitChoice]]:
        """Yield which unit of the base matrices say that theirs is, with the number of theirs.
        Experts that were compared say that their layer is the one that they were found in.
        """
        component, layer = group
        for place, choice in self.chosen.items():
            if group_of(place) == group and _votes(place):
                yield number_of(place), place, choice
                continue
            is_of_expert = place.component == component and place.expert is not None
            if layer is None and is_of_expert:
                number = place.layer or 0
                unit = self.unit_of(group, number)
                if unit is not None:
                    yield number, place, unit

    def _choices(
        self, own: Iterable[Place], base_units: Iterable[Place]
    ) -> dict[Place, UnitChoice]:
        """The units of the base that matrices are of, as far as their entries say it."""
        candidates = _by_role(self.base, base_units)
        roles = []
        of_tuned: Operands = {}
        of_base: Operands = {}
        for role, places in _by_role(self._tuned, own).items():
            others = candidates[role]
            if len(others) > 1:
                roles.append((places, others))
                of_tuned |= {place: self._tuned[place] for place in places}
                of_base |= {place: self.base[place] for place in others}
        tuned = self._read(self._aligned.tuned, of_tuned, signature_of)
        base = self._read(self._aligned.base, of_base, signature_of)
        self._zeros |= {place for place, signature in tuned.items() if signature.is_zero}
        choices: dict[Place, UnitChoice] = {}
        for places, others in roles:
            read = [place for place in places if place in tuned]
            signed = [(number_of(place), tuned[place]) for place in read]
            read_of_base = [place for place in others if place in base]
            signed_base = [(number_of(place), base[place]) for place in read_of_base]
            for index, choice in choose(signed, signed_base).items():
                place = read[index]
                choices[place] = choice
        return choices

    def _pair_units(self) -> None:
        """Pair everything inside layers as its unit corresponds, or as its own entries say."""
        for place, operand in self._tuned.items():
            if place.layer is None:
                continue
            self.partners.pop(place, None)
            layer = self.unit_of((place.component, None), place.layer)
            own = self.chosen.get(place)
            if own is None:
                own = self.unit_of(group_of(place), number_of(place))
            if layer is None or own is None:
                self.partners[place] = Partner(None)
                continue
            base_place = replace(place, layer=own.unit)
            if place.expert is not None:
                base_place = replace(place, layer=layer.unit, expert=own.unit)
            if base_place != place:
                by = own.by
                if by == "number":
                    by = layer.by
                has_entries = place not in self._zeros
                self.partners[place] = Partner(base_place if has_entries else None, by)
            if place.module == "router" and base_place in self.base:
                experts = self.units.get((place.component, place.layer), {})
                base_size, _ = self.base[base_place].shape
                size, _ = operand.shape
                rows = rows_of_units(experts, base_size, size)
                if rows is not None:
                    self.partners[place] = Partner(base_place, rows.by, rows.rows)

    def _match_vocabulary(self, suspects: set[Place]) -> None:
        """Find the rows of the base's vocabulary that rows are."""
        known: dict[tuple[Shape, Shape], RowPairs | None] = {}
        vocabularies = []
        for pair in self._aligned.pairs:
            base = pair.base
            tuned = pair.tuned
            if base is None or pair.place not in suspects:
                continue
            if base.info.packing or tuned.info.packing:
                continue
            place = pair.place
            shapes = (base.shape, tuned.shape)
            vocabularies.append((place, base.part.place, shapes))
            rows = known.setdefault(shapes, None)
            if rows is not None and len(rows.rows[1]) == tuned.shape[0]:
                continue
            first = self._read(self._aligned.base, {place: base}, row_signatures_of)
            second = self._read(self._aligned.tuned, {place: tuned}, row_signatures_of)
            if first and second:
                known[shapes] = match_rows(first[place], second[place], self._tokens, rows)
        for place, base_place, shapes in vocabularies:
            rows = known[shapes]
            if rows is not None:
                self.partners[place] = Partner(base_place, rows.by, rows.rows)

    def _read(
        self, checkpoint: Checkpoint, operands: Operands, sign: Sign[Made]
    ) -> dict[Place, Made]:
        """Read matrices once, and return what is made of those that can be decoded."""
        pairs = []
        for place, operand in operands.items():
            pair = MatrixPair(place, None, operand, *operand.shape, is_matrix=False)
            pairs.append(pair)

        def measure(pair: MatrixPair, _: Checkpoint, own: Checkpoint) -> tuple[Place, Made]:
            matrix = matrix_of(pair.tuned, own)
            return pair.place, sign(matrix, own_workspace())

        aligned = AlignedPair(checkpoint, checkpoint, pairs, [])
        unread: list[Unmatched] = []
        scanning = scan(aligned, measure, self._runtime, self._scratch, unread)
        (made,) = gather_together([scanning])
        return dict(made)


def differing(aligned: AlignedPair) -> set[Place]:
    """The matrices of units of which the sides have different numbers."""
    unpaired = [tensor.place for tensor in aligned.skipped if tensor.reason in ONE_SIDED]
    if all(place.layer is None for place in unpaired):
        return set()
    base, tuned = operands_of(aligned.base, aligned.tuned)
    of_base = grouped(base)
    suspects: set[Place] = set()
    for group, places in grouped(tuned).items():
        numbers = set(map(number_of, places))
        base_numbers = set(map(number_of, of_base[group]))
        if base_numbers and numbers != base_numbers:
            suspects.update(filter(_votes, places))
    return suspects


def grouped(places: Iterable[Place]) -> defaultdict[Group, list[Place]]:
    """The places inside layers by the group that they are of."""
    groups = defaultdict[Group, list[Place]](list)
    for place in places:
        if place.layer is not None:
            groups[group_of(place)].append(place)
    return groups


def _by_role(operands: Operands, places: Iterable[Place]) -> defaultdict[Role, list[Place]]:
    """The places of matrices that may correspond to each other, in order."""
    roles = defaultdict[Role, list[Place]](list)
    for place in sorted(places, key=number_of):
        roles[place.module, place.slot, operands[place].shape].append(place)
    return roles


def facts(known: Matching, aligned: AlignedPair) -> record.Correspondence:
    """Record what corresponds, as summaries have it."""
    of_base = grouped(known.base)
    layers: list[record.UnitNumbers] = []
    experts: list[record.UnitNumbers] = []
    for group in sorted(known.units, key=lambda group: (group[0], group[1] or 0)):
        component, layer = group
        base_group = known.base_group(group) or group
        base_numbers = set(map(number_of, of_base[base_group]))
        row = unit_numbers(component, known.units[group], base_numbers)
        if layer is None:
            layers.append(row)
            continue
        for other in experts:
            if other.with_values(layers=[]) == row:
                row = other
                break
        else:
            experts.append(row)
        row.layers.append(layer)
    vocabularies = []
    for pair in aligned.pairs:
        if pair.chosen is not None and grows(pair.place):
            vocabularies.append(matched_rows(pair))
    return record.Correspondence(
        layers=[row for row in layers if row.has_others],
        experts=[row for row in experts if row.has_others],
        rows=vocabularies,
        matrices=other_layers(known),
    )


def other_layers(known: Matching) -> list[record.OtherLayer]:
    """Rows of layers with matrices that are of another layer than most of theirs."""
    modules = defaultdict[tuple[str, int, int, str], list[str]](list)
    for place, choice in known.chosen.items():
        if place.expert is not None or not _votes(place):
            continue
        number = number_of(place)
        unit = known.unit_of((place.component, None), number)
        if unit is not None and unit.unit != choice.unit:
            key = (place.component, number, choice.unit, choice.by)
            modules[key].append(place.module)
    rows = []
    for (component, layer, base_layer, by), own in sorted(modules.items()):
        own.sort()
        row = record.OtherLayer(
            component=component, modules=own, layer=layer, base_layer=base_layer, by=by
        )
        rows.append(row)
    return rows
