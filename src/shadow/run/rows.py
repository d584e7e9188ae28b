"""Outcomes -> the rows of a report's tables."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shadow.checkpoints.pairing import MatchedBy, MatrixPair, Side, Skipped
from shadow.places.architecture import Place
from shadow.places.names import name_rules
from shadow.reasons import STRICT
from shadow.relations.matching import least_sure
from shadow.reports.columns import (
    FILES,
    MATRICES,
    SPECTRA,
    TENSORS,
    Cell,
    Column,
    null_if_undefined,
)
from shadow.reports.parquet import TableFile, arrow_schema, table_of
from shadow.reports.provenance import SIDES, ReportMetadata
from shadow.run.journal import MatrixOutcome
from shadow.text import several

CHUNK = 2_000  # rows that are held as Python has them
# A row group of a file, which is held as Arrow has it, ends when it has so many rows or bytes. A
# report of fewer than 20,000 matrices has one.
GROUP = 65_536
GROUP_BYTES = 1 << 27
NAMED = 8  # parts of a tensor that its detail names one by one


def write_tables(
    path_of: Callable[[str], Path],
    scratch: Path,
    identity: ReportMetadata,
    pairs: Sequence[MatrixPair],
    skipped: Sequence[Skipped],
    outcomes: Mapping[str, MatrixOutcome],
    *,
    spectra: bool,
    repository: Sequence[Mapping[str, Cell]],
) -> tuple[dict[str, TableFile], dict[Side, str | None]]:
    """Write the tables of a finished audit, closed and without metadata, in a fixed order of rows.

    Returns their files by name and the digest of each side. repository: the rows of files.parquet.
    Each outcome is asked for once, and released when its rows are made.
    """
    ordered = sorted(pairs, key=lambda pair: (_order(pair.place), pair.tuned.info.name))
    columns_of = {"spectra": SPECTRA, "tensors": TENSORS, "files": FILES, "matrices": MATRICES}
    if not spectra:
        del columns_of["spectra"]
    files = {
        name: TableFile(path_of(f"{name}.parquet"), arrow_schema(columns))
        for name, columns in columns_of.items()
    }
    scratch.mkdir(parents=True, exist_ok=True)
    # instead of in memory
    without_share = TableFile(scratch / "rows", arrow_schema(MATRICES))
    matrices = _Groups(MATRICES, without_share.write)
    tensors = _Groups(TENSORS, files["tensors"].write)
    sigmas = _Groups(SPECTRA, files["spectra"].write) if spectra else None
    light: dict[str, MatrixOutcome] = {}  # by key of a pair: what became of it, without numbers
    norms = array("d")  # of the deltas
    checksums: dict[Side, dict[str, str]] = {side: {} for side in SIDES}  # by name of a tensor
    keys = {pair.key for pair in ordered}
    for key in outcomes.keys() - keys:  # of what was compared by number, and then with others
        for side in SIDES:
            checksums[side].update(outcomes[key].checksums.get(side, {}))
    for pair in ordered:  # one at a time: the spectra of 60,000 matrices are gigabytes
        outcome = outcomes[pair.key]
        matrices.extend(_matrix_rows(pair, outcome, identity))
        norms.extend(delta.number("frobenius_norm") or 0.0 for delta in outcome.deltas)
        if sigmas is not None:
            sigmas.extend(_spectrum_rows(pair, outcome))
        for side in SIDES:
            checksums[side].update(outcome.checksums.get(side, {}))
        light[pair.key] = replace(outcome, measurements=(), checksums={})
    largest = max(norms, default=0.0)
    energy = 0.0  # that of the pair, where it is known
    if largest and all(skip.reason != "filtered" for skip in skipped):
        energy = math.fsum((norm / largest) ** 2 for norm in norms)

    def written(side: Side) -> Iterator[dict[str, Cell]]:
        for row in _rows_of_side(side, ordered, skipped, light, checksums[side]):
            tensors.extend([row])
            yield row

    digests = {side: content_of(written(side)) for side in SIDES}
    files["files"].write(table_of(FILES, repository))
    light.clear()
    checksums.clear()
    tensors.close()
    matrices.close()
    if sigmas is not None:
        sigmas.close()
    without_share.close()
    spilled = pq.ParquetFile(without_share.path)
    for number in range(spilled.num_row_groups):
        group = _with_energy_share(spilled.read_row_group(number), largest, energy)
        files["matrices"].write(group)
    for file in files.values():
        file.close()
    return files, digests


class _Groups:
    """Collect rows into row groups of a table; only the latest are held as Python objects."""

    def __init__(self, columns: Sequence[Column], write: Callable[[pa.Table], None]) -> None:
        self._write = write
        self._columns = columns
        self._latest: list[dict[str, Cell]] = []
        self._group = arrow_schema(columns).empty_table()

    def extend(self, rows: Iterable[dict[str, Cell]]) -> None:
        """Add rows that belong together, in one group."""
        self._latest += rows
        if len(self._latest) >= CHUNK:
            self._gather()

    def _gather(self, *, is_end: bool = False) -> None:
        latest = table_of(self._columns, self._latest)
        self._latest = []
        self._group = pa.concat_tables([self._group, latest])
        is_full = self._group.num_rows >= GROUP or self._group.nbytes >= GROUP_BYTES
        if self._group.num_rows and (is_end or is_full):
            self._write(self._group.combine_chunks())
            self._group = arrow_schema(self._columns).empty_table()

    def close(self) -> None:
        """Finish: no more rows will come."""
        self._gather(is_end=True)


def _with_energy_share(matrices: pa.Table, largest: float, energy: float) -> pa.Table:
    """Add each delta's share of the energy of the pair; None if unknown.

    energy is in units of the square of the largest norm.
    """
    subjects = matrices["subject"].to_pylist()
    norms = matrices["frobenius_norm"].to_pylist()
    shares: list[Cell] = []
    for subject, norm in zip(subjects, norms, strict=True):
        share = None
        if subject == "delta" and energy > 0:
            share = null_if_undefined(((norm or 0.0) / largest) ** 2 / energy)
        shares.append(share)
    index = matrices.schema.get_field_index("energy_share")
    field = matrices.schema.field(index)
    return matrices.set_column(index, field, pa.array(shares, type=field.type))


def _order(place: Place) -> tuple[int, int, int, int, str]:
    """A sort key: components and modules as in names.yaml, those before the blocks first."""
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
    pair: MatrixPair, outcome: MatrixOutcome, identity: ReportMetadata
) -> Iterator[dict[str, Cell]]:
    """Yield the rows of a matrix without energy_share, which needs the whole pair."""
    base = pair.base.info if pair.base else None
    tuned = pair.tuned.info
    dtypes = {"tuned": tuned.dtype, "delta": tuned.dtype}
    if base is not None:
        dtypes["base"] = base.dtype
        if base.dtype != tuned.dtype:
            dtypes["delta"] = f"{base.dtype}/{tuned.dtype}"
    for measurement in outcome.measurements:
        ceiling = None
        if measurement.subject == "delta" and pair.tuned.factor is not None:
            ceiling = pair.tuned.factor.rank
        yield {
            "family": identity["family"],
            "pair": identity["pair"],
            **_place_columns(pair.place),
            "tensor": tuned.name,
            "base_tensor": base.name if base else None,
            "matched_by": pair.matched_by if base else None,
            "subject": measurement.subject,
            "rows": pair.rows,
            "cols": pair.cols,
            "dtype": dtypes[measurement.subject],
            "parameters": pair.entries,
            "precision": measurement.precision,
            "rank_ceiling": ceiling,
            "verified": _verified(measurement.subject, outcome),
            **{name: null_if_undefined(value) for name, value in measurement.values.items()},
        }


def _verified(subject: str, outcome: MatrixOutcome) -> bool | None:
    """True if a side is verified; a delta is as good as its worse side, and a side in a
    folder does not count.
    """
    base, tuned = outcome.verified
    if subject == "base":
        return base
    if subject == "tuned":
        return tuned
    if base is False or tuned is False:
        return False
    return base and tuned


def _spectrum_rows(pair: MatrixPair, outcome: MatrixOutcome) -> Iterator[dict[str, Cell]]:
    for measurement in outcome.measurements:
        if not len(measurement.sigma):  # it was not measured
            continue
        with np.errstate(over="ignore"):
            sigma = measurement.sigma.astype(np.float32)  # infinite where float32 ends
        yield {
            "tensor": pair.tuned.info.name,
            **_place_columns(pair.place),
            "subject": measurement.subject,
            "sigma": sigma,
        }


def _rows_of_side(
    side: Side,
    pairs: Sequence[MatrixPair],
    skipped: Sequence[Skipped],
    outcomes: Mapping[str, MatrixOutcome],
    checksums: Mapping[str, str],
) -> Iterator[dict[str, Cell]]:
    """Yield exactly one row for each tensor of a side, however many matrices it has."""
    held: defaultdict[str, list[MatrixPair | Skipped]] = defaultdict(list)
    for pair in pairs:
        if side in pair.operands:
            for info in pair.operands[side].named:
                held[info.name].append(pair)
    for skip in skipped:
        if skip.side == side:
            held[skip.info.name].append(skip)

    def parts_of(name: str) -> list[_Part]:
        """The parts of a tensor; those at its own place, if there are any."""
        parts = [_part(side, holder, outcomes) for holder in held[name]]
        return [part for part in parts if part.is_own] or parts

    def order(name: str) -> tuple[object, ...]:
        place = replace(_place_of(parts_of(name)), slot="")
        return _order(place), name

    for name in sorted(held, key=order):
        holder = held[name][-1]
        parts = parts_of(name)
        if isinstance(holder, Skipped):
            info = holder.info
        else:
            info = next(info for info in holder.operands[side].named if info.name == name)
        status, reason, detail = _merged(parts)
        size = math.prod(info.shape)
        compared = sum(part.entries for part in parts if part.is_compared)
        casts = {part.outcome.cast for part in parts} - {None}
        # what all parts that changed are; of several kinds, neither
        cast = None
        if len(casts) > 1:
            cast = "neither"
        elif casts:
            cast = casts.pop()
        ways = {part.matched_by for part in parts if part.matched_by}
        yield {
            "tensor": info.name,
            "side": side,
            "shape": list(info.shape),
            "dtype": info.dtype,
            "shard": info.shard,
            **_place_columns(_place_of(parts)),
            "status": status,
            "reason": reason,
            "detail": detail,
            "relative_norm": _relative_norm([part.outcome for part in parts]),
            # scales and the factors of an update have fewer entries than the matrix that they make
            "compared": min(compared, size),
            "cast": cast,
            "all_zero": sum(part.outcome.zero == side for part in parts),
            "nonfinite": sum(side in part.outcome.nonfinite for part in parts),
            "checksum": checksums.get(name),
            "matched_by": least_sure(ways) if ways else None,
        }


@dataclass(frozen=True, slots=True)
class _Part:
    """The outcome of a matrix or vector of a tensor, and the number of entries of its partner."""

    place: Place
    outcome: MatrixOutcome
    entries: int
    is_own: bool = True
    """Whether its place is its own, not that of the other side's tied head."""
    matched_by: MatchedBy | None = None

    @property
    def is_compared(self) -> bool:
        """True if it was measured or is identical; of a vector, whether norms were taken."""
        if self.outcome.status == "skipped":
            return self.outcome.base_norm is not None
        return self.outcome.reason != "only_in_tuned"

    @property
    def is_missed(self) -> bool:
        """True if it should have been measured, and was not."""
        return self.outcome.status == "skipped" and self.outcome.reason in STRICT

    @property
    def description(self) -> str:
        """`experts.up 3 nonfinite`."""
        words = [self.place.module]
        if self.place.module == "bias":
            words.append(self.place.slot)
        if self.place.expert is not None:
            words.append(str(self.place.expert))
        words.append(self.outcome.reason or self.outcome.status)
        return " ".join(filter(None, words))


