"""The outcomes of an unfinished audit: `.partial/journal.jsonl`, safe against kills at any time."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal
from zlib import crc32

import numpy as np

from shadow.errors import BusyError, ShadowError
from shadow.files import PARTIAL, open_alone, remove_empty, writing
from shadow.reasons import Status
from shadow.reports.columns import DELTA, ERRORS, SPECTRAL, null_if_undefined
from shadow.reports.folders import put_in_place
from shadow.reports.provenance import ReportMetadata, Side
from shadow.spectra.measurement import Cast, Measurement


@dataclass(frozen=True)
class MatrixOutcome:
    """The outcome of one pair of matrices or vectors."""

    status: Status
    reason: str | None = None
    """A word of `shadow.reasons`: why it was skipped, or measured alone."""
    detail: str | None = None
    key: str = ""
    """Of its pair."""
    delta_norm: float | None = None
    """Frobenius norm; None where there is no base or nothing finite."""
    base_norm: float | None = None
    """Frobenius norm; None likewise."""
    measurements: tuple[Measurement, ...] = ()
    """Three of a measured matrix pair (base, tuned, delta), one of a matrix without a base, none
    otherwise.
    """
    cast: Cast | Literal["neither"] | None = None
    """Which side is the other cast to its format, in every entry; None where they are equal, or
    were not compared.
    """
    verified: tuple[bool | None, bool | None] = (None, None)
    """Whether the bytes of base and tuned side agree with a checksum of the Hub; None: a folder."""
    zero: Side | None = None
    """The side whose every entry is 0 where the other's are not."""
    nonfinite: tuple[Side, ...] = ()
    """The sides with NaN or infinite entries."""
    seconds: float = field(default=0.0, compare=False)
    """Of one worker."""
    checksums: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By side and name: of tensors that were summed up with it (see `shadow.run.plan`)."""

    @property
    def deltas(self) -> tuple[Measurement, ...]:
        """The measurement of the delta, if there is one."""
        return tuple(each for each in self.measurements if each.subject == "delta")


JOURNAL = "journal.jsonl"
# of a report's folder: each part of an audit that is measured in parts has a folder there
PARTS = f"{PARTIAL}/parts"


@dataclass(frozen=True)
class Fetched:
    """A shard that an unfinished audit fetched from the Hub."""

    repo: str
    """`org/name`."""
    commit: str
    """40 hexadecimal digits."""
    path: str
    """The shard's path in the repository."""
    checksum: str | None
    """Its sha256; None where the Hub has none."""
    keep: bool
    """Whether it was to stay in the Hub's cache."""


def _fetched(journal: IO[bytes]) -> list[Fetched]:
    """The shards in a journal that can be trusted.

    A journal may come from anywhere, and what it names is removed: no path leaves its folder.
    """
    journal.seek(0)
    shards = []
    for line in journal:
        if not line.startswith(b'{"fetched"'):
            continue
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            shard = Fetched(**json.loads(line)["fetched"])
            if _is_trusted(shard):
                shards.append(shard)
    return shards


def _is_trusted(shard: Fetched) -> bool:
    texts = (shard.repo, shard.commit, shard.path, shard.checksum or "")
    if not all(isinstance(text, str) for text in texts):
        return False
    if ":" in shard.path or not re.fullmatch(r"[0-9a-f]{40}", shard.commit):
        return False
    return {"", ".", ".."}.isdisjoint(re.split(r"[/\\]", shard.path))


