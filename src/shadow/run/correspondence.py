"""What corresponds to what in a pair whose numbers disagree with its content.

An audit pairs layers, experts and rows of a vocabulary by number. Where counts differ, or where it
found matrices that have little in common with those of their number, these are read for signatures,
and what corresponds is measured instead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import (
    MatchedBy,
    MatrixPair,
    Operand,
    Operands,
    Partner,
    grows,
    operands_of,
)
from shadow.places.architecture import Place
from shadow.relations.matching import NEAR, Choice, choose, match_rows
from shadow.relations.signature import (
    Signature,
    cosines,
    row_signatures_of,
    signature_of,
)
from shadow.run.journal import MatrixOutcome
from shadow.run.runtime import AlignedPair, Runtime, ignore
from shadow.run.scan import scan
from shadow.run.workers import Cut, matrix_of, own_workspace
from shadow.spectra.spectrum import Workspace
from shadow.summary import record

Made = TypeVar("Made")
Layer = tuple[str, int]  # component, number
Sign = Callable[[Cut, torch.dtype, Workspace], Made]
Choices = dict[int, Choice | None]  # by number; None for what is new
SAME_ROWS = 0.999  # cosine of a vocabulary that grew, from which its rows have their numbers
NO_VOTE = ("norm", "bias", "other", "router")  # modules that do not say which layer one is


@dataclass
class Correspondence:
    """What corresponds by something else than its number, as far as it was looked for."""

    partners: dict[Place, Partner] = field(default_factory=dict)
    layers: dict[Layer, Choice | None] = field(default_factory=dict)
    """By layer of the tuned side; None for a new one."""
    experts: dict[Layer, Choices] = field(default_factory=dict)
    """By layer of the tuned side, and expert."""
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
        self.tried |= suspects
        before = dict(self.partners)
        search.match_layers({place for place in suspects if _votes(place)})
        search.match_experts({place for place in suspects if place.expert is not None})
        search.match_vocabulary({place for place in suspects if grows(place)})
        return self.partners != before

    def layer_of(self, layer: Layer) -> Choice | None:
        """Return the layer of the base that corresponds to a layer, None for a new one."""
        return self.layers.get(layer, Choice(layer[1], "number"))


def _votes(place: Place) -> bool:
    """Return whether a matrix says which layer of the base its layer is."""
    return place.layer is not None and place.expert is None and place.module not in NO_VOTE


def _size(operand: Operand) -> int:
    rows, cols = operand.shape
    return rows * cols


class _Search:
    """One look for what corresponds, in two checkpoints as they are aligned now."""

    def __init__(
        self, known: Correspondence, aligned: AlignedPair, runtime: Runtime, scratch: Path
    ) -> None:
        self._known, self._aligned = known, aligned
        self._runtime, self._scratch = runtime, scratch
        self._base, self._tuned = operands_of(aligned.base, aligned.tuned)
        self._of_base, self._of_tuned = (_by_layer(side) for side in (self._base, self._tuned))
        # by place: the layer whose matrix it was found to be
        self._agreeing: dict[Place, Choice] = {}

    def differing(self) -> set[Place]:
        """Return the matrices of layers of which the sides have different ones, and of experts."""
        of_base, of_tuned = self._of_base.keys(), self._of_tuned.keys()
        common = {component for component, _ in of_base & of_tuned}
        components = {component for component, _ in of_base ^ of_tuned} & common
        suspects = set()
        for layer, places in self._of_tuned.items():
            has_other_experts = _experts(places) != _experts(self._of_base.get(layer, ()))
            for place in places:
                is_suspect = place.component in components and place.expert is None
                if is_suspect or (has_other_experts and place.expert is not None):
                    suspects.add(place)
        return suspects

    def unlike(self, outcomes: Mapping[str, MatrixOutcome]) -> set[Place]:
        """Return the matrices that have little in common with their partners."""
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
            elif pair.base.part.place.layer is not None:
                unit = pair.base.part.place.layer
                self._agreeing[pair.place] = Choice(unit, pair.matched_by)
        return suspects

    def match_layers(self, suspects: set[Place]) -> None:
        """Find the layer of the base that each suspect matrix is of, and then each layer."""
        choices = self._choices(suspects)
        layers = sorted({(place.component, place.layer or 0) for place in suspects})
        chosen = {layer: self._elected(layer, choices) for layer in layers}
        others = self._of_tuned.keys() - chosen.keys()
        claimed = {layer: self._known.layer_of(layer) for layer in others} | chosen
        taken = {(layer[0], one.unit) for layer, one in claimed.items() if one is not None}
        for layer, unit in chosen.items():
            if unit is None and layer in self._of_base and layer not in taken:
                unit = Choice(layer[1], "number")  # it has other contents
            self._known.layers[layer] = unit
            for place in self._of_tuned[layer]:
                own = choices.get(place) or self._agreeing.get(place) or unit
                if own is None or (place in self._zeros and own.unit != place.layer):
                    self._known.partners[place] = Partner(None)
                elif own.unit != place.layer:
                    there = replace(place, layer=own.unit)
                    self._known.partners[place] = Partner(there, own.by)

    def _choices(self, suspects: set[Place]) -> dict[Place, Choice]:
        """Return the layers of the base that matrices are of, as far as their entries say it."""
        of_tuned, of_base = (
            _by_role({place: side[place] for place in side if _votes(place)})
            for side in (self._tuned, self._base)
        )
        roles = {
            role: ([place for place in places if place in suspects], of_base[role])
            for role, places in of_tuned.items()
            if len(of_base.get(role, ())) > 1
        }
        chosen = {role: both for role, both in roles.items() if both[0]}
        tuned = self._signatures("tuned", [place for own, _ in chosen.values() for place in own])
        base = self._signatures("base", [place for _, there in chosen.values() for place in there])
        self._zeros = {place for place, one in tuned.items() if not one.sketch.any()}
        choices: dict[Place, Choice] = {}
        for own, there in chosen.values():
            units = [place.layer or 0 for place in there]
            signatures = [base[place] for place in there]
            among = cosines(signatures, signatures)
            expected: dict[int, int] = {}
            for place, found in zip(
                own, cosines([tuned[one] for one in own], signatures), strict=True
            ):
                number = place.layer or 0
                follows = expected.get(number, number)
                choice = choose(number, follows, found, units, among)
                if choice is not None:
                    choices[place] = choice
                    expected[number + 1] = choice.unit + 1
        return choices

    def _elected(self, layer: Layer, choices: Mapping[Place, Choice]) -> Choice | None:
        """Return the layer of the base that most parameters of a layer are of."""
        votes = Counter[int]()
        ways = defaultdict[int, set[str]](set)
        for place in filter(_votes, self._of_tuned[layer]):
            choice = choices.get(place) or self._agreeing.get(place)
            if choice is not None:
                votes[choice.unit] += _size(self._tuned[place])
                ways[choice.unit].add(choice.by)
        if not votes:
            return None
        ((unit, _),) = votes.most_common(1)
        if unit == layer[1]:
            return Choice(unit, "number")
        return Choice(unit, "content" if ways[unit] == {"content"} else "likeness")

    def match_experts(self, suspects: set[Place]) -> None:
        """Find the expert of the corresponding layer that each suspect expert is."""
        for layer, places in _by_layer(suspects).items():
            unit = self._known.layer_of(layer)
            if unit is None:
                continue
            there = (layer[0], unit.unit)
            chosen = self._expert_choices(layer, there, _experts(places))
            claimed = {one.unit for one in chosen.values() if one is not None}
            known = self._known.experts.setdefault(layer, {})
            others = _experts(self._of_base.get(there, ())) - claimed
            for expert in sorted(_experts(self._of_tuned[layer])):
                own = Choice(expert, "number") if expert in others else None
                known[expert] = chosen.get(expert) or known.get(expert) or own
            for place in self._of_tuned[layer]:
                if place.expert is None:
                    continue
                choice = known[place.expert]
                if choice is None:
                    self._known.partners[place] = Partner(None)
                elif (unit.unit, choice.unit) != (place.layer, place.expert):
                    by = unit.by if choice.by == "number" else choice.by
                    partner = replace(place, layer=unit.unit, expert=choice.unit)
                    self._known.partners[place] = Partner(partner, by)
            self._match_router(layer, unit, known)

    def _expert_choices(self, layer: Layer, there: Layer, experts: set[int]) -> Choices:
        """Return which experts of a layer of the base these experts are; none for the others."""
        base, tuned = (
            {place: operand for place, operand in side.items() if place.expert is not None}
            for side in (
                {place: self._base[place] for place in self._of_base.get(there, ())},
                {place: self._tuned[place] for place in self._of_tuned[layer]},
            )
        )
        of_base, of_tuned = _by_role(base), _by_role(tuned)
        roles = [role for role in of_tuned if role in of_base]
        # those that have every matrix
        units = (
            sorted(set.intersection(*(_experts(of_base[role]) for role in roles))) if roles else []
        )
        own = sorted(set.intersection(experts, *(_experts(of_tuned[role]) for role in roles)))
        if len(units) < 2 or not own:
            return {}
        found, among, total = np.zeros((len(own), len(units))), np.zeros((len(units),) * 2), 0
        for role in roles:
            at_base = {place.expert: place for place in of_base[role]}
            at_tuned = {place.expert: place for place in of_tuned[role]}
            first = self._signatures("base", [at_base[expert] for expert in units])
            second = self._signatures("tuned", [at_tuned[expert] for expert in own])
            size = _size(base[at_base[units[0]]])
            of_units = [first[at_base[expert]] for expert in units]
            found += size * cosines([second[at_tuned[expert]] for expert in own], of_units)
            among += size * cosines(of_units, of_units)
            total += size
        choices: Choices = {}
        expected = own[0]
        for expert, line in zip(own, found / total, strict=True):
            choice = choose(expert, expected, line, units, among / total)
            if choice is not None:
                choices[expert] = choice
            expected = (choice.unit if choice else expert) + 1
        return choices

    def _match_router(self, layer: Layer, unit: Choice, experts: Choices) -> None:
        """Pair the rows of routers as the experts correspond."""
        pairs = [(one.unit, expert) for expert, one in experts.items() if one is not None]
        ways = {one.by for one in experts.values() if one is not None} - {"number"}
        of_base = _experts(self._of_base[layer[0], unit.unit])
        if not ways and len(pairs) == len(experts) == len(of_base):
            return
        rows = np.array(pairs, dtype=np.intp).reshape(-1, 2)
        for place in self._of_tuned[layer]:
            there = replace(place, layer=unit.unit)
            if place.module != "router" or there not in self._base:
                continue
            sizes = self._base[there].shape[0], self._tuned[place].shape[0]
            if sizes == (len(of_base), len(experts)) and len(rows) > 1:
                by: MatchedBy = "content" if ways == {"content"} else "likeness"
                self._known.partners[place] = Partner(there, by, (rows[:, 0], rows[:, 1]))

    def match_vocabulary(self, suspects: set[Place]) -> None:
        """Find the rows of the base's vocabulary that rows are."""
        known = {}
        pairs = [pair for pair in self._aligned.pairs if pair.place in suspects]
        for pair in sorted(pairs, key=lambda pair: pair.place.module):
            assert pair.base is not None, "it was compared"
            shapes = pair.base.shape, pair.tuned.shape
            if pair.base.info.packing or pair.tuned.info.packing:
                continue
            if shapes not in known:
                base, tuned = (
                    self._signed(checkpoint, {pair.place: operand}, row_signatures_of)[pair.place]
                    for checkpoint, operand in (
                        (self._aligned.base, pair.base), (self._aligned.tuned, pair.tuned)
                    )
                )  # fmt: skip
                known[shapes] = match_rows(base, tuned)
            found = known[shapes]
            if found is not None:
                there = pair.base.part.place
                self._known.partners[pair.place] = Partner(there, found.by, found.rows)

    def _signatures(self, side: str, places: Iterable[Place]) -> dict[Place, Signature]:
        """Read matrices of a side for their signatures."""
        of_base = side == "base"
        operands = self._base if of_base else self._tuned
        checkpoint = self._aligned.base if of_base else self._aligned.tuned
        chosen = {place: operands[place] for place in places}
        return self._signed(checkpoint, chosen, signature_of)

    def _signed(
        self, checkpoint: Checkpoint, operands: Operands, sign: Sign[Made]
    ) -> dict[Place, Made]:
        """Read matrices once, and return what is made of them."""
        pairs = [
            MatrixPair(place, None, operand, *operand.shape, is_matrix=False)
            for place, operand in operands.items()
        ]

        def measure(pair: MatrixPair, _: Checkpoint, own: Checkpoint) -> tuple[Place, Made]:
            dtype = torch.float64 if pair.tuned.info.dtype == "F64" else torch.float32
            return pair.place, sign(matrix_of(pair.tuned, own), dtype, own_workspace())

        aligned = AlignedPair(checkpoint, checkpoint, pairs, [])
        return dict(scan(aligned, measure, self._runtime, self._scratch)) if pairs else {}


