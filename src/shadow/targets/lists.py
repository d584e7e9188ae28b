"""What a list, a glob or a tag names -> the pairs to audit, and one job's share of them.

Everything here happens before the first byte moves: a wrong name is a fault of the request, not of
one pair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from shadow.errors import ShadowError, UsageError
from shadow.storage import as_given, is_copy
from shadow.targets.families import (
    Family,
    Pair,
    filter_families,
    find_pairs,
    given_pair,
    load_families,
    short,
)
from shadow.targets.plain_yaml import KeyPath, NotPlainError, Tree, read_plain
from shadow.targets.references import parse_reference
from shadow.targets.typed import is_reference, pairs_of_references, under_name
from shadow.text import nearest

ENTRY_KEYS = {
    "target": "A family, family:from..to, or a glob over these.",
    "base": "A checkpoint, as --base takes it; a folder is relative to the list file.",
    "tuned": "The model tuned from it.",
    "name": "What the pair of base and tuned is called, and so its folder: family:base..tuned.",
}
# other names are told apart by how the list begins
YAML = (".yaml", ".yml", ".json")
PLAIN = (".txt", ".list")
MAX_BYTES, MAX_ENTRIES = 1_000_000, 10_000
MAX_TARGET = 300  # characters; a family's name has 96 at most
MAX_SHARDS = 10_000
STREAMS = "/dev", "/proc"  # where the names of pipes lie: a list there has no folder of its own
YAML_ENTRY = (
    "write `- TARGET`, or `- {base: REF, tuned: REF}` with or without `name: FAMILY:BASE..TUNED`,"
    " for each entry"
)
PAIR_IN_YAML = "write {base: REF, tuned: REF} in a YAML list"
ONE_A_LINE = "one target a line: a family, family:from..to or a glob"


@dataclass(frozen=True)
class ListEntry:
    """One entry of a list."""

    where: str
    """`FILE:LINE`; empty for a target of the command."""

    names: str | Pair
    """A target, or a pair that was given by its checkpoints."""


@dataclass(frozen=True)
class Share:
    """One of several jobs that share a list."""

    number: int = 1
    """From 1 to of."""

    of: int = 1
    """How many jobs there are, 1 or more."""

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class Selection:
    """What was asked for."""

    pairs: tuple[Pair, ...]
    """Every pair once, in the order of the request."""

    own: tuple[Pair, ...]
    """Those of them that this shard is to audit."""

    shard: Share = Share()
    """Which share that is."""

    is_list: bool = False
    """Was it named by more than exact names, so that an index belongs to it?"""

    passed_over: tuple[str, ...] = ()
    """Matching families without a pair."""

    @property
    def digest(self) -> str:
        """A sha256 of the pairs of the whole list in any order: equal for shards of one list."""
        names = sorted((pair.family, pair.name) for pair in self.pairs)
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def select(
    targets: Sequence[str] = (),
    given: Sequence[Pair] = (),
    registry: Path | None = None,
    listed: str | None = None,
    tags: Sequence[str] = (),
    shard: str | None = None,
) -> Selection:
    """The pairs that targets, a list (a file, or `-` for standard input) and tags name; given are
    pairs as they are.

    Targets may be checkpoints instead of families: two are a pair, one of the Hub is looked up
    (shadow.targets.typed). Tags narrow what the rest names; without any name they choose from the
    whole registry. What several entries name is audited once. Raises UsageError for anything wrong
    with a list, a glob, a tag or a shard, and ShadowError for an exact target that the registry
    does not know.
    """
    shard_of = parse_shard(shard) if shard is not None else Share()
    listing: list[ListEntry] = []
    if listed is not None:
        listing = read_list(listed)
        if not listing:
            raise UsageError(f"{shown(listed)}: the list names nothing", ONE_A_LINE)
    typed = any(map(is_reference, targets))
    if not typed:
        listing = [*(ListEntry("", target) for target in targets), *listing]
    entries = dict.fromkeys(listing)
    named = [entry for entry in entries if isinstance(entry.names, str)]
    families: Mapping[str, Family] = {}
    if named or tags or typed:
        families = load_families(registry)
    chosen: dict[Pair, None] = dict.fromkeys(given)
    lines: dict[Pair, str] = {}  # where a list names it first
    if typed:
        chosen |= dict.fromkeys(pairs_of_references(targets, families))
    passed: dict[str, None] = {}
    looked_up: dict[str, Matches] = {}
    for entry in entries:
        if isinstance(entry.names, Pair):
            chosen[entry.names] = None
            lines.setdefault(entry.names, entry.where)
            continue
        if entry.names not in looked_up:
            with _asked(entry):
                looked_up[entry.names] = find_targets(entry.names, families)
        chosen |= dict.fromkeys(looked_up[entry.names].pairs)
        for pair in looked_up[entry.names].pairs:
            lines.setdefault(pair, entry.where)
        passed |= dict.fromkeys(looked_up[entry.names].without_pairs)
    pairs = tuple(chosen)
    if tags:
        if given or len(named) < len(entries):
            raise UsageError(
                "--tag is about families of the registry",
                "a pair given by its checkpoints has no tags",
            )
        with _asked():
            tagged = filter_families(families, tags=tags)
        pairs = _tagged(pairs, tagged, tags=tags, named=bool(named))
        passed = {name: None for name in _pairless(tagged) if name in passed or not named}
    _require_names(pairs, lines)
    is_list = listed is not None or bool(tags) or shard is not None or any(map(is_glob, targets))
    return Selection(
        pairs=pairs,
        own=share(pairs, shard_of),
        shard=shard_of,
        is_list=is_list,
        passed_over=tuple(passed),
    )


def _require_names(pairs: Iterable[Pair], lines: Mapping[Pair, str]) -> None:
    """Two pairs of one name would be one row and one folder. lines: where a list has them."""
    of_name: dict[str, list[Pair]] = {}
    for pair in pairs:
        of_name.setdefault(pair.full_name, []).append(pair)
    for name, alike in of_name.items():
        if len(alike) > 1:
            fault = f"{len(alike)} different pairs are called {short(name)}"
            hint = "rename one of them"
            places = [where for pair in alike if (where := lines.get(pair))]
            if places:
                fault = f"{places[-1]}: {fault}"
            if places[:-1]:
                hint += f"; it is also at {', '.join(places[:-1])}"
            raise UsageError(fault, hint)


@contextlib.contextmanager
def _asked(entry: ListEntry | None = None) -> Iterator[None]:
    """A fault of a list, a glob or a tag is one of the request, and says where that stands."""
    try:
        yield
    except ShadowError as error:
        if entry is not None and entry.where:
            raise UsageError(f"{entry.where}: {error.message}", error.hint) from error
        if entry is not None and isinstance(entry.names, str) and not is_glob(entry.names):
            raise
        raise UsageError(error.message, error.hint) from error


@dataclass(frozen=True)
class Matches:
    """What a target names."""

    pairs: tuple[Pair, ...]
    """The pairs, in the order of the registry."""

    without_pairs: tuple[str, ...] = ()
    """The families that a glob matches and that have nothing to compare."""


def is_glob(target: str) -> bool:
    """Does a target hold *, ? or [?"""
    return any(char in target for char in "*?[")


def find_targets(target: str, families: Mapping[str, Family]) -> Matches:
    """The pairs that `family`, `family:from..to` or a glob over these names."""
    name, colon, pattern = target.partition(":")
    if not is_glob(target):
        return Matches(find_pairs(target, families))
    matching = [family for family in families.values() if fnmatchcase(family.name, name)]
    if not matching:
        hint = nearest(name.strip("*?"), families) or "`shadow families` lists them"
        raise ShadowError(f"no family matches {short(name)}", hint)
    every = [pair for family in matching for pair in family.pairs]
    if not every:
        raise ShadowError(
            f"no family that matches {short(name)} has a pair to compare", matching[0].note
        )
    if not colon:
        return Matches(tuple(every), tuple(_pairless(matching)))
    pairs = tuple(pair for pair in every if fnmatchcase(pair.name, pattern))
    if not pairs:
        known = list(dict.fromkeys(pair.name for pair in every))
        hint = nearest(pattern, known) or f"they have: {', '.join(known[:5])}"
        raise ShadowError(f"no family that matches {short(name)} has a pair {short(pattern)}", hint)
    return Matches(pairs)


def _pairless(families: Iterable[Family]) -> list[str]:
    return [family.name for family in families if not family.pairs]


def _tagged(
    pairs: tuple[Pair, ...], tagged: Sequence[Family], tags: Sequence[str], named: bool
) -> tuple[Pair, ...]:
    """Those of the pairs that are of the tagged families; all of these where nothing was named."""
    names = {family.name for family in tagged}
    noun = "tags" if len(tags) > 1 else "tag"
    which = f"the {noun} {' and '.join(map(short, tags))}"
    if named:
        chosen = [pair for pair in pairs if pair.family in names]
        fault = f"none of what was named has {which}"
    else:
        chosen = [pair for family in tagged for pair in family.pairs]
        fault = f"no family with {which} has a pair to compare"
    if not chosen:
        raise UsageError(fault, "`shadow families --tag` lists those that do")
    return tuple(chosen)


def shown(listed: str) -> str:
    """What to call a list in a message: its file as it was given, or standard input for `-`."""
    if listed == "-":
        return "standard input"
    return as_given(listed)


def read_list(listed: str) -> list[ListEntry]:
    """The entries of a list, in its order: YAML (a list of targets or mappings), or one target a
    line.

    Raises UsageError, which names the line, for whatever is not such a list.
    """
    name = shown(listed)
    try:
        if listed == "-" and sys.stdin is None:
            raise UsageError(f"{name} is closed", "--list takes a file, or -")
        if listed == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(listed).open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise UsageError(
            f"{name}: {getattr(error, 'strerror', None) or error}", "--list takes a file, or -"
        ) from error
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{name}: larger than {MAX_BYTES:,} bytes", "split it")
    folder = Path(listed).absolute().parent
    if listed == "-" or is_copy(listed) or any(folder.is_relative_to(place) for place in STREAMS):
        folder = Path.cwd()
    if is_yaml(listed, raw):
        entries = list(_yaml_entries(name, raw, folder))
    else:
        entries = list(_plain_entries(name, raw))
    if len(entries) > MAX_ENTRIES:
        raise UsageError(f"{name}: more than {MAX_ENTRIES:,} entries", "split it")
    return entries


def is_yaml(listed: str, raw: bytes) -> bool:
    """By the end of the file's name; if that says nothing, by the first character that counts."""
    suffix = Path(listed).suffix.lower()
    if suffix in (*YAML, *PLAIN):
        return suffix in YAML
    lines = (line.strip() for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines())
    return next((line for line in lines if line and line[:1] != b"#"), b"").startswith(
        (b"-", b"[", b"{")
    )


def _plain_entries(name: str, raw: bytes) -> Iterator[ListEntry]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name}:{raw[: error.start].count(10) + 1}: not UTF-8", ONE_A_LINE
        ) from error
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        target = re.sub(r"(^|\s)#.*", "", line, flags=re.DOTALL).strip()
        if target:
            yield ListEntry(f"{name}:{number}", _checked(f"{name}:{number}", target))


