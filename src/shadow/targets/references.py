"""References to one checkpoint: a folder or a repository of the Hub, or one for each component."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shadow.errors import UsageError
from shadow.places.names import check_component
from shadow.text import short

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")  # of a family, a stage, a tag, a rule
MAX_ENTRIES = 10_000  # of a list
MAX_TARGET = 300  # characters; a family's name has 96 at most
FILES = (".gguf", ".safetensors", ".bin", ".pt", ".pth")  # each a checkpoint by itself
ONE_A_LINE = "one target a line: a family, family:from..to or a glob"


@dataclass(frozen=True)
class Reference:
    """A checkpoint as named: a folder, or `org/name` on the Hub, possibly with a revision."""

    repo: str  # `org/name` on the Hub, or an absolute folder
    is_folder: bool
    revision: str | None = None
    """A branch, tag or commit on the Hub; None for the default branch, and for a folder."""
    subfolder: str | None = None

    @property
    def last_name(self) -> str:
        """The name of the repository without its owner, or of the folder; `root` for `/`."""
        return self.repo.rstrip("/").rpartition("/")[2] or "root"

    def __str__(self) -> str:
        text = self.repo
        if self.revision:
            text += f" @ {self.revision}"
        if self.subfolder:
            text += f", folder {self.subfolder}"
        return text

    @property
    def parts(self) -> tuple[tuple[None, Reference], ...]:
        """Itself alone; a base per component has one for each."""
        return ((None, self),)

    def as_json(self) -> dict[str, object]:
        """The name as given, for machines."""
        return {"repo": self.repo, "revision": self.revision, "subfolder": self.subfolder}


@dataclass(frozen=True)
class ComponentBase:
    """A base per component, for a model that was put together."""

    parts: tuple[tuple[str, Reference], ...]
    """Each component and where it came from, in the file's order. The others have no base."""

    def __str__(self) -> str:
        return ",".join(f"{component}={part}" for component, part in self.parts)

    def as_json(self) -> dict[str, object]:
        """The checkpoint of each component, for machines."""
        return {component: part.as_json() for component, part in self.parts}


AnyReference = Reference | ComponentBase


def is_reference(target: str) -> bool:
    """True if this is a checkpoint: a folder, or `org/name`. Names of families have no
    slash.
    """
    return "/" in target or target in (".", "..", "~")


def one_target(text: str) -> str:
    """A target of a list unchanged. Raises UsageError for an invalid one."""
    if len(text) > MAX_TARGET or re.search(r"\s", text) or not text or not text.isprintable():
        raise UsageError(f"{short(text)} is not a target", ONE_A_LINE)
    if is_reference(text):
        message = f"{short(text)} is one checkpoint, and a pair has two"
        raise UsageError(message, "write {base: REF, tuned: REF} in a YAML list")
    return text


def pair_name(text: str) -> tuple[str, str]:
    """Split `family:base..tuned` into (family, stages). Raises UsageError."""
    family, _, stages = text.partition(":")
    ends = stages.split("..")
    if not NAME.fullmatch(family) or len(ends) != 2 or not all(map(NAME.fullmatch, ends)):
        hint = "write FAMILY:BASE..TUNED, as in --name mine:base..v2; each of a-z, A-Z, 0-9, . _ -"
        raise UsageError(f"{short(text)} is not a pair name", hint)
    return family, stages


def parse_reference(text: str, folder: Path | None = None) -> Reference:
    """Parse a reference: `./x`, `../x`, `/x` and `~/x` are folders (relative to folder, or the
    current one), all others are `org/name[@revision]`.

    So a folder planted in a checkout is never taken for a model of the same name on the Hub.
    """
    if folder is not None and text == "~":  # nothing, in YAML
        raise UsageError("'~' names no checkpoint", "write ~/ for the home folder")
    if text.startswith(("./", "../", "/", "~")) or text in (".", ".."):
        try:
            path = (folder or Path()) / Path(text).expanduser()
            resolved = str(path.resolve())
            resolved.encode()  # a name that is no text cannot be in a report
            return Reference(repo=resolved, is_folder=True)
        except (OSError, ValueError, RuntimeError) as error:
            # too long, a NUL, a loop of links, no such user
            hint = "write ./NAME for a folder"
            raise UsageError(f"{text[:80]!r} cannot be a folder", hint) from error
    repo, at, revision = text.partition("@")
    if at and (not re.fullmatch(r"[\w./-]{1,200}", revision, re.ASCII) or ".." in revision):
        message = f"{text[:80]!r}: {revision[:40]!r} is not a valid revision"
        raise UsageError(message, "write org/name@branch, a tag or a commit")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) or ".." in repo:
        hint = as_folder(text, folder) or "write ./NAME for a folder, org/name for the Hub"
        raise UsageError(f"{text[:80]!r} is neither a folder nor a name on the Hub", hint)
    return Reference(repo=repo, is_folder=False, revision=revision or None)


def typed_reference(text: str) -> Reference:
    """Parse a checkpoint that a person typed. Raises UsageError, before any request, for `org/name`
    if a checkpoint lies in a folder of that name.
    """
    reference = parse_reference(text)
    files = "*.safetensors", "config.json", "*.bin"  # that only checkpoints have
    is_name = not reference.is_folder and "@" not in text
    if is_name and any(any(Path(text).glob(name)) for name in files):
        hint = f"write ./{text} for the folder, or {text}@main for the model on the Hub"
        raise UsageError(f"{text} is a folder here, and a name on the Hub", hint)
    return reference


def parse_checkpoint(text: str, folder: Path | None = None) -> AnyReference:
    """Parse a reference, or one for each component: `language=./lm,vision=org/tower`.

    Without a folder for relative paths, it was typed. Raises UsageError.
    """
    parse = typed_reference
    if folder is not None:
        parse = partial(parse_reference, folder=folder)
    if not re.match(r"[a-z]+=", text):
        return parse(text)
    parts: dict[str, Reference] = {}
    for part in text.split(","):
        component, equals, reference = part.partition("=")
        if not equals or component in parts:
            hint = "write language=./LM,vision=org/tower, each component once"
            raise UsageError(f"{short(part)} is not the checkpoint of a component", hint)
        check_component(component)
        parts[component] = parse(reference)
    return ComponentBase(tuple(parts.items()))


def as_folder(text: str, folder: Path | None = None) -> str | None:
    """Say how to write a folder or a file of weights of this name, if there is one."""
    if not text:
        return None
    try:
        path = (folder or Path()) / text
        if path.is_dir():
            return f"for the folder, write ./{text}"
        if path.suffix in FILES and path.is_file():
            return f"for the file, write ./{text}"
    except (OSError, ValueError):  # no name that a file can have
        pass
    return None