def _by_layer(places: Iterable[Place]) -> dict[Layer, list[Place]]:
    """Return the places inside layers, by layer."""
    found = defaultdict[Layer, list[Place]](list)
    for place in places:
        if place.layer is not None:
            found[place.component, place.layer].append(place)
    return found


def _by_role(operands: Operands) -> dict[tuple[object, ...], list[Place]]:
    """Return the places of matrices that may correspond to each other, in order."""
    found = defaultdict[tuple[object, ...], list[Place]](list)
    for place, operand in operands.items():
        found[place.component, place.module, place.slot, operand.shape].append(place)
    for places in found.values():
        places.sort(key=lambda place: (place.layer or 0, place.expert or 0))
    return found


def _experts(places: Iterable[Place]) -> set[int]:
    return {place.expert for place in places if place.expert is not None}


def facts(known: Correspondence, aligned: AlignedPair) -> record.Correspondence:
    """Return what corresponds, as summaries have it."""
    base, tuned = operands_of(aligned.base, aligned.tuned)
    of_base, of_tuned = _by_layer(base), _by_layer(tuned)
    units = {layer: known.layer_of(layer) for layer in sorted(of_tuned)}
    used = {(layer[0], one.unit) for layer, one in units.items() if one is not None}
    searched = {component for component, _ in known.layers}
    missing = defaultdict[str, list[int]](list)
    for component, number in sorted(of_base.keys() - used):
        if component in searched:
            missing[component].append(number)
    return record.Correspondence(
        layers=_runs(units),
        missing=[
            record.MissingLayers(component=component, layers=layers)
            for component, layers in missing.items()
        ],
        experts=_expert_rows(known, of_base),
        rows=[
            _matched_rows(pair)
            for pair in aligned.pairs
            if pair.chosen is not None and grows(pair.place)
        ],
        matrices=_other_layers(known),
    )


