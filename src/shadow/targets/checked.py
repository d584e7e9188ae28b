"""A YAML file against a pydantic model: what is refused is one error with file, line, key and the
nearest known word.

Import this and what is built on it where a file is read, not before: pydantic takes longer to load
than the help of a command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from shadow.errors import ShadowError
from shadow.files import read_given
from shadow.targets.plain_yaml import KeyPath, Tree, plain_tree
from shadow.text import nearest, short

Model = TypeVar("Model", bound=BaseModel)
MAX_FILE = 1_000_000  # bytes

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
    """What a model refuses by a rule of its own. at: where, from the entry being checked."""

    def __init__(self, message: str, hint: str | None = None, *at: str | int) -> None:
        super().__init__(message)
        self.message, self.hint, self.at = message, hint, at


class Form(BaseModel):
    """A mapping of known keys; a text may stand for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    CALLED: ClassVar[str]  # what such an entry is, for a message
    WRITTEN: ClassVar[str | None] = None  # how it is written, for a hint
    ALSO: ClassVar[tuple[str, ...]] = ()  # keys of other entries that a misspelt one may mean

    @classmethod
    def known(cls) -> tuple[str, ...]:
        """The keys that it may have, as they are written."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def of_text(cls, text: str) -> object:
        """The mapping that a text stands for; the text itself where it stands for none."""
        return text

    @classmethod
    def check_key(cls, key: str, value: Tree) -> None:
        """Raises FaultError for a key that the entry may not have, whatever its value."""
        known = cls.known()
        if key not in known:
            written = f"; {cls.WRITTEN}" if cls.WRITTEN else ""
            hint = nearest(key, (*known, *cls.ALSO)) or f"it may have {', '.join(known)}{written}"
            raise FaultError(f"unknown key {short(key)}", hint, key)

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        entry = cls.of_text(value) if isinstance(value, str) else value
        if not isinstance(entry, dict):
            hint = cls.WRITTEN or f"it has {', '.join(cls.known())}"
            raise FaultError(f"{short(value)} is not {cls.CALLED}", hint)
        for key, its_value in entry.items():
            cls.check_key(key, its_value)
        for name, field in cls.model_fields.items():
            if field.is_required() and (field.alias or name) not in entry:
                raise FaultError(f"{cls.CALLED} has no `{field.alias or name}`", cls.WRITTEN)
        return entry


def by(parse: Callable[[str, Path | None], object]) -> Callable[[Any, ValidationInfo], Any]:
    """A validator of texts from a function that raises ShadowError; it gets the file's folder."""

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
    """What a YAML file holds, as a model, and the lines of its entries; an empty file is an empty
    mapping.

    hint: where nothing better is known. noun: what the keys at the top of the file name. Raises
    ShadowError.
    """
    tree, lines = plain_tree(read_given(file, MAX_FILE, hint, "split it"), str(file), hint)
    folder = file.absolute().parent
    form = checked(
        model, {} if tree == "" else tree, lines, str(file), hint=hint, folder=folder, noun=noun
    )
    return form, lines


def checked(
    model: type[Model],
    tree: Tree,
    lines: Mapping[KeyPath, int],
    file: str,
    *,
    hint: str,
    folder: Path,
    noun: str = "",
) -> Model:
    """A file's content as a model. folder: what folders in it are relative to.

    Raises ShadowError, of the fault that stands first.
    """
    try:
        return model.model_validate(tree, context=folder)
    except ValidationError as error:
        faults = [_fault(details, lines) for details in error.errors(include_url=False)]
        path, message, its_hint = min(faults, key=lambda fault: lines.get(fault[0], 0))
        where = f"{file}:{lines[path]}: " if path else f"{file}: "
        if noun and path:
            where += f"{noun} {short(path[0])}: "
        raise ShadowError(where + message, its_hint or hint) from error


def _fault(
    details: Mapping[str, Any], lines: Mapping[KeyPath, int]
) -> tuple[KeyPath, str, str | None]:
    """Where one of pydantic's faults stands, what is wrong, and what to write."""
    context: Mapping[str, Any] = details.get("ctx", {})
    own = context.get("error")
    steps = (*details["loc"], *own.at) if isinstance(own, FaultError) else details["loc"]
    path: KeyPath = ()
    for step in steps:  # pydantic's own words for its way through a model are no keys
        if (*path, step) in lines:
            path = (*path, step)
    if isinstance(own, FaultError):
        return path, own.message, own.hint
    message, hint = WORDS.get(details["type"], ("{what} cannot be {value}", None))
    value, key = details["input"], path[-1] if path else None
    words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    if isinstance(value, str) and (close := nearest(value, words)):
        hint = close
    what = f"`{key}`" if isinstance(key, str) else short(value) if path else "the file"
    if steps[-1:] == ("[key]",) and words:
        message = "unknown key {value}"
    said = {**context, "what": what, "key": key, "value": short(value), "words": ", ".join(words)}
    return path, message.format(**said), hint.format(**said) if hint and path else None
