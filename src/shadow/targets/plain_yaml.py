"""YAML of mappings, lists and text, nothing else, with the line of every entry.

No numbers, tags or aliases: nothing to misread, to run or to blow up. Read from the parser's
events, not from its nodes, so that nothing is built before it was found harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from shadow.errors import ShadowError

# libyaml's parser, where PyYAML was built with it: the 95 shipped families take 10 ms instead of 37
FAST: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
MAX_DEPTH = 16  # the deepest registry file needs 5

Tree = dict[str, "Tree"] | list["Tree"] | str
KeyPath = tuple[str | int, ...]  # keys and list indices from the top of the file


class NotPlainError(Exception):
    """A text that is no such YAML; the line is 1-based, None where it is not known."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.message, self.line = message, line


def plain_tree(raw: bytes, file: str, hint: str) -> tuple[Tree, dict[KeyPath, int]]:
    """`read_plain` of a file; its faults name file and line. hint: where the format is told."""
    try:
        return read_plain(raw)
    except NotPlainError as error:
        line = f":{error.line}" if error.line else ""
        raise ShadowError(f"{file}{line}: {error.message}", hint) from error


def read_plain(raw: bytes) -> tuple[Tree, dict[KeyPath, int]]:
    """What a file holds ("" when it is empty), and the line of every mapping key and list item by
    its path.

    Raises NotPlainError.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotPlainError("not UTF-8", raw[: error.start].count(b"\n") + 1) from error
    if unprintable := yaml.reader.Reader.NON_PRINTABLE.search(text):
        message = f"not YAML: the character U+{ord(unprintable[0]):04X}"
        raise NotPlainError(message, text.count("\n", 0, unprintable.start()) + 1)
    try:
        return _parsed(text, FAST)
    except NotPlainError:
        # the parser in Python has the last word: every machine says the same of a fault
        return _parsed(text, yaml.BaseLoader)


def _parsed(text: str, parser: Any) -> tuple[Tree, dict[KeyPath, int]]:
    lines: dict[KeyPath, int] = {}
    tree: Tree | None = None
    try:
        events = yaml.parse(text, parser)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if tree is not None:
                    raise NotPlainError("another document begins here", _line(event))
                tree = _value(next(events), events, path=(), lines=lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise NotPlainError(f"not YAML: {error.problem or error.context}", line) from error
    except (yaml.YAMLError, ValueError) as error:  # an escape of no character is a ValueError
        raise NotPlainError(f"not YAML ({type(error).__name__})", None) from error
    if tree is None:
        return "", lines
    return tree, lines


def _value(
    event: yaml.Event, events: Iterator[yaml.Event], path: KeyPath, lines: dict[KeyPath, int]
) -> Tree:
    """The value that begins with an event; takes the events up to its end."""
    if isinstance(event, yaml.AliasEvent):
        raise NotPlainError("aliases are not allowed here", _line(event))
    assert isinstance(event, yaml.NodeEvent)
    if getattr(event, "tag", None) is not None:
        raise NotPlainError("tags are not allowed here", _line(event))
    if len(path) > MAX_DEPTH:
        raise NotPlainError(f"nested more than {MAX_DEPTH} deep", _line(event))
    if isinstance(event, yaml.ScalarEvent):
        return str(event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Tree] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            place = (*path, len(items))
            lines[place] = _line(event)
            items.append(_value(event, events, path=place, lines=lines))
        return items
    mapping: dict[str, Tree] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _value(event, events, path=path, lines=lines)
        if not isinstance(key, str):
            raise NotPlainError("a key that is not a word", _line(event))
        if key in mapping:
            raise NotPlainError(f"duplicate key {key[:80]!r}", _line(event))
        lines[*path, key] = _line(event)
        mapping[key] = _value(next(events), events, path=(*path, key), lines=lines)
    return mapping


def _line(event: yaml.Event) -> int:
    mark: Any = event.start_mark  # every event of a parser has one
    line: int = mark.line + 1
    return line