def _part(side: Side, holder: MatrixPair | Skipped, outcomes: Mapping[str, MatrixOutcome]) -> _Part:
    if isinstance(holder, Skipped):
        outcome = MatrixOutcome(holder.status, holder.reason, holder.detail or None)
        return _Part(holder.place, outcome, math.prod(holder.info.shape))
    outcome = outcomes[holder.key]
    if holder.base is None:
        return _Part(holder.tuned.part.place, outcome, 0)
    place = holder.operands[side].part.place
    entries = holder.entries
    if holder.matched_by == "number":
        is_own = place == holder.place
        return _Part(holder.place, outcome, entries, is_own, "number")
    return _Part(place, outcome, entries, matched_by=holder.matched_by)


def _merged(parts: Sequence[_Part]) -> tuple[str, str | None, str | None]:
    """One status, reason and detail for all matrices of a tensor.

    A tensor is skipped if one part was missed, as people look there for what was not measured.
    Otherwise it is measured if any part is.
    """
    missed = [part for part in parts if part.is_missed]
    statuses = [part.outcome.status for part in parts]
    if missed:
        outcome = missed[0].outcome
        if len(missed) == len(parts):
            return "skipped", outcome.reason, outcome.detail
        descriptions = []
        for part in missed:
            detail = part.outcome.detail
            descriptions.append(f"{part.description} {detail}" if detail else part.description)
        detail = f"{len(missed)} of {len(parts)} parts not measured: {_listed(descriptions)}"
        return "skipped", outcome.reason, detail
    status = min(statuses, key=("measured", "identical", "skipped").index)
    outcome = parts[statuses.index(status)].outcome
    others = [part.description for part in parts if part.outcome.status != status]
    details = filter(None, (outcome.detail, _listed(others)))
    return status, outcome.reason, "; ".join(details) or None