class _Lines(Mapping[str, MatrixOutcome]):
    """Outcomes by key, each read from its line on demand: 60,000 of them would take gigabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[str, int] = {}  # by key: where its line begins

    def put(self, key: str, start: int) -> None:
        self._places[sys.intern(key)] = start

    def line(self, key: str) -> bytes:
        self._file.seek(self._places[key])
        return self._file.readline()

    def __getitem__(self, key: str) -> MatrixOutcome:
        return _outcome(self.line(key))

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Journal:
    """Finished outcomes of an unfinished audit, safe against kills at any moment.

    One process writes at a time. fetched: shards that an earlier run fetched, even of another
    identity; other is then that identity.
    """

    def __init__(self, folder: Path, identity: ReportMetadata) -> None:
        self.folder = folder
        self.identity = identity
        self.fetched: list[Fetched] = []
        self.other: ReportMetadata | None = None  # as its first line has it, which may be broken
        with writing(folder):
            self._file = open_alone(folder / PARTIAL / JOURNAL)
        self._outcomes = _Lines(self._file)
        with writing(folder):
            self.fetched = _fetched(self._file)
            size = self._read()
            self._file.truncate(size)
            if size == 0:
                self._write(identity)
                for fetched in self.fetched:
                    self._write({"fetched": asdict(fetched)})

    def _read(self) -> int:
        """Read what belongs to the identity; return how many bytes of the file are valid."""
        self._file.seek(0)
        size = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                if size == 0:
                    first: Any = json.loads(line)
                    if first != self.identity:
                        self.other = first or None
                        return 0
                elif not line.startswith(b'{"fetched"'):
                    self._outcomes.put(_outcome(line).key, size)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                break  # cut in the middle of a line
            size += len(line)
        return size

    @property
    def outcomes(self) -> Mapping[str, MatrixOutcome]:
        """Outcomes by key, each read from the disk on demand while the journal is open."""
        return self._outcomes

    @property
    def is_empty(self) -> bool:
        """True if there is nothing that a later run could continue or tidy up.

        The file is read: an interrupt may fall between a line and its entry in outcomes.
        """
        if self.outcomes or self.fetched or (self.folder / PARTS).exists():
            return False
        with contextlib.suppress(OSError):  # what does not fit on the disk is no line
            self._file.flush()
        return (self.folder / PARTIAL / JOURNAL).read_bytes().count(b"\n") < 2

    def take_over(self, part: Path) -> None:
        """Move the outcomes of a part of this audit here, and remove its folder.

        Raises BusyError if another process works on the part.
        """
        with writing(self.folder):
            journal = Journal(part, self.identity)
            try:
                for key in journal._outcomes:
                    if key not in self._outcomes:
                        self._add(key, journal._outcomes.line(key))
                for fetched in journal.fetched:
                    self.note_fetched(fetched)
            finally:
                journal.close()
            shutil.rmtree(part, ignore_errors=True)
            with contextlib.suppress(OSError):
                part.parent.rmdir()

    def take_over_parts(self) -> None:
        """Move the outcomes that the parts of an earlier run left."""
        for part in sorted((self.folder / PARTS).glob("*")):
            if part.is_dir() and not part.is_symlink():
                self.take_over(part)

    def note_fetched(self, fetched: Fetched) -> None:
        """Note a shard that is about to be fetched."""
        if fetched not in self.fetched:
            with writing(self.folder):
                self._write({"fetched": asdict(fetched)})
            self.fetched.append(fetched)

    def add(self, outcome: MatrixOutcome) -> None:
        """Write an outcome to the disk before returning. Raises ShadowError."""
        with writing(self.folder):
            self._add(outcome.key, _line(outcome))

    def _add(self, key: str, line: bytes) -> None:
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        self._outcomes.put(key, start)

    def _write(self, entry: Mapping[str, object]) -> None:
        line = json.dumps(entry, allow_nan=False) + "\n"
        self._file.write(line.encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file and release its lock; the file stays."""
        with contextlib.suppress(OSError):  # what could not be written has been told already
            self._file.close()

    def remove(self) -> None:
        """Remove the journal of a finished audit, whose files have everything."""
        self.close()
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)


def remove_journal_of(folder: Path, identity: ReportMetadata) -> None:
    """Remove the journal of a killed audit whose report is written; leave those of others."""
    path = folder / PARTIAL / JOURNAL
    with contextlib.suppress(OSError, ValueError, RecursionError, ShadowError):
        if path.is_file():
            with open_alone(path) as file:
                file.seek(0)
                if json.loads(file.readline()) == identity:
                    path.unlink()


