"""What corresponds to what in a pair whose numbers disagree with its content.

An audit pairs layers, experts and rows of a vocabulary by number. Where counts differ, or where it
found matrices that have little in common with those of their number, these are read for signatures,
and what corresponds is measured instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import MatrixPair, Operands, Partner, grows, operands_of
from shadow.places.architecture import Place
from shadow.places.names import Shape
from shadow.relations.facts import matched_rows, unit_numbers
from shadow.relations.matching import (
    NEAR,
    Choice,
    RowPairs,
    Units,
    choose,
    elected,
    match_rows,
    rows_of_units,
)
from shadow.relations.signature import Signature, row_signatures_of, signature_of
from shadow.run.journal import MatrixOutcome
from shadow.run.runtime import AlignedPair, Runtime, ignore
from shadow.run.scan import scan
from shadow.run.workers import Cut, matrix_of, own_workspace
from shadow.spectra.spectrum import Workspace
from shadow.summary import record

Made = TypeVar("Made")
Sign = Callable[[Cut, Workspace], Made]
Group = tuple[str, int | None]
"""Of units that are numbered together: a component of its layers, and a layer of its experts."""
SAME_ROWS = 0.999  # cosine of a vocabulary that grew, from which its rows have their numbers
NO_VOTE = ("norm", "bias", "other", "router")  # modules that do not say which unit theirs is


@dataclass
class Correspondence:
    """What corresponds by something else than its number, as far as it was looked for."""

    partners: dict[Place, Partner] = field(default_factory=dict)
    units: dict[Group, Units] = field(default_factory=dict)
    """Of the groups of which some units were looked for, all of the tuned side."""
    chosen: dict[Place, Choice] = field(default_factory=dict)
    """The layer, or the expert, whose matrix a matrix was found to be."""
    tried: set[Place] = field(default_factory=set)

    def extend(
        self,
        aligned: AlignedPair,
        outcomes: Mapping[str, MatrixOutcome] | None,
        runtime: Runtime,
        scratch: Path,
    ) -> bool:
        """Look for partners where numbers fail; return whether there are new ones.

        outcomes: of the pairs as they are aligned now; None before anything is measured, where
        counts decide.
        """
        search = _Search(self, aligned, replace(runtime, show=ignore), scratch)
        suspects = search.differing() if outcomes is None else search.unlike(outcomes)
        suspects -= self.tried
        if not suspects:
            return False
        self.tried |= suspects
        before = dict(self.partners)
        of_experts = {place for place in suspects if place.expert is not None}
        search.match_units({place for place in suspects - of_experts if _votes(place)})
        search.match_units(of_experts)
        search.pair_units()
        search.match_vocabulary({place for place in suspects if grows(place)})
        return self.partners != before

    def unit_of(self, group: Group, number: int) -> Choice | None:
        """Return the unit of the base that corresponds to a unit, None for a new one."""
        return self.units.get(group, {}).get(number, Choice(number, "number"))

    def base_group(self, group: Group) -> Group | None:
        """Return the group of the base in which units of a group are; None for a new layer's."""
        component, layer = group
        if layer is None:
            return group
        unit = self.unit_of((component, None), layer)
        return None if unit is None else (component, unit.unit)


def group_of(place: Place) -> Group:
    """Return the units that a matrix is of one of."""
    return place.component, None if place.expert is None else place.layer


def number_of(place: Place) -> int:
    """Return the number of the unit: of the expert, or of the layer."""
    return (place.layer if place.expert is None else place.expert) or 0


def _votes(place: Place) -> bool:
    """Return whether a matrix says which unit of the base its unit is."""
    return place.layer is not None and place.module not in NO_VOTE