def _checked(where: str, target: str) -> str:
    if len(target) > MAX_TARGET or re.search(r"\s", target) or not target.isprintable():
        raise UsageError(f"{where}: {short(target)} is not a target", ONE_A_LINE)
    if is_reference(target):
        raise UsageError(
            f"{where}: {short(target)} is one checkpoint, and a pair has two", PAIR_IN_YAML
        )
    return target


def _yaml_entries(name: str, raw: bytes, folder: Path) -> Iterator[ListEntry]:
    try:
        tree, lines = read_plain(raw)
    except NotPlainError as error:
        line = f":{error.line}" if error.line else ""
        raise UsageError(f"{name}{line}: {error.message}", YAML_ENTRY) from error
    if tree == "":
        return
    if not isinstance(tree, list):
        raise UsageError(f"{name}: not a list", YAML_ENTRY)
    yield from entries_of(name, tree, lines=lines, folder=folder)


def entries_of(
    name: str, items: Sequence[Tree], lines: Mapping[KeyPath, int], folder: Path, at: KeyPath = ()
) -> Iterator[ListEntry]:
    """The entries of a YAML list that stands at a path of the file called name; folders are
    relative to folder.

    Raises UsageError, which names the line.
    """
    for index, item in enumerate(items):
        where = f"{name}:{lines[*at, index]}"
        if isinstance(item, dict):
            keys = {key: lines[*at, index, key] for key in item}
            yield ListEntry(where, _mapped(name, where, item=item, lines=keys, folder=folder))
        elif isinstance(item, str) and item:
            yield ListEntry(where, _checked(where, item))
        else:
            raise UsageError(
                f"{where}: {short(item)} is not a target",
                "write a name, or {base: REF, tuned: REF}",
            )


