"""YAML files checked by a pydantic model: an invalid file is one error with file, line, key and the
nearest known word.

YAML means mappings, lists and text only: without numbers, tags and aliases there is nothing to
misread, to run or to expand. It is read from the parser's events, not from its nodes, so that
nothing is built before it is known to be harmless.

Import this module only where a file is read: pydantic takes longer to load than the help of a
command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from shadow.errors import ShadowError
from shadow.files import read_given
from shadow.text import nearest, short

Model = TypeVar("Model", bound=BaseModel)
Tree = dict[str, "Tree"] | list["Tree"] | str
KeyPath = tuple[str | int, ...]  # keys and list indices from the top of the file
MAX_FILE = 1_000_000  # bytes
MAX_DEPTH = 16  # the deepest registry file needs 5
# libyaml's parser, where PyYAML was built with it: the 95 shipped families take 10 ms instead of 37
FAST: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

WORDS = {  # by pydantic's name of a fault: what is wrong, and what to write
    "string_type": ("{what} is not text", "put it in quotes"),
    "dataclass_exact_type": ("{what} is not text", "write ./folder, or org/name@revision"),
    "list_type": ("{what} is not a list", "write {key}: [one, two]"),
    "dict_type": ("{what} is not a mapping of names", None),
    "literal_error": ("{what} is {value}", "one of {words}"),
    "string_pattern_mismatch": ("{value} cannot be a name", "letters, digits and `._-` only"),
    "too_short": ("{what} is empty", None),
    "too_long": ("{what} has more than {max_length:,} entries", "split it"),
    "string_too_short": ("{what} is empty", None),
    "string_too_long": ("{what} has more than {max_length:,} characters", "shorten it"),
}


class FaultError(ValueError):
    """An error from a model's own rule. at: position, relative to the entry being checked."""

    def __init__(self, message: str, hint: str | None = None, *at: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.at = at


class Form(BaseModel):
    """A mapping of known keys, which a text may abbreviate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    CALLED: ClassVar[str]  # what such an entry is, for a message
    WRITTEN: ClassVar[str | None] = None  # how it is written, for a hint
    ALSO: ClassVar[tuple[str, ...]] = ()  # keys of other entries that a misspelt one may mean
    TEXT: ClassVar[str] = ""  # the key whose value a text is

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """The keys that it may have, as written."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def of_text(cls, text: str) -> object:
        """The mapping that a text abbreviates; the text itself if it abbreviates none."""
        if cls.TEXT:
            return {cls.TEXT: text}
        return text

    @classmethod
    def check_key(cls, key: str) -> None:
        """Raise FaultError for a key that the entry may not have, whatever its value."""
        known = cls.known()
        if key not in known:
            hint = nearest(key, (*known, *cls.ALSO))
            if not hint:
                hint = f"it may have {', '.join(known)}"
                if cls.WRITTEN:
                    hint += f"; {cls.WRITTEN}"
            raise FaultError(f"unknown key {short(key)}", hint, key)

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        entry = value
        if isinstance(value, str):
            entry = cls.of_text(value)
        if not isinstance(entry, dict):
            hint = cls.WRITTEN or f"it has {', '.join(cls.known())}"
            raise FaultError(f"{short(value)} is not {cls.CALLED}", hint)
        for key in entry:
            cls.check_key(key)
        for name, field in cls.model_fields.items():
            if field.is_required() and (field.alias or name) not in entry:
                raise FaultError(f"{cls.CALLED} has no `{field.alias or name}`", cls.WRITTEN)
        return entry


def by(parse: Callable[[str, Path | None], object]) -> Callable[[Any, ValidationInfo], Any]:
    """Make a validator of texts from a function that raises ShadowError; it gets the folder."""

    def validate(value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return parse(value, info.context)
        except ShadowError as error:
            raise FaultError(error.message, error.hint) from error

    return validate


def read_form(
    model: type[Model], file: Path, *, hint: str, noun: str = ""
) -> tuple[Model, Mapping[KeyPath, int]]:
    """Read a YAML file as a model, with the lines of its entries; an empty file is an empty
    mapping.

    hint: used if nothing better is known. noun: what the top keys of the file name. Raises
    ShadowError.
    """
    raw = read_given(file, MAX_FILE, hint, "split it")
    folder = file.absolute().parent
    return form_of(model, raw, str(file), hint=hint, folder=folder, empty={}, noun=noun)


def form_of(
    model: type[Model],
    raw: bytes,
    file: str,
    *,
    hint: str,
    folder: Path,
    empty: Tree,
    noun: str = "",
) -> tuple[Model, Mapping[KeyPath, int]]:
    """Read the content of a file as a model, like `read_form`.

    folder: that of relative paths. empty: the content of an empty file. Raises ShadowError for the
    first error.
    """
    tree, lines = _plain_tree(raw, file, hint)
    try:
        return model.model_validate(empty if tree == "" else tree, context=folder), lines
    except ValidationError as error:
        faults = [_fault(details, lines) for details in error.errors(include_url=False)]
        path, message, its_hint = min(
            faults,
            key=lambda fault: lines.get(fault[0], 0),
        )
        where = f"{file}: "
        if path:
            where = f"{file}:{lines[path]}: "
            if noun:
                where += f"{noun} {short(path[0])}: "
        raise ShadowError(where + message, its_hint or hint) from error


def _fault(
    details: Mapping[str, Any], lines: Mapping[KeyPath, int]
) -> tuple[KeyPath, str, str | None]:
    """The position of one of pydantic's errors, what is wrong, and what to write."""
    context: Mapping[str, Any] = details.get("ctx", {})
    own = context.get("error")
    steps = details["loc"]
    if isinstance(own, FaultError):
        steps = (*steps, *own.at)
    path: KeyPath = ()
    for step in steps:  # pydantic's own words for its way through a model are no keys
        if (*path, step) in lines:
            path = (*path, step)
    if isinstance(own, FaultError):
        return path, own.message, own.hint
    message, hint = WORDS.get(details["type"], ("{what} cannot be {value}", None))
    value = details["input"]
    key = path[-1] if path else None
    words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    if isinstance(value, str) and (close := nearest(value, words)):
        hint = close
    what = "the file"
    if isinstance(key, str):
        what = f"`{key}`"
    elif path:
        what = short(value)
    if steps[-1:] == ("[key]",) and words:
        message = "unknown key {value}"
    figures = {
        **context,
        "what": what,
        "key": key,
        "value": short(value),
        "words": ", ".join(words),
    }
    return path, message.format(**figures), hint.format(**figures) if hint and path else None


class _NotPlainError(Exception):
    """A text that is not such YAML; the line is 1-based, None if unknown."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


def _plain_tree(raw: bytes, file: str, hint: str) -> tuple[Tree, dict[KeyPath, int]]:
    """Read the content of a file ("" if empty), and the line of every mapping key and list item by
    path. Raises ShadowError.
    """
    try:
        text = raw.decode("utf-8-sig")
        if unprintable := yaml.reader.Reader.NON_PRINTABLE.search(text):
            message = f"not YAML: the character U+{ord(unprintable[0]):04X}"
            raise _NotPlainError(message, text.count("\n", 0, unprintable.start()) + 1)
        try:
            return _parsed(text, FAST)
        except _NotPlainError:
            # the parser in Python has the last word: every machine says the same of a fault
            return _parsed(text, yaml.BaseLoader)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ShadowError(f"{file}:{line}: not UTF-8", hint) from error
    except _NotPlainError as error:
        where = f"{file}:{error.line}" if error.line else file
        raise ShadowError(f"{where}: {error.message}", hint) from error


def _parsed(text: str, parser: Any) -> tuple[Tree, dict[KeyPath, int]]:
    lines: dict[KeyPath, int] = {}
    tree: Tree | None = None
    try:
        events = yaml.parse(text, parser)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if tree is not None:
                    raise _NotPlainError("another document begins here", _line(event))
                tree = _value(next(events), events, path=(), lines=lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise _NotPlainError(f"not YAML: {error.problem or error.context}", line) from error
    except (yaml.YAMLError, ValueError) as error:  # an escape of no character is a ValueError
        raise _NotPlainError(f"not YAML ({type(error).__name__})", None) from error
    return "" if tree is None else tree, lines


def _value(
    event: yaml.Event, events: Iterator[yaml.Event], path: KeyPath, lines: dict[KeyPath, int]
) -> Tree:
    """The value that begins with an event, consuming the events up to its end."""
    if isinstance(event, yaml.AliasEvent):
        raise _NotPlainError("aliases are not allowed here", _line(event))
    assert isinstance(event, yaml.NodeEvent)
    if getattr(event, "tag", None) is not None:
        raise _NotPlainError("tags are not allowed here", _line(event))
    if len(path) > MAX_DEPTH:
        raise _NotPlainError(f"nested more than {MAX_DEPTH} deep", _line(event))
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
            raise _NotPlainError("a key that is not a word", _line(event))
        if key in mapping:
            raise _NotPlainError(f"duplicate key {key[:80]!r}", _line(event))
        lines[*path, key] = _line(event)
        mapping[key] = _value(next(events), events, path=(*path, key), lines=lines)
    return mapping


def _line(event: yaml.Event) -> int:
    mark: Any = event.start_mark  # every event of a parser has one
    line: int = mark.line + 1
    return line
