"""A list, a glob or a tag -> the pairs to audit, and one job's share of them.

Everything here happens before the first download: a wrong name is an error of the request, not of
one pair.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadow.errors import ShadowError, UsageError
from shadow.files import read_start
from shadow.targets.families import (
    Family,
    Pair,
    find_pairs,
    given_pair,
    is_glob,
    load_families,
    pairs_of_references,
)
from shadow.targets.references import MAX_ENTRIES, ONE_A_LINE, is_reference, one_target
from shadow.text import short

# other names are told apart by how the list begins
YAML = (".yaml", ".yml", ".json")
PLAIN = (".txt", ".list")
MAX_BYTES = 1_000_000
MAX_SHARDS = 10_000
YAML_ENTRY = (
    "write `- TARGET`, or `- {base: REF, tuned: REF}` with or without `name: FAMILY:BASE..TUNED`,"
    " for each entry"
)


@dataclass(frozen=True)
class ListEntry:
    """One entry of a list."""

    where: str  # `FILE:LINE`; empty for a target of the command
    names: str | Pair  # A target, or a pair that was given by its checkpoints


@dataclass(frozen=True)
class Share:
    """The share of one of several jobs of a list."""

    number: int = 1  # from 1 to of
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class Selection:
    """A selection of pairs."""

    pairs: tuple[Pair, ...]  # every pair once, in the order of the request
    own: tuple[Pair, ...]  # those of them that this shard is to audit
    shard: Share = Share()
    is_list: bool = False
    """Whether more than exact names were given, so that an index belongs to it."""

    @property
    def digest(self) -> str:
        """A sha256 of the pairs of the whole list in any order, equal for shards of one list."""
        names = sorted((pair.family, pair.name) for pair in self.pairs)
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def select(
    targets: Sequence[str] = (),
    given: Sequence[Pair] = (),
    registry: Path | None = None,
    listed: str | None = None,
    shard: str | None = None,
) -> Selection:
    """Find the pairs that targets and a list (a file, or `-` for standard input) name; given: pairs
    themselves.

    Targets may be checkpoints instead of families: two are a pair, and one of the Hub is looked up
    in the registry. A pair of several entries is audited once. Raises UsageError for an invalid
    list, glob or shard, and ShadowError for an exact target that the registry does not know.
    """
    shard_of = Share()
    if shard is not None:
        shard_of = parse_shard(shard)
    listing: list[ListEntry] = []
    if listed is not None:
        listing = read_list(listed)
        if not listing:
            raise UsageError(f"{shown(listed)}: the list names nothing", ONE_A_LINE)
    typed = any(map(is_reference, targets))
    entries: dict[ListEntry, None] = {}
    if not typed:
        entries = dict.fromkeys(ListEntry("", target) for target in targets)
    entries |= dict.fromkeys(listing)
    is_named = any(isinstance(entry.names, str) for entry in entries)
    families: dict[str, Family] = {}
    if is_named or typed:
        families = load_families(registry)
    lines = dict.fromkeys(given, "")  # where a list names a pair first
    if typed:
        lines |= dict.fromkeys(pairs_of_references(targets, families), "")
    look_up = functools.cache(lambda target: find_pairs(target, families))
    for entry in entries:
        with _asked(entry):
            named = (entry.names,) if isinstance(entry.names, Pair) else look_up(entry.names)
        for pair in named:
            lines.setdefault(pair, entry.where)
    first: dict[str, str] = {}
    for pair, line in lines.items():  # two pairs of one name would be one row and one folder
        if (name := pair.full_name) in first:
            fault = f"different pairs are called {short(name)}"
            if line:
                fault = f"{line}: {fault}"
            hint = "rename one of them"
            if first[name]:
                hint += f"; it is also at {first[name]}"
            raise UsageError(fault, hint)
        first[name] = line
    pairs = tuple(lines)
    is_list = listed is not None or shard is not None
    is_list |= not typed and any(map(is_glob, targets))  # a folder may be called a[1]
    return Selection(pairs, share(pairs, shard_of), shard_of, is_list)


@contextlib.contextmanager
def _asked(entry: ListEntry | None = None) -> Iterator[None]:
    """Turn an error of a list or a glob into one of the request that names its position."""
    try:
        yield
    except ShadowError as error:
        message = error.message
        if entry is not None:
            if entry.where:
                message = f"{entry.where}: {message}"
            elif isinstance(entry.names, str) and not is_glob(entry.names):
                raise
        raise UsageError(message, error.hint) from error


def shown(listed: str) -> str:
    """The name of a list in messages: its file as given, or standard input for `-`."""
    if listed == "-":
        return "standard input"
    return listed


def read_list(listed: str) -> list[ListEntry]:
    """Read the entries of a list in order: YAML (a list of targets or mappings), or one target a
    line. Raises UsageError, with the line, for anything that is not such a list.
    """
    name = shown(listed)
    try:
        if listed == "-" and sys.stdin is not None:
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        elif (content := read_start(Path(listed), MAX_BYTES + 1)) is not None:
            raw = content
        else:
            Path(listed).stat()
            raise ValueError("not a regular file")
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{name}: {why}", "--list takes a file, or -") from error
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{name}: larger than {MAX_BYTES:,} bytes", "split it")
    folder = Path(listed).absolute().parent
    suffix = Path(listed).suffix.lower()
    if listed == "-":
        folder = Path.cwd()
    lines = (line.strip() for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines())
    begins = next((line[:1] for line in lines if line and line[:1] != b"#"), b"x")
    is_yaml = suffix in YAML
    if not is_yaml and suffix not in PLAIN:
        is_yaml = begins in b"-[{"
    entries = _yaml_entries(name, raw, folder) if is_yaml else _plain_entries(name, raw)
    if len(entries) > MAX_ENTRIES:
        raise UsageError(f"{name}: more than {MAX_ENTRIES:,} entries", "split it")
    return entries


def _plain_entries(name: str, raw: bytes) -> list[ListEntry]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(10) + 1
        raise UsageError(f"{name}:{number}: not UTF-8", ONE_A_LINE) from error
    entries = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if target := re.sub(r"(^|\s)#.*", "", line, flags=re.DOTALL).strip():
            entry = ListEntry(f"{name}:{number}", target)
            with _asked(entry):
                one_target(target)
            entries.append(entry)
    return entries


def _yaml_entries(name: str, raw: bytes, folder: Path) -> list[ListEntry]:
    from shadow.targets.checked import form_of
    from shadow.targets.forms import ListForm, TargetForm

    with _asked():
        form, lines = form_of(ListForm, raw, name, hint=YAML_ENTRY, folder=folder, empty=[])
    entries = []
    for index, entry in enumerate(form.root):
        names: str | Pair
        if isinstance(entry, TargetForm):
            names = entry.target
        else:
            names = given_pair(entry.base, entry.tuned, entry.name)
        entries.append(ListEntry(f"{name}:{lines[index,]}", names))
    return entries


def parse_shard(text: str) -> Share:
    """Parse `2/4`: the second of four."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
    if not match or not int(match[1]) <= int(match[2]) <= MAX_SHARDS:
        hint = f"write 1/4 to 4/4; at most {MAX_SHARDS:,}"
        raise UsageError(f"{text[:40]!r} is not a shard", hint)
    return Share(int(match[1]), int(match[2]))


def share(pairs: Sequence[Pair], shard: Share) -> tuple[Pair, ...]:
    """The pairs of one shard, in order. Every pair is in exactly one of the shards.

    Families are put in the order of a hash of their names, so that large models mix with small
    ones, and split into runs of equally many pairs. An additional family moves only those next to
    each split. The pairs of one family stay together, since they share checkpoints.
    """
    counts = Counter(pair.family for pair in pairs)
    number = {}
    before = 0
    for family in sorted(
        counts,
        key=lambda name: (hashlib.sha256(name.encode(errors="surrogatepass")).digest(), name),
    ):
        middle = 2 * before + counts[family]  # of the family's run, in half pairs
        number[family] = middle * shard.of // (2 * len(pairs)) + 1
        before += counts[family]
    return tuple(pair for pair in pairs if number[pair.family] == shard.number)
