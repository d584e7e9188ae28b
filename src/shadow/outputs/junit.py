"""JUnit XML: how it is written, and what came of checks in it.

Names of tensors, messages and file names are hostile text: every one goes through `visible`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

from shadow.checks.answer import FailedVerification, Verification
from shadow.errors import ShadowError
from shadow.files import read_start, write_beside
from shadow.telling.verification import asked
from shadow.text import several, visible

JUNIT_START = 1000  # bytes in which a JUnit file names its first element
NAMED = 3  # tensors that a message names
LAST_PARTS = 2  # of a path elsewhere


def document(root: ET.Element) -> bytes:
    count_cases(root)
    del root.attrib["skipped"]  # only suites have it
    ET.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + bytes(ET.tostring(root)) + b"\n"


def begin_junit(path: Path, command: str, fault: str = "its output says why") -> None:
    """Put an error where the results of a command will be, so that CI never takes those of an
    earlier run for them.

    The file says so however the command ends: by a fault, which is then known, by a signal, or
    without power. Raises ShadowError for a file that may not be written over, before anything is
    measured.
    """
    root = ET.Element("testsuites", name="shadow")
    suite = ET.SubElement(root, "testsuite", name="shadow")
    case = ET.SubElement(suite, "testcase", classname="shadow", name=command, time="0.000")
    say(case, "error", message=f"`shadow {command}` did not finish: {fault}", kind="not finished")
    count_cases(suite)
    write_document(path, document(root))


def write_claims(path: Path, found: Sequence[Verification | FailedVerification]) -> None:
    """What came of claims: a case each. One that does not hold is a failure, one that is
    inconclusive is skipped, and a fault is an error. Raises ShadowError.
    """
    root = ET.Element("testsuites", name="shadow")
    total = sum(one.seconds for one in found)
    suite = ET.SubElement(root, "testsuite", name="shadow verify", time=f"{total:.3f}")
    for one in found:
        names = {"classname": "shadow verify", "name": visible(asked(_without_folders(one)))}
        case = ET.SubElement(suite, "testcase", names, time=f"{one.seconds:.3f}")
        if isinstance(one, FailedVerification):
            say(case, "error", message=one.fault, kind="fault")
            continue
        if one.outcome != "holds":
            tag = "failure" if one.outcome == "does_not_hold" else "skipped"
            say(case, tag, message=_with_tensors(one), kind=one.claim)
        lines = [f"{one.outcome.words}: {one.reason}"]
        output(case, [*lines, *(f"{item.name}: {item.what}" for item in one.against[:100])])
    count_cases(suite)
    write_document(path, document(root))


def _with_tensors(one: Verification) -> str:
    """The reason, and the first of what speaks against the claim."""
    if not one.against:
        return one.reason
    named = several([f"{item.name}: {item.what}" for item in one.against], NAMED, "; ")
    return f"{one.reason} ({named})"


def _without_folders(
    one: Verification | FailedVerification,
) -> Verification | FailedVerification:
    """With absolute paths as they are from here, or as their last parts: a case has one name on
    every machine.
    """
    return replace(one, of={name: _from_here(text) for name, text in one.of.items()})


def _from_here(text: str) -> str:
    path = Path(text)
    if not path.is_absolute():
        return text
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return "/".join(path.parts[-LAST_PARTS:]).removeprefix("/")


def _check_junit(path: Path) -> None:
    """Refuse to write over what is no JUnit file. Raises ShadowError."""
    hint = "choose another file with --junit"
    try:
        if not path.exists():
            return
        start = read_start(path, JUNIT_START)
        if start is None:
            raise ShadowError(f"{path} is not a regular file", hint)
        if start and not (start.startswith(b"<?xml") and b"<testsuite" in start):
            raise ShadowError(f"{path} already exists and is not a JUnit file", hint)
    except OSError as error:
        raise ShadowError(f"cannot read {path}: {error.strerror or error}", hint) from error


def write_document(path: Path, text: bytes) -> None:
    _check_junit(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, text)
    except OSError as error:
        raise ShadowError(
            f"cannot write {path}: {error.strerror or error}", "choose another file with --junit"
        ) from error


def count_cases(element: ET.Element) -> None:
    for name, tag in (
        ("tests", "testcase"),
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ):
        element.set(name, str(sum(1 for _ in element.iter(tag))))


def say(case: ET.Element, tag: str, message: str, kind: str) -> None:
    """Some readers, such as Jenkins, show the attribute, others, such as GitLab, only the text."""
    ET.SubElement(case, tag, message=visible(message), type=visible(kind)).text = visible(message)


def output(case: ET.Element, lines: Iterable[str]) -> None:
    ET.SubElement(case, "system-out").text = "\n".join(visible(line) for line in lines)