class _Search:
    """One look for what corresponds, in two checkpoints as they are aligned now."""

    def __init__(
        self, known: Correspondence, aligned: AlignedPair, runtime: Runtime, scratch: Path
    ) -> None:
        self._known, self._aligned = known, aligned
        self._runtime, self._scratch = runtime, scratch
        self._base, self._tuned = operands_of(aligned.base, aligned.tuned)
        self._of_base, self._of_tuned = grouped(self._base), grouped(self._tuned)
        self._zeros: set[Place] = set()

    def differing(self) -> set[Place]:
        """Return the matrices of units of which the sides have different numbers."""
        suspects = set()
        for group, places in self._of_tuned.items():
            numbers = [set(map(number_of, side)) for side in (self._of_base[group], places)]
            if all(numbers) and numbers[0] != numbers[1]:
                suspects |= set(filter(_votes, places))
        return suspects

    def unlike(self, outcomes: Mapping[str, MatrixOutcome]) -> set[Place]:
        """Return the matrices that have little in common with their partners; note the others."""
        suspects = set()
        for pair in self._aligned.pairs:
            if pair.base is None or not pair.is_matrix:
                continue
            deltas = outcomes[pair.key].deltas
            cosine = deltas[0].number("cosine") if deltas else 1.0
            has_grown = grows(pair.place) and pair.base.shape != pair.tuned.shape
            least = SAME_ROWS if has_grown and pair.chosen is None else NEAR
            if cosine is not None and cosine < least:
                suspects.add(pair.place)
            else:
                choice = Choice(number_of(pair.base.part.place), pair.matched_by)
                self._known.chosen[pair.place] = choice
        return suspects

    def match_units(self, suspects: set[Place]) -> None:
        """Find the unit of the base that each suspect matrix is of, and then each unit."""
        chosen = self._known.chosen
        groups = defaultdict[Group, set[Place]](set)
        for place in suspects:
            groups[group_of(place)].add(place)
        for group, own in groups.items():
            there = self._known.base_group(group)
            if there is None:
                continue
            of_base, of_tuned = self._of_base[there], self._of_tuned[group]
            chosen |= self._choices(own, of_base)
            votes: dict[int, list[tuple[Choice, int]]] = {number_of(one): [] for one in of_tuned}
            for number, place, choice in self._ballots(group, of_tuned):
                rows, cols = self._tuned[place].shape
                votes[number].append((choice, rows * cols))
            self._known.units[group] = elected(votes, set(map(number_of, of_base)))

    def _ballots(
        self, group: Group, places: Iterable[Place]
    ) -> Iterator[tuple[int, Place, Choice]]:
        """Yield which unit of the base matrices say that theirs is, with the number of theirs."""
        for place in filter(self._known.chosen.__contains__, places):
            if _votes(place):
                yield number_of(place), place, self._known.chosen[place]
        component, layer = group
        for place in self._known.chosen if layer is None else ():
            # experts that were compared say that the layer is the one that they were found in
            if place.component == component and place.expert is not None:
                number = place.layer or 0
                if choice := self._known.unit_of(group, number):
                    yield number, place, choice

    def _choices(self, suspects: set[Place], of_base: list[Place]) -> dict[Place, Choice]:
        """Return the units of the base that matrices are of, as far as their entries say it."""
        candidates = _by_role(self._base, of_base)
        roles = _by_role(self._tuned, suspects)
        chosen = [
            (own, candidates[role])
            for role, own in roles.items()
            if len(candidates.get(role, ())) > 1
        ]
        tuned = self._signatures(self._tuned, [place for own, _ in chosen for place in own])
        base = self._signatures(self._base, [place for _, there in chosen for place in there])
        self._zeros |= {place for place, one in tuned.items() if not one.sketch.any()}
        choices: dict[Place, Choice] = {}
        for own, there in chosen:
            found = choose(
                [number_of(place) for place in own],
                [number_of(place) for place in there],
                [tuned[place] for place in own],
                [base[place] for place in there],
            )
            choices |= {own[at]: choice for at, choice in found.items()}
        return choices

    def pair_units(self) -> None:
        """Pair everything inside layers as its unit corresponds, or as its own entries say."""
        known = self._known
        for place in self._tuned:
            if place.layer is None:
                continue
            known.partners.pop(place, None)
            layer = known.unit_of((place.component, None), place.layer)
            own = known.unit_of(group_of(place), number_of(place))
            own = known.chosen.get(place, own)
            if layer is None or own is None:
                known.partners[place] = Partner(None)
                continue
            there = replace(place, layer=own.unit)
            if place.expert is not None:
                there = replace(place, layer=layer.unit, expert=own.unit)
            if there != place:
                by = layer.by if own.by == "number" else own.by
                known.partners[place] = Partner(None if place in self._zeros else there, by)
        self._pair_routers()

    def _pair_routers(self) -> None:
        """Pair the rows of routers as the experts correspond."""
        for place, operand in self._tuned.items():
            experts = self._known.units.get((place.component, place.layer), {})
            layer = self._known.unit_of((place.component, None), place.layer or 0)
            pairs = rows_of_units(experts) if place.module == "router" else None
            there = replace(place, layer=layer.unit if layer else None)
            if pairs is not None and there in self._base:
                sizes = self._base[there].shape[0], operand.shape[0]
                if pairs.fit(*sizes):
                    self._known.partners[place] = Partner(there, pairs.by, pairs.rows)

    def match_vocabulary(self, suspects: set[Place]) -> None:
        """Find the rows of the base's vocabulary that rows are."""
        found: dict[tuple[Shape, Shape], RowPairs | None] = {}
        base, tuned = self._aligned.base, self._aligned.tuned
        for pair in self._aligned.pairs:
            is_packed = pair.tuned.info.packing or (pair.base and pair.base.info.packing)
            if pair.base is None or pair.place not in suspects or is_packed:
                continue
            shapes = pair.base.shape, pair.tuned.shape
            if shapes not in found:
                (first,) = self._made(base, {pair.place: pair.base}, row_signatures_of).values()
                (second,) = self._made(tuned, {pair.place: pair.tuned}, row_signatures_of).values()
                found[shapes] = match_rows(first, second)
            if rows := found[shapes]:
                there = pair.base.part.place
                self._known.partners[pair.place] = Partner(there, rows.by, rows.rows)

    def _signatures(self, side: Operands, places: Iterable[Place]) -> dict[Place, Signature]:
        """Read matrices of a side for their signatures."""
        checkpoint = self._aligned.base if side is self._base else self._aligned.tuned
        return self._made(checkpoint, {place: side[place] for place in places}, signature_of)

    def _made(
        self, checkpoint: Checkpoint, operands: Operands, sign: Sign[Made]
    ) -> dict[Place, Made]:
        """Read matrices once, and return what is made of them."""
        pairs = [
            MatrixPair(place, None, operand, *operand.shape, is_matrix=False)
            for place, operand in operands.items()
        ]

        def measure(pair: MatrixPair, _: Checkpoint, own: Checkpoint) -> tuple[Place, Made]:
            return pair.place, sign(matrix_of(pair.tuned, own), own_workspace())

        aligned = AlignedPair(checkpoint, checkpoint, pairs, [])
        return dict(scan(aligned, measure, self._runtime, self._scratch))