def _runs(units: Mapping[Layer, Choice | None]) -> list[record.LayerRun]:
    """Runs of layers that are consecutive on both sides, but for those at their own number."""
    runs: list[record.LayerRun] = []
    for (component, layer), unit in units.items():
        if unit is not None and unit.unit == layer:
            continue
        number = None if unit is None else unit.unit
        by = "content" if unit is None else unit.by
        if runs:
            last = runs[-1]
            count = layer - last.first_layer
            follows = last.base_first if last.base_first is None else last.base_first + count
            is_next = (component, layer) == (last.component, last.last_layer + 1)
            if is_next and (follows, last.by) == (number, by):
                runs[-1] = last.with_values(last_layer=layer)
                continue
        run = record.LayerRun(
            component=component, first_layer=layer, last_layer=layer, base_first=number, by=by
        )
        runs.append(run)
    return runs


def _expert_rows(
    known: Correspondence, of_base: Mapping[Layer, Sequence[Place]]
) -> list[record.ExpertsRow]:
    """Rows of layers whose experts are not those of their numbers; equal ones in one row."""
    rows: list[record.ExpertsRow] = []
    for (component, layer), experts in sorted(known.experts.items()):
        unit = known.layer_of((component, layer))
        there = _experts(of_base.get((component, unit.unit if unit else layer), ()))
        found = [one for one in experts.values() if one is not None]
        ways = {one.by for one in found} - {"number"}
        row = record.ExpertsRow(
            component=component,
            layers=[],
            experts=len(experts),
            base_experts=len(there),
            missing=sorted(there - {one.unit for one in found}),
            new=[expert for expert, one in experts.items() if one is None],
            moved=sum(one is not None and one.unit != expert for expert, one in experts.items()),
            by=min(ways, default="number"),
        )
        if not (row.missing or row.new or row.moved):
            continue
        same = next((one for one in rows if one.with_values(layers=[]) == row), row)
        if same is row:
            rows.append(row)
        same.layers.append(layer)
    return rows


