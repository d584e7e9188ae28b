"""Outcomes <-> files: the journal of an unfinished audit, and the Parquet files of a finished one.

Files appear whole or not at all: each is written aside, flushed to disk and renamed. While an audit runs, its
finished outcomes lie in `.partial/journal.jsonl`, one JSON line each, after a line that says what they belong to.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from shadow import __version__
from shadow.architecture import Place, name_rules
from shadow.aside import aside_in
from shadow.diagnostics import MATRICES, RESIDUAL, SCHEMA, SPECTRA, TABLES, TENSORS, Column
from shadow.errors import ShadowError
from shadow.gains import KEPT
from shadow.outcome import Measurement, Outcome
from shadow.pairing import STRICT, MatrixPair, Operand, Skipped
from shadow.residual import (
    Direction,
    direction_of,
    overlaps,
    overlaps_left_out,
    stacked_participation,
    stacked_stderr,
)

PARTIAL = ".partial"
JOURNAL = "journal.jsonl"
READY = "ready"  # in PARTIAL: files of a report that are all written, and only have to be moved to their places
METADATA_KEY = b"shadow"
TOLD = 8  # parts of a tensor that its detail names one by one
ARROW = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "ints": pa.list_(pa.int64()),
    "floats": pa.list_(pa.float32()),
}


@dataclass(frozen=True)
class Identity:
    """What the numbers of a report depend on: equal identities give equal data."""

    version: str
    schema: int
    family: str
    pair: str
    base: Mapping[str, str | None]
    tuned: Mapping[str, str | None]
    settings: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def is_that_of(self, header: Any) -> bool:
        """Are the numbers of a journal with this first line ours? No number depends on the optimiser."""
        mine = self.as_json()
        mine["settings"].pop("optimizer", None)
        if not isinstance(header, dict) or not isinstance(header.get("settings"), dict):
            return False
        theirs = {name: value for name, value in header["settings"].items() if name != "optimizer"}
        return bool({**header, "settings": theirs} == mine)


def safe_name(name: str) -> str:
    """A file name for any text, still telling texts apart: letters, digits and `._-`, no leading dot, not long."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")[:80]
    return (
        plain
        if plain == name and plain
        else f"{plain or 'x'}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    )


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what goes wrong with the disk into one line."""
    try:
        yield
    except OSError as error:
        hint = (
            "free some space and run the same command again: it goes on from here"
            if error.errno == errno.ENOSPC
            else None
        )
        raise ShadowError(
            f"cannot write to {folder}: {error.strerror or error}", hint or "choose another folder with -o"
        ) from error


@dataclass(frozen=True)
class Fetched:
    """A shard that an unfinished audit fetched from the Hub. keep: it was to stay in the Hub's cache."""

    repo: str
    commit: str
    path: str
    checksum: str | None
    keep: bool


def _fetched(lines: Iterable[bytes]) -> list[Fetched]:
    """The shards that a journal tells of; what makes no sense is passed over."""
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            entry = json.loads(line) if line.startswith(b'{"fetched"') else {}
            if entry:
                one = Fetched(**entry["fetched"])
                plain = all(isinstance(text, str) for text in (one.repo, one.commit, one.path, one.checksum or ""))
                if plain and re.fullmatch(r"[0-9a-f]{40}", one.commit) and ".." not in f"{one.repo}/{one.path}":
                    found.append(one)
    return found


class Journal:
    """Finished outcomes of an audit that is not finished, safe against being killed at any moment.

    One process writes at a time; a second one is refused. outcomes holds what an earlier run left, fetched the
    shards that it fetched or was fetching, also if it belonged to another identity, and other is then that identity.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder
        self.outcomes: dict[str, Outcome] = {}
        self.fetched: list[Fetched] = []
        self.other: dict[str, Any] | None = None
        with writing(folder):
            partial = folder / PARTIAL
            partial.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = (partial / JOURNAL).open("a+b")
        _lock(self._file, folder)
        with writing(folder):
            good = self._read(identity)
            self._file.truncate(good)
            if good == 0:
                self._write(identity.as_json())
                for fetched in self.fetched:
                    self._write({"fetched": asdict(fetched)})

    def _read(self, identity: Identity) -> int:
        """Take over what belongs to identity; returns how many bytes of the file are good."""
        self._file.seek(0)
        self.fetched = _fetched(self._file)
        self._file.seek(0)
        good = 0
        for number, line in enumerate(self._file):
            try:
                entry: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
                if number == 0 and not identity.is_that_of(entry):
                    self.other = entry if entry else None
                    return 0
                if number > 0 and "fetched" not in entry:
                    outcome = _outcome_from_json(entry)
                    self.outcomes[outcome.key] = outcome
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                break  # cut in the middle of a line
            good += len(line)
        return good

    @property
    def is_empty(self) -> bool:
        return not self.outcomes and not self.fetched

    def note_fetched(self, fetched: Fetched) -> None:
        """A shard is about to be fetched."""
        if fetched not in self.fetched:
            with writing(self.folder):
                self._write({"fetched": asdict(fetched)})
            self.fetched.append(fetched)

    def add(self, outcome: Outcome) -> None:
        with writing(self.folder):
            self._write(_outcome_to_json(outcome))
        self.outcomes[outcome.key] = outcome

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written has been told already
            self._file.close()

    def remove(self) -> None:
        """The audit is finished: its files hold everything."""
        self.close()
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)


@contextlib.contextmanager
def alone_at(folder: Path) -> Iterator[None]:
    """While a report is changed nobody else may change it or measure it anew; a second process is refused."""
    path = folder / PARTIAL / JOURNAL
    with writing(folder):
        path.parent.mkdir(exist_ok=True)
        file = path.open("a+b")
    with file:
        _lock(file, folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_size == 0:  # made for the lock alone
                    path.unlink()


def remove_journal_of(folder: Path, identity: Identity) -> None:
    """Remove what an audit left that was killed when its report had just been written. That of another one stays."""
    path = folder / PARTIAL / JOURNAL
    with contextlib.suppress(OSError, ValueError, RecursionError, ShadowError), path.open("r+b") as file:
        _lock(file, folder)
        if identity.is_that_of(json.loads(file.readline())):
            path.unlink()


def _lock(file: IO[bytes], folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on Windows; two audits into one folder are the user's to avoid there
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ShadowError(
            f"another audit is writing to {folder}", "wait for it, or choose another folder with -o"
        ) from error


def _outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    measurements = [
        {
            "subject": one.subject,
            "precision": one.precision,
            "values": {name: _finite(value) for name, value in one.values.items()},
            "sigma": base64.b64encode(one.sigma.astype("<f8").tobytes()).decode(),
        }
        for one in outcome.measurements
    ]
    residual = None if outcome.residual is None else base64.b64encode(outcome.residual.astype("<f4").tobytes()).decode()
    return {**vars(outcome), "measurements": measurements, "residual": residual}


def _outcome_from_json(entry: dict[str, Any]) -> Outcome:
    measurements = tuple(
        Measurement(
            one["subject"],
            one["precision"],
            one["values"],
            np.frombuffer(base64.b64decode(one["sigma"]), dtype="<f8"),
        )
        for one in entry.pop("measurements")
    )
    base_verified, tuned_verified = entry.pop("verified")
    kept = entry.pop("residual")
    residual = None if kept is None else np.frombuffer(base64.b64decode(kept), dtype="<f4")
    return Outcome(**entry, measurements=measurements, verified=(base_verified, tuned_verified), residual=residual)


def _finite(value: float | int | None) -> float | int | None:
    """Null instead of NaN or infinity: a number that overflowed is no number."""
    return None if value is None or not math.isfinite(value) else value


def remove_unfinished(output: Path) -> dict[Path, list[Fetched]]:
    """Remove the `.partial` folders of audits below output that nobody is writing to.

    Returns the pairs' folders, and the shards that each of those audits had fetched from the Hub.
    """
    if not output.is_dir():
        raise ShadowError(f"no such folder: {output}", "name the folder given to `shadow audit -o`")
    removed = {}
    for partial in sorted(path for depth in ("", "*/", "*/*/") for path in output.glob(f"{depth}{PARTIAL}")):
        if partial.is_symlink() or not (partial / JOURNAL).is_file():
            continue  # not ours
        with writing(partial.parent), (partial / JOURNAL).open("ab+") as file:
            _lock(file, partial.parent)
            file.seek(0)
            removed[partial.parent] = _fetched(file)
            shutil.rmtree(partial)
        remove_empty(partial.parent, output)
    return removed


def remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder and its parents below top as far as they are empty."""
    with contextlib.suppress(OSError):  # not empty: something is worth keeping there
        while folder != top and top in folder.parents:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
            folder = folder.parent


def finished_metadata(folder: Path) -> dict[str, Any] | None:
    """The provenance of the finished report in a folder; None when there is none.

    Of a report of another schema only the schema is checked. Raises ShadowError for a report that cannot be read.
    Whoever reads a report asks this first: a replacement that was killed half-way is completed here.
    """
    _put_in_place(folder)
    path = folder / "matrices.parquet"
    if not path.is_file() or not (folder / "summary.json").is_file():
        return None
    try:
        schema = pq.read_schema(path)
        metadata = json.loads((schema.metadata or {})[METADATA_KEY], parse_constant=lambda _: None)
        if type(metadata["schema"]) is int and metadata["schema"] != SCHEMA:
            return dict(metadata)  # another version's; check_schema says so
        _check_metadata(metadata)
        if missing := TABLES["matrices"].first - set(schema.names):
            raise KeyError(*missing)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        message = f"{path}: not a report of shadow ({type(error).__name__})"
        raise ShadowError(message, "name a folder that `shadow audit` made") from error
    return dict(metadata)


def _check_metadata(metadata: Any) -> None:
    """Raises TypeError or KeyError where metadata are not of the types that every reader of a report may rely on."""
    settings = metadata["settings"]
    texts = [metadata[key] for key in ("version", "family", "pair")]
    texts += [metadata[side]["repo"] for side in ("base", "tuned")]
    texts.append(settings["method"]["precision"])
    maybe = [metadata[side][key] for side in ("base", "tuned") for key in ("commit", "fingerprint")]
    if not all(isinstance(text, str) for text in (*texts, *(text for text in maybe if text is not None))):
        raise TypeError
    mappings = settings["method"], settings.get("chosen") or {}, metadata.get("libraries") or {}
    if type(metadata["schema"]) is not int or not all(isinstance(one, dict) for one in mappings):
        raise TypeError
    seconds = metadata.get("seconds") or 0.0
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise TypeError


def required_metadata(folder: Path) -> dict[str, Any]:
    """The provenance of the finished report in a folder.

    Raises ShadowError when the folder holds no finished report, a broken one, or one of another schema.
    """
    metadata = finished_metadata(folder) if folder.is_dir() else None
    if metadata is None:
        hint = (
            "the audit is not finished: run it again"
            if (folder / PARTIAL).is_dir()
            else "name a folder that `shadow audit` made"
        )
        raise ShadowError(f"{folder}: no finished report in it", hint)
    check_schema(folder, metadata)
    return metadata


def check_schema(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse a report whose columns mean something else than this version's."""
    if metadata["schema"] != SCHEMA:
        newer = metadata["schema"] > SCHEMA
        maker = metadata.get("version")
        made = (
            f"shadow {maker}"
            if isinstance(maker, str) and len(maker) < 40 and maker.isprintable()
            else "another version of shadow"
        )
        raise ShadowError(
            f"{folder}: a report of schema {str(metadata['schema'])[:12]}, made by {made}; this is shadow "
            f"{__version__}, which reads schema {SCHEMA}",
            "pip install --upgrade shadow-audit" if newer else f"audit the pair again, or read it with {made}",
        )


def report_tables(
    identity: Identity,
    pairs: Sequence[MatrixPair],
    skipped: Sequence[Skipped],
    outcomes: Mapping[str, Outcome],
    spectra: bool,
) -> dict[str, pa.Table]:
    """The tables of a finished audit by name, without metadata. Rows have a fixed order."""
    ordered = sorted(pairs, key=lambda pair: (_order(pair.place), pair.tuned.info.name))
    measured = [(pair, outcomes[pair.key]) for pair in ordered]
    tables = {
        "tensors": _table(TENSORS, _tensor_rows(ordered, skipped, outcomes)),
        "residual": _table(RESIDUAL, _residual_rows(measured)),
        "matrices": _table(MATRICES, [row for one in measured for row in _matrix_rows(*one, identity)]),
    }
    sigmas = (row for one in measured for row in _spectrum_rows(*one))
    return {"spectra": _table(SPECTRA, list(sigmas)), **tables} if spectra else tables


def write_report(
    folder: Path,
    identity: Identity,
    provenance: Mapping[str, Any],
    tables: Mapping[str, pa.Table],
    summary: bytes,
    scores: bytes,
) -> None:
    """Write the files of a finished audit; provenance joins the metadata of each table.

    An earlier report stays readable until all of them are written; then they take its place. Empty scores: there are
    none.
    """
    metadata = {**identity.as_json(), **provenance}
    with replacing(folder) as put:
        put("summary.json", summary)
        put(KEPT, scores)
        for name in TABLES_OF_A_PAIR:
            put(f"{name}.parquet", stored(tables[name], metadata) if name in tables else b"")


TABLES_OF_A_PAIR = ("spectra", "tensors", "residual", "matrices")
FILES_OF_A_PAIR = ("summary.json", KEPT, *(f"{name}.parquet" for name in TABLES_OF_A_PAIR))


def stored(table: pa.Table, metadata: Mapping[str, Any]) -> bytes:
    """A table of a report as the bytes of its file."""
    return parquet_bytes(table, {METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Write some files of a report that take their places together when the block ends, and not at all if it fails.

    The block gets a function of a file's name and content; empty content removes the file. Killed between the first
    and the last move, the rest is moved by the next command that reads the report.
    """
    staged = folder / PARTIAL / f"{READY}.tmp"

    def put(name: str, content: bytes) -> None:
        with (staged / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    with writing(folder):
        _put_in_place(folder)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        try:
            yield put
            staged.rename(folder / PARTIAL / READY)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        _put_in_place(folder)


def _put_in_place(folder: Path) -> None:
    """Move the files that are ready; several processes may do so at once. matrices.parquet, by which a report is
    found, comes last."""
    ready = folder / PARTIAL / READY
    if not ready.is_dir() or any(path.is_symlink() for path in (ready, ready.parent)):
        return
    try:
        for name in FILES_OF_A_PAIR:
            with contextlib.suppress(FileNotFoundError):  # not one of them, or another process was faster
                if (ready / name).stat().st_size:
                    (ready / name).replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
                    (ready / name).unlink()
    except OSError as error:
        message = f"{folder}: its new report is written, but cannot take the old one's place"
        raise ShadowError(f"{message}: {error.strerror or error}", "may the folder be written to?") from error
    with contextlib.suppress(OSError):
        ready.rmdir()
        ready.parent.rmdir()


def write_rows(
    path: Path, columns: Sequence[Column], rows: list[dict[str, Any]], provenance: Mapping[str, Any]
) -> None:
    """Write rows that belong to no pair's folder into a file of their own, whole or not at all.

    Raises ShadowError when there is a file that was not written so: a report must not be lost to a slip.
    """
    metadata = {METADATA_KEY: json.dumps(provenance, sort_keys=True).encode()}
    content = parquet_bytes(_table(columns, rows), metadata)
    with writing(path.parent):
        if path.exists() and not _is_comparison(path):
            raise ShadowError(f"{path} is there already, and is no comparison", "choose another file with -o")
        write_beside(path, content)


def _is_comparison(path: Path) -> bool:
    if not path.is_file():  # opening a FIFO would wait for ever
        return False
    try:
        found = json.loads((pq.read_schema(path).metadata or {})[METADATA_KEY])
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return False
    return isinstance(found, dict) and "comparison" in found


def write_whole(path: Path, content: bytes) -> None:
    """A file of a report or of an index that is there whole or not at all."""
    aside = path.parent / PARTIAL / f"{path.stem}.tmp"
    aside.parent.mkdir(parents=True, exist_ok=True)
    _write_by_way_of(aside, path, content)


def write_beside(path: Path, content: bytes) -> None:
    """The same in a folder that is not ours: nothing is left in it when this fails."""
    with aside_in(path.parent) as folder:
        _write_by_way_of(folder / path.name, path, content)


def _write_by_way_of(aside: Path, path: Path, content: bytes) -> None:
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    return pa.schema([pa.field(column.name, ARROW[column.type]) for column in columns])


def _table(columns: Sequence[Column], rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=arrow_schema(columns))


def _write_parquet(path: Path, table: pa.Table, metadata: dict[bytes, bytes]) -> None:
    write_whole(path, parquet_bytes(table, metadata))


def parquet_bytes(table: pa.Table, metadata: dict[bytes, bytes]) -> bytes:
    """A Parquet file of a table with this metadata and no other."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _order(place: Place) -> tuple[int, int, int, int, str]:
    """Components and modules in the order of names.yaml, what lies before the blocks first."""
    rules = name_rules()
    layer = place.layer if place.layer is not None else (1 << 30 if place.module == "head" else -1)
    expert = -1 if place.expert is None else place.expert
    return (
        rules.components.index(place.component),
        layer,
        rules.modules.index(place.module),
        expert,
        place.slot,
    )


def _place_columns(place: Place) -> dict[str, Any]:
    return {
        "component": place.component,
        "layer": place.layer,
        "module": place.module,
        "expert": place.expert,
    }


def _matrix_rows(pair: MatrixPair, outcome: Outcome, identity: Identity) -> Iterator[dict[str, Any]]:
    base = pair.base.info if pair.base else None
    tuned = pair.tuned.info
    both = tuned.dtype if base is None or base.dtype == tuned.dtype else f"{base.dtype}/{tuned.dtype}"
    dtypes = {"base": base.dtype if base else None, "tuned": tuned.dtype, "delta": both}
    for one in outcome.measurements:
        yield {
            "family": identity.family,
            "pair": identity.pair,
            **_place_columns(pair.place),
            "tensor": tuned.name,
            "base_tensor": base.name if base else None,
            "subject": one.subject,
            "rows": pair.rows,
            "cols": pair.cols,
            "dtype": dtypes[one.subject],
            "parameters": pair.rows * pair.cols,
            "precision": one.precision,
            "rank_ceiling": factor.rank if one.subject == "delta" and (factor := pair.tuned.factor) else None,
            "verified": _verified(one.subject, *outcome.verified),
            **{name: _finite(value) for name, value in one.values.items()},
        }


def _verified(subject: str, base: bool | None, tuned: bool | None) -> bool | None:
    """A delta is as good as the worse of its sides; a side in a folder is neither checked nor unchecked."""
    if subject != "delta":
        return base if subject == "base" else tuned
    return False if False in (base, tuned) else None if None in (base, tuned) else True


def _spectrum_rows(pair: MatrixPair, outcome: Outcome) -> Iterator[dict[str, Any]]:
    for one in outcome.measurements:
        place = _place_columns(pair.place)
        yield {
            "tensor": pair.tuned.info.name,
            **place,
            "subject": one.subject,
            "sigma": one.sigma.astype(np.float32),
        }


def _residual_rows(measured: Sequence[tuple[MatrixPair, Outcome]]) -> list[dict[str, Any]]:
    """The stacked deltas of every layer, and of all layers, of each component in each direction.

    Only matrices on a residual stream of the component's usual width are stacked.
    """
    found: dict[tuple[str, Direction], list[tuple[MatrixPair, Outcome]]] = {}
    for pair, outcome in measured:
        if (direction := direction_of(pair.place.module)) and outcome.residual is not None:
            found.setdefault((pair.place.component, direction), []).append((pair, outcome))
    rows = []
    for (component, direction), members in found.items():
        widths = [pair.cols if direction == "reading" else pair.rows for pair, _ in members]
        width = Counter(widths).most_common(1)[0][0]
        members = [one for one, own in zip(members, widths, strict=True) if own == width]
        layers = np.array([-1 if pair.place.layer is None else pair.place.layer for pair, _ in members])
        deltas = [outcome.measurements[-1].values for _, outcome in members]
        energies = np.array([(one["frobenius_norm"] or 0.0) ** 2 for one in deltas])
        participation = np.array([one["participation_ratio"] or 1.0 for one in deltas])
        with threadpool_limits(limits=1, user_api="blas"):  # the last bits must not depend on the machine's cores
            kept = np.stack([outcome.residual for _, outcome in members if outcome.residual is not None])
            cosines = overlaps(kept, participation, width)
            left_out = overlaps_left_out(kept, participation, width)
        for layer in (None, *sorted(set(layers[layers >= 0].tolist()))):
            own = np.flatnonzero(layers == layer) if layer is not None else np.arange(len(members))
            both = np.ix_(own, own)
            ratio = stacked_participation(cosines[both], energies[own], participation[own])
            without = [one[both] for one in left_out]
            rows.append(
                {
                    "component": component,
                    "direction": direction,
                    "layer": layer,
                    "width": width,
                    "matrices": len(own),
                    "energy": float(energies[own].sum()),
                    "participation_ratio": ratio,
                    "participation_ratio_stderr": stacked_stderr(without, energies[own], participation[own], ratio),
                }
            )
    return rows


def _tensor_rows(
    pairs: Sequence[MatrixPair], skipped: Sequence[Skipped], outcomes: Mapping[str, Outcome]
) -> list[dict[str, Any]]:
    """Exactly one row per tensor and side, whatever number of matrices it holds."""
    found: dict[tuple[str, str], list[_Part]] = {}
    infos = {}
    for pair in pairs:
        for side, operand in (("base", pair.base), ("tuned", pair.tuned)):
            for info in operand.infos if operand is not None else ():
                infos[side, info.name] = info
                entries = pair.rows * pair.cols if pair.base is not None else 0
                part = _Part(operand, pair.place, outcomes[pair.key], entries)
                found.setdefault((side, info.name), []).append(part)
    for skip in skipped:
        infos[skip.side, skip.info.name] = skip.info
        outcome = Outcome("", skip.status, skip.reason, skip.detail or None)
        part = _Part(None, skip.place, outcome, math.prod(skip.info.shape))
        found.setdefault((skip.side, skip.info.name), []).append(part)
    rows = []
    for (side, name), parts in found.items():
        info = infos[side, name]
        # an embedding that is also the other side's tied head is told by what it is itself
        parts = [part for part in parts if part.operand is None or part.operand.part.place == part.place] or parts
        place, status, reason, detail = _merged(parts)
        compared = sum(part.entries for part in parts if part.is_compared)
        rows.append(
            {
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
        )
    return sorted(rows, key=lambda row: (row["side"], _row_order(row)))


def _row_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    place = Place(row["component"], row["layer"], row["module"], row["expert"])
    return (*_order(place), row["tensor"])


@dataclass(frozen=True)
class _Part:
    """A matrix or vector of a tensor, what became of it, and how many entries it has in common with its partner.

    operand is None where it has no partner.
    """

    operand: Operand | None
    place: Place
    outcome: Outcome
    entries: int

    @property
    def is_compared(self) -> bool:
        """Matrices that were measured or are identical, and vectors of which the norms were taken."""
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

    A tensor is skipped as soon as one of its parts was missed: whoever looks for what was not measured looks there,
    and the rows of its other parts are in matrices.parquet all the same. Else it is measured if any part is.
    """
    missed = [part for part in parts if part.is_missed]
    statuses = [part.outcome.status for part in parts]
    status = "skipped" if missed else next(s for s in ("measured", "identical", "skipped") if s in statuses)
    chosen = (missed or [part for part in parts if part.outcome.status == status])[0].outcome
    if missed and len(missed) < len(parts):
        told = [" ".join(filter(None, (part.told, part.outcome.detail))) for part in missed]
        detail = f"{len(missed)} of {len(parts)} parts not measured: {_listed(told)}"
    elif missed:
        detail = chosen.detail or ""
    else:
        others = [part.told for part in parts if part.outcome.status != status]
        detail = "; ".join(filter(None, (chosen.detail, _listed(others))))
    places = {part.place for part in parts}
    place = next(iter(places)) if len(places) == 1 else _common_place([part.place for part in parts])
    return place, status, chosen.reason, detail or None


def _listed(told: Sequence[str]) -> str:
    """What is told of several parts, each once, the first few."""
    names = list(dict.fromkeys(told))
    return "; ".join(names[:TOLD]) + (f" and {len(names) - TOLD} more" if len(names) > TOLD else "")


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