def _listed(descriptions: Sequence[str]) -> str:
    """Join the distinct descriptions of several parts, limited to the first few."""
    return several(list(dict.fromkeys(descriptions)), NAMED, "; ")


def _place_of(parts: Sequence[_Part]) -> Place:
    """The common part of the places of all matrices in a tensor, such as a fused
    projection.
    """
    places = [part.place for part in parts]
    first = places[0]
    if len(set(places)) == 1:
        return first
    module = first.module
    modules = frozenset(place.module for place in places)
    if len(modules) > 1:
        module = name_rules().wholes.get(modules, "other")
    return Place(first.component, first.layer, module)


def _relative_norm(outcomes: Sequence[MatrixOutcome]) -> float | None:
    bases = []
    deltas = []
    for outcome in outcomes:
        if outcome.delta_norm is None or outcome.base_norm is None:
            return None
        bases.append(outcome.base_norm)
        deltas.append(outcome.delta_norm)
    base = math.hypot(*bases)
    if not base:
        return None
    return math.hypot(*deltas) / base


def content_of(rows: Iterable[Mapping[str, Cell]]) -> str | None:
    """Digest the names, formats, shapes and checksums of all tensors of a side, by name.

    None if one has no checksum. Files and their order do not matter.
    """
    keys = ("tensor", "dtype", "shape", "checksum")
    tensors = [[row[key] for key in keys] for row in rows]
    if not tensors or any(checksum is None for *_, checksum in tensors):
        return None
    lines = sorted(map(json.dumps, tensors))
    content = "\n".join(lines).encode()
    return hashlib.sha256(content).hexdigest()


def with_contents(recorded: ReportMetadata, contents: Mapping[Side, str | None]) -> ReportMetadata:
    """The identity of a report, with the digest of each side."""
    return {
        **recorded,
        "base": {**recorded["base"], "content": contents["base"]},
        "tuned": {**recorded["tuned"], "content": contents["tuned"]},
    }