def _mapped(
    name: str, where: str, item: dict[str, Tree], lines: Mapping[str, int], folder: Path
) -> str | Pair:
    """`{target: ...}`, or `{base: ..., tuned: ...}` with or without a name."""
    for key, value in item.items():
        if key not in ENTRY_KEYS:
            hint = nearest(key, ENTRY_KEYS)
            if hint is None:
                hint = f"it may have {', '.join(ENTRY_KEYS)}; options go with the command"
            if len(item) == 1 and _is_stages(value) and len(f"{key}{value}") <= 80:
                hint = f"write {key}:{value}, without a space"
            raise UsageError(f"{name}:{lines[key]}: unknown key {short(key)} in an entry", hint)
        if not isinstance(value, str) or not value:
            raise UsageError(f"{name}:{lines[key]}: {key!r} is not text", "write a name")
    texts = {key: value for key, value in item.items() if isinstance(value, str)}
    if texts.keys() == {"target"}:
        return _checked(where, texts["target"])
    if texts.keys() - {"name"} != {"base", "tuned"}:
        absent = [key for key in ("base", "tuned") if key not in texts]
        fault = f"an entry has {' and '.join(map(repr, texts))}"
        if "target" not in texts:
            fault = f"an entry has no {' and no '.join(map(repr, absent))}"
        hint = "write a target alone, or base and tuned together, and a name if you like"
        raise UsageError(f"{where}: {fault}", hint)
    references = {}
    for key in ("base", "tuned"):
        with _asked(ListEntry(f"{name}:{lines[key]}", "")):
            references[key] = parse_reference(texts[key], folder)
    pair = given_pair(references["base"], references["tuned"])
    if "name" not in texts:
        return pair
    with _asked(ListEntry(f"{name}:{lines['name']}", "")):
        return under_name(pair, texts["name"])


