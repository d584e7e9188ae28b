"""Outcomes -> the rows of a report's tables."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from shadow.audits.outcome import Outcome
from shadow.checkpoints.pairing import MatrixPair, Operand, Skipped
from shadow.places.architecture import Place
from shadow.places.groups import Direction, direction_of
from shadow.places.names import name_rules
from shadow.reasons import STRICT
from shadow.reports.column_types import Cell, null_if_undefined
from shadow.reports.columns import MATRICES, RESIDUAL, SPECTRA, TENSORS, Column
from shadow.reports.parquet import table_of
from shadow.reports.provenance import Identity
from shadow.spectra.measurement import Measurement
from shadow.spectra.residual import (
    overlaps,
    overlaps_left_out,
    stacked_participation,
    stacked_stderr,
)
from shadow.text import several

CHUNK = 2_000  # rows that are held as Python has them
NO_SIGMA = np.empty(0)
TOLD = 8  # parts of a tensor that its detail names one by one


def report_tables(
    identity: Identity,
    pairs: Sequence[MatrixPair],
    skipped: Sequence[Skipped],
    outcomes: Mapping[str, Outcome],
    *,
    spectra: bool,
) -> dict[str, pa.Table]:
    """The tables of a finished audit by name, without metadata. Rows have a fixed order."""
    ordered = sorted(pairs, key=lambda pair: (_order(pair.place), pair.tuned.info.name))
    matrices, sigmas = _Chunks(MATRICES), _Chunks(SPECTRA)
    norms: list[
        float | None
    ] = []  # of the deltas, in the order of the rows; None for other subjects
    kept: dict[str, Outcome] = {}
    for pair in ordered:  # one at a time: the spectra of 60,000 matrices are gigabytes
        outcome = outcomes[pair.key]
        matrices.extend(_matrix_rows(pair, outcome, identity))
        norms += [_delta_norm(measurement) for measurement in outcome.measurements]
        if spectra:
            sigmas.extend(_spectrum_rows(pair, outcome))
        kept[pair.key] = _slim(outcome)
    energy = math.fsum(norm**2 for norm in norms if norm is not None)
    if any(skip.reason == "filtered" for skip in skipped):
        energy = 0.0  # that of the pair is not known
    shares = [_energy_share(norm, energy) for norm in norms]
    tables = {
        "tensors": table_of(TENSORS, _tensor_rows(ordered, skipped, kept)),
        "residual": table_of(
            RESIDUAL, _residual_rows([(pair, kept[pair.key]) for pair in ordered])
        ),
        "matrices": _with_column(matrices.table(), "energy_share", shares),
    }
    if spectra:
        return {"spectra": sigmas.table(), **tables}
    return tables


class _Chunks:
    """Rows as a table.

    As Python has them they take ten times as much memory, so only the latest stay so.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._latest: list[dict[str, Cell]] = []
        self._chunks: list[pa.Table] = []

    def extend(self, rows: Iterable[dict[str, Cell]]) -> None:
        self._latest += rows
        if len(self._latest) >= CHUNK:
            self._close()

    def _close(self) -> None:
        self._chunks.append(table_of(self._columns, self._latest))
        self._latest = []

    def table(self) -> pa.Table:
        """All rows, each column in one piece where that is possible: so the bytes of a file tell
        nothing of chunks.
        """
        self._close()
        whole = pa.concat_tables(self._chunks)
        self._chunks = []
        try:
            return whole.combine_chunks()
        except pa.ArrowInvalid:  # more than 2^31 singular values
            return whole


def _with_column(table: pa.Table, name: str, values: Sequence[float | None]) -> pa.Table:
    """The table with these values in one of its columns."""
    place = table.schema.get_field_index(name)
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(values, type=field.type))


def _slim(outcome: Outcome) -> Outcome:
    """What the rows of a tensor and of the residual stream need of an outcome: no spectrum."""
    needed = outcome.deltas if outcome.residual is not None else ()
    return replace(
        outcome, measurements=tuple(replace(delta, sigma=NO_SIGMA, lists={}) for delta in needed)
    )


def _delta_norm(measurement: Measurement) -> float | None:
    return (measurement.number("frobenius_norm") or 0.0) if measurement.subject == "delta" else None


def _order(place: Place) -> tuple[int, int, int, int, str]:
    """Components and modules in the order of names.yaml, what lies before the blocks first."""
    rules = name_rules()
    layer = place.layer
    if layer is None:
        layer = 1 << 30 if place.module == "head" else -1
    expert = -1 if place.expert is None else place.expert
    return (
        rules.components.index(place.component),
        layer,
        rules.modules.index(place.module),
        expert,
        place.slot,
    )


def _place_columns(place: Place) -> dict[str, Cell]:
    return {
        "component": place.component,
        "layer": place.layer,
        "module": place.module,
        "expert": place.expert,
    }