def grouped(places: Iterable[Place]) -> defaultdict[Group, list[Place]]:
    """Return the places inside layers by the group that they are of."""
    found = defaultdict[Group, list[Place]](list)
    for place in places:
        if place.layer is not None:
            found[group_of(place)].append(place)
    return found


def _by_role(operands: Operands, places: Iterable[Place]) -> dict[tuple[object, ...], list[Place]]:
    """Return the places of matrices that may correspond to each other, in order."""
    found = defaultdict[tuple[object, ...], list[Place]](list)
    for place in sorted(places, key=number_of):
        found[place.module, place.slot, operands[place].shape].append(place)
    return found


def facts(known: Correspondence, aligned: AlignedPair) -> record.Correspondence:
    """Return what corresponds, as summaries have it."""
    base, _ = operands_of(aligned.base, aligned.tuned)
    of_base = grouped(base)
    rows: dict[bool, list[record.UnitNumbers]] = {True: [], False: []}
    for (component, layer), units in sorted(
        known.units.items(), key=lambda item: (item[0][0], item[0][1] or 0)
    ):
        there = known.base_group((component, layer)) or (component, None)
        row = unit_numbers(component, units, set(map(number_of, of_base[there])))
        of_kind = rows[layer is None]
        same = [one for one in of_kind if layer is not None and one.with_values(layers=[]) == row]
        if not same and row.has_others:
            same = [row]
            of_kind.append(row)
        for one in same:
            one.layers.extend([] if layer is None else [layer])
    pairs = [pair for pair in aligned.pairs if pair.chosen is not None and grows(pair.place)]
    return record.Correspondence(
        layers=rows[True],
        experts=rows[False],
        rows=[matched_rows(pair) for pair in pairs],
        matrices=other_layers(known),
    )


def other_layers(known: Correspondence) -> list[record.OtherLayer]:
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