def _is_stages(value: Tree) -> bool:
    """Is it text such as `base..sft`?"""
    return isinstance(value, str) and ".." in value


def parse_shard(text: str) -> Share:
    """`2/4`: the second of four."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
    if not match or not int(match[1]) <= int(match[2]) <= MAX_SHARDS:
        raise UsageError(
            f"{text[:40]!r} is not a shard", f"write 1/4 to 4/4; at most {MAX_SHARDS:,}"
        )
    return Share(int(match[1]), int(match[2]))


def share(pairs: Sequence[Pair], shard: Share) -> tuple[Pair, ...]:
    """The pairs of one shard, in their order. Every pair is in exactly one of the shards.

    Families are put in the order of a hash of their names and cut into runs of equally many pairs.
    So a shard has as many pairs as the mean, up to those of one family: the hash modulo n would
    leave the largest of 8 shards of 90 families 40 % above it. A family more moves, at each cut,
    only those beside it, where its place in the list modulo n would move nearly all. The pairs of
    one family stay together, since they share checkpoints. And large models mix with small ones,
    which stand together in the order of names.
    """
    counts = Counter(pair.family for pair in pairs)
    number, before = {}, 0
    for family in sorted(
        counts,
        key=lambda name: (hashlib.sha256(name.encode(errors="surrogatepass")).digest(), name),
    ):
        middle = 2 * before + counts[family]  # of the family's run, in half pairs
        number[family] = middle * shard.of // (2 * len(pairs)) + 1
        before += counts[family]
    return tuple(pair for pair in pairs if number[pair.family] == shard.number)