def _matrix_rows(
    pair: MatrixPair, outcome: Outcome, identity: Identity
) -> Iterator[dict[str, Cell]]:
    """All columns but energy_share, which needs the whole pair."""
    base = pair.base.info if pair.base else None
    tuned = pair.tuned.info
    both = (
        tuned.dtype if base is None or base.dtype == tuned.dtype else f"{base.dtype}/{tuned.dtype}"
    )
    dtypes = {"base": base.dtype if base else None, "tuned": tuned.dtype, "delta": both}
    for measurement in outcome.measurements:
        ceiling = None
        if measurement.subject == "delta" and pair.tuned.factor is not None:
            ceiling = pair.tuned.factor.rank
        yield {
            "family": identity.family,
            "pair": identity.pair,
            **_place_columns(pair.place),
            "tensor": tuned.name,
            "base_tensor": base.name if base else None,
            "subject": measurement.subject,
            "rows": pair.rows,
            "cols": pair.cols,
            "dtype": dtypes[measurement.subject],
            "parameters": pair.rows * pair.cols,
            "precision": measurement.precision,
            "rank_ceiling": ceiling,
            "verified": _verified(measurement.subject, *outcome.verified),
            **{name: null_if_undefined(value) for name, value in measurement.values.items()},
        }


def _energy_share(norm: float | None, energy: float) -> float | None:
    """The share of the pair's delta energy that one delta has.

    None for other subjects, or where it is 0 or unknown.
    """
    if norm is None or energy <= 0:
        return None
    return null_if_undefined(norm**2 / energy)


def _verified(subject: str, base: bool | None, tuned: bool | None) -> bool | None:
    """A delta is as good as its worse side; a side in a folder is neither checked nor unchecked."""
    if subject == "base":
        return base
    if subject == "tuned":
        return tuned
    if base is False or tuned is False:
        return False
    if base is None or tuned is None:
        return None
    return True


def _spectrum_rows(pair: MatrixPair, outcome: Outcome) -> Iterator[dict[str, Cell]]:
    for measurement in outcome.measurements:
        yield {
            "tensor": pair.tuned.info.name,
            **_place_columns(pair.place),
            "subject": measurement.subject,
            "sigma": measurement.sigma.astype(np.float32),
            **{name: _with_nulls(numbers) for name, numbers in measurement.lists.items()},
        }


def _with_nulls(numbers: NDArray[np.float64]) -> list[float | None]:
    return [null_if_undefined(float(number)) for number in numbers]


def _residual_rows(measured: Sequence[tuple[MatrixPair, Outcome]]) -> list[dict[str, Cell]]:
    """The stacked deltas of every layer, and of all layers, of each component in each direction.

    Only matrices on a residual stream of the component's usual width are stacked.
    """
    stacks: defaultdict[tuple[str, Direction], list[tuple[MatrixPair, Outcome]]] = defaultdict(list)
    for pair, outcome in measured:
        direction = direction_of(pair.place.module)
        if direction is not None and outcome.residual is not None:
            stacks[pair.place.component, direction].append((pair, outcome))
    rows: list[dict[str, Cell]] = []
    for (component, direction), candidates in stacks.items():
        widths = [pair.cols if direction == "reading" else pair.rows for pair, _ in candidates]
        width = Counter(widths).most_common(1)[0][0]
        members = [
            member
            for member, its_width in zip(candidates, widths, strict=True)
            if its_width == width
        ]
        layers = np.array(
            [-1 if pair.place.layer is None else pair.place.layer for pair, _ in members]
        )
        deltas = [outcome.measurements[-1] for _, outcome in members]
        energies = np.array([(delta.number("frobenius_norm") or 0.0) ** 2 for delta in deltas])
        participation = np.array([delta.number("participation_ratio") or 1.0 for delta in deltas])
        # The last bits must not depend on the machine's cores.
        with threadpool_limits(limits=1, user_api="blas"):
            kept = np.stack(
                [outcome.residual for _, outcome in members if outcome.residual is not None]
            )
            cosines = overlaps(kept, participation, width)
            left_out = overlaps_left_out(kept, participation, width)
        for layer in (None, *sorted(set(layers[layers >= 0].tolist()))):
            chosen = np.arange(len(members)) if layer is None else np.flatnonzero(layers == layer)
            both = np.ix_(chosen, chosen)
            ratio = stacked_participation(cosines[both], energies[chosen], participation[chosen])
            without = [overlap[both] for overlap in left_out]
            rows.append(
                {
                    "component": component,
                    "direction": direction,
                    "layer": layer,
                    "width": width,
                    "matrices": len(chosen),
                    "energy": float(energies[chosen].sum()),
                    "participation_ratio": ratio,
                    "participation_ratio_stderr": stacked_stderr(
                        without, energies[chosen], participation[chosen], ratio
                    ),
                }
            )
    return rows