def _line(outcome: MatrixOutcome) -> bytes:
    """Write an outcome as a line of JSON: the CRC-32 of its entry in 8 hexadecimal digits, and the
    entry.
    """
    measurements = []
    for measurement in outcome.measurements:
        values = {name: null_if_undefined(value) for name, value in measurement.values.items()}
        content = measurement.sigma.astype("<f8").tobytes()
        sigma = base64.b64encode(content).decode()
        measurements.append({**vars(measurement), "values": values, "sigma": sigma})
    stored = {**vars(outcome), "measurements": measurements}
    entry = json.dumps(stored, allow_nan=False).encode()
    return b'["%08x", %b]\n' % (crc32(entry), entry)


def _outcome(line: bytes) -> MatrixOutcome:
    """Read the outcome in a line. Raises ValueError if the line is not as it was written."""
    checksum = line[2:10]
    content = line[13:-2]
    if not line.endswith(b"]\n") or int(checksum, 16) != crc32(content):
        raise ValueError
    entry = json.loads(content)
    for types, value in _typed(entry):
        if type(value) not in types:
            raise ValueError
    measurements = []
    for stored in entry["measurements"]:
        numbers = base64.b64decode(stored["sigma"])
        sigma = np.frombuffer(numbers, dtype="<f8")
        measurements.append(Measurement(**{**stored, "sigma": sigma}))
    entry["measurements"] = tuple(measurements)
    for name in ("key", "status"):
        entry[name] = sys.intern(entry[name])  # one text for all that have it
    for name in ("verified", "nonfinite"):
        entry[name] = tuple(entry[name])
    return MatrixOutcome(**entry)


Types = tuple[type, ...]
TEXT: Types = (str,)
NUMBER: Types = (int, float)
NULL: Types = (type(None),)
OF_COLUMNS = {"string": TEXT, "int": (int,), "float": NUMBER}
COLUMNS = {column.name: OF_COLUMNS[column.type] + NULL for column in (*SPECTRAL, *DELTA, *ERRORS)}


def _typed(entry: Any) -> Iterator[tuple[Types, object]]:
    """Yield the values of an entry with their allowed types, as another program may have written
    the line.
    """
    for name in ("key", "status"):
        yield TEXT, entry[name]
    for name in ("reason", "detail", "cast", "zero"):
        yield TEXT + NULL, entry[name]
    for name in ("delta_norm", "base_norm"):
        yield NUMBER + NULL, entry[name]
    for side in entry["nonfinite"]:
        yield TEXT, side
    yield NUMBER, entry["seconds"]
    base, tuned = entry["verified"]
    yield (bool, *NULL), base
    yield (bool, *NULL), tuned
    for of_side in entry["checksums"].values():
        for checksum in of_side.values():
            yield TEXT, checksum
    for measurement in entry["measurements"]:
        yield TEXT, measurement["subject"]
        yield TEXT + NULL, measurement["precision"]
        yield NUMBER + NULL, measurement["values"]["frobenius_norm"]
        for name, value in measurement["values"].items():
            yield COLUMNS[name], value


def remove_unfinished(output: Path) -> Iterator[tuple[Path, list[Fetched] | None]]:
    """Remove the `.partial` folders of audits below output, one by one.

    Yields the folder of each pair and the shards that its audit fetched; None if another process
    writes there. A report that was about to be put in place is put there.
    """
    if not output.is_dir():
        raise ShadowError(f"no such folder: {output}", "name the folder given to `shadow audit -o`")
    folders: list[Path] = []
    for depth in ("", "*/", "*/*/"):
        folders += output.glob(f"{depth}{PARTIAL}")
    for partial in sorted(folders):
        if partial.is_symlink() or not (partial / JOURNAL).is_file():
            continue  # not ours
        try:
            fetched = _removed(partial)
        except BusyError:
            yield partial.parent, None
            continue
        yield partial.parent, fetched
        remove_empty(partial.parent, output)


def _removed(partial: Path) -> list[Fetched]:
    """Remove the unfinished work of an audit; return the shards that it had fetched."""
    folder = partial.parent
    with writing(folder), open_alone(partial / JOURNAL) as file:
        fetched = _fetched(file)
        for part in (folder / PARTS).glob("*"):
            path = part / PARTIAL / JOURNAL
            if not part.is_symlink() and path.is_file():
                with open_alone(path) as journal:
                    fetched += _fetched(journal)
        put_in_place(folder)
        shutil.rmtree(partial)
    return fetched