def _matched_rows(pair: MatrixPair) -> record.MatchedRows:
    assert pair.base is not None, "it has rows of the base"
    assert pair.chosen is not None, "rows were matched"
    of_base, of_tuned = pair.chosen
    is_whole = len(of_base) == pair.base.shape[0] and bool((np.diff(of_base) == 1).all())
    is_whole &= bool((np.diff(of_tuned) == 1).all())
    return record.MatchedRows(
        component=pair.place.component,
        module=pair.place.module,
        rows=pair.rows,
        tuned_rows=pair.tuned.shape[0],
        base_rows=pair.base.shape[0],
        in_front=int(of_tuned[0]) if is_whole else None,
        by=pair.matched_by,
    )


def _other_layers(known: Correspondence) -> list[record.OtherLayer]:
    """Rows of layers with matrices that are of another layer than most of theirs."""
    found = defaultdict[tuple[str, int, int, str], list[str]](list)
    for place, partner in known.partners.items():
        if partner.place is None or not _votes(place):
            continue
        layer = (place.component, place.layer or 0)
        unit = known.layer_of(layer)
        number = partner.place.layer or 0
        if unit is not None and unit.unit != number:
            found[*layer, number, partner.by].append(place.module)
    return [
        record.OtherLayer(
            component=component, modules=modules, layer=layer, base_layer=number, by=by
        )
        for (component, layer, number, by), modules in sorted(found.items())
    ]