def _tensor_rows(
    pairs: Sequence[MatrixPair], skipped: Sequence[Skipped], outcomes: Mapping[str, Outcome]
) -> list[dict[str, Cell]]:
    """Exactly one row per tensor and side, whatever number of matrices it holds."""
    parts_of: defaultdict[tuple[str, str], list[_Part]] = defaultdict(list)
    infos = {}
    for pair in pairs:
        for side, operand in (("base", pair.base), ("tuned", pair.tuned)):
            for info in operand.infos if operand is not None else ():
                infos[side, info.name] = info
                entries = pair.rows * pair.cols if pair.base is not None else 0
                parts_of[side, info.name].append(
                    _Part(operand, pair.place, outcomes[pair.key], entries)
                )
    for skip in skipped:
        infos[skip.side, skip.info.name] = skip.info
        outcome = Outcome("", skip.status, reason=skip.reason, detail=skip.detail or None)
        parts_of[skip.side, skip.info.name].append(
            _Part(None, skip.place, outcome, math.prod(skip.info.shape))
        )
    rows: list[tuple[tuple[object, ...], dict[str, Cell]]] = []
    for (side, name), every_part in parts_of.items():
        info = infos[side, name]
        # an embedding that is also the other side's tied head is told by what it is itself
        own_parts = [
            part
            for part in every_part
            if part.operand is None or part.operand.part.place == part.place
        ]
        parts = own_parts or every_part
        place, status, reason, detail = _merged(parts)
        compared = sum(part.entries for part in parts if part.is_compared)
        row: dict[str, Cell] = {
            "tensor": name,
            "side": side,
            "shape": list(info.shape),
            "dtype": info.dtype,
            "shard": info.shard,
            **_place_columns(place),
            "status": status,
            "reason": reason,
            "detail": detail,
            "relative_norm": _relative_norm([part.outcome for part in parts]),
            # scales and the factors of an update have fewer entries than the matrix that they make
            "compared": min(compared, math.prod(info.shape)),
        }
        rows.append(((side, *_order(replace(place, slot="")), name), row))
    return [row for _, row in sorted(rows, key=lambda keyed: keyed[0])]


@dataclass(frozen=True)
class _Part:
    """A matrix or vector of a tensor, what became of it, and how many entries its partner shares.

    operand is None where it has no partner.
    """

    operand: Operand | None
    place: Place
    outcome: Outcome
    entries: int

    @property
    def is_compared(self) -> bool:
        """Matrices that were measured or are identical, and vectors whose norms were taken."""
        if self.outcome.status == "skipped":
            return self.outcome.base_norm is not None
        return self.outcome.reason != "only_in_tuned"

    @property
    def is_missed(self) -> bool:
        """It should have been measured, and was not."""
        return self.outcome.status == "skipped" and self.outcome.reason in STRICT

    @property
    def told(self) -> str:
        """`experts.up 3 nonfinite`."""
        slot = self.place.slot if self.place.module == "bias" else ""
        expert = "" if self.place.expert is None else str(self.place.expert)
        what = self.outcome.reason or self.outcome.status
        return " ".join(filter(None, (self.place.module, slot, expert, what)))


def _merged(parts: Sequence[_Part]) -> tuple[Place, str, str | None, str | None]:
    """One place, status, reason and detail for all matrices of a tensor.

    A tensor is skipped as soon as one of its parts was missed: whoever looks for what was not
    measured looks there, and the rows of its other parts are in matrices.parquet all the same. Else
    it is measured if any part is.
    """
    missed = [part for part in parts if part.is_missed]
    statuses = [part.outcome.status for part in parts]
    status = (
        "skipped"
        if missed
        else next(s for s in ("measured", "identical", "skipped") if s in statuses)
    )
    chosen = (missed or [part for part in parts if part.outcome.status == status])[0].outcome
    if missed and len(missed) < len(parts):
        descriptions = [" ".join(filter(None, (part.told, part.outcome.detail))) for part in missed]
        detail = f"{len(missed)} of {len(parts)} parts not measured: {_listed(descriptions)}"
    elif missed:
        detail = chosen.detail or ""
    else:
        others = [part.told for part in parts if part.outcome.status != status]
        detail = "; ".join(filter(None, (chosen.detail, _listed(others))))
    places = {part.place for part in parts}
    place = (
        next(iter(places)) if len(places) == 1 else _common_place([part.place for part in parts])
    )
    return place, status, chosen.reason, detail or None


def _listed(descriptions: Sequence[str]) -> str:
    """What is told of several parts, each once, the first few."""
    return several(list(dict.fromkeys(descriptions)), TOLD, "; ")


def _common_place(places: Sequence[Place]) -> Place:
    """The place of a tensor that holds several matrices: a fused projection, a stack of experts."""
    first = places[0]
    modules = {place.module for place in places}
    fused = name_rules().wholes.get(frozenset(modules), "other")
    return Place(first.component, first.layer, first.module if len(modules) == 1 else fused)


def _relative_norm(outcomes: Sequence[Outcome]) -> float | None:
    if any(outcome.delta_norm is None or outcome.base_norm is None for outcome in outcomes):
        return None
    base = math.hypot(*(outcome.base_norm or 0.0 for outcome in outcomes))
    return math.hypot(*(outcome.delta_norm or 0.0 for outcome in outcomes)) / base if base else None
