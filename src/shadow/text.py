"""Texts and names in output: plurals, short lists, near misses, and hostile text made harmless."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from rich.filesize import decimal

from shadow.errors import UsageError


def inert(text: str) -> str:
    """Remove commands to CI runners from printed text.

    GitHub Actions obeys lines of stdout and stderr that begin with `::` after white space, and
    `##[` anywhere in one; Azure Pipelines and TeamCity `##vso[` and `##teamcity[`. A name may
    contain them, and wrapping may begin a line with them.
    """
    text = re.sub(r"##(?=[A-Za-z]*\[)", r"#\\x23", text)
    return re.sub(r"(?m)^((?:[^\S\n]|\x1b\[[0-9;]*m)*):(?=:)", r"\1\\x3a", text)


def visible(text: str) -> str:
    """Text from files on one line; control characters, which drive terminals, are shown."""
    if text.isprintable():  # nearly all
        return text
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


class Shown:
    """An object with a short repr, which a notebook draws as its command prints it."""

    def _repr_html_(self) -> Any:
        # by its name: it lies above the rooms of these objects, which a notebook asks directly
        return import_module("shadow.outputs.notebook").html(self)


def short(given: object) -> str:
    """Shorten a user's text for a message: one line with at most 80 characters."""
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def duration(seconds: float) -> str:
    """`4:07`, or `1:02:03` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def took(seconds: float) -> str:
    """`3.2 s`, or a duration from a minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def about_time(seconds: float) -> str:
    """`under a second`, `about 7 seconds`, `about 4 minutes` or `about 2.5 hours`."""
    if seconds < 1:
        return "under a second"
    if seconds < 59.5:
        return f"about {counted(round(seconds), 'second', 'seconds')}"
    if seconds < 5370:
        return f"about {counted(round(seconds / 60), 'minute', 'minutes')}"
    hours = seconds / 3600
    return f"about {hours:.1f} hours" if hours < 9.95 else f"about {hours:,.0f} hours"


byte_size = decimal  # `1.5 GB`, in thousands rather than 1,024s, like disks and the Hub


LIKE = 0.6  # of 1: how like a word must be to be asked for instead of another
VERY_LIKE = 0.75


def closest(word: str, known: Iterable[str], likeness: float = LIKE) -> str | None:
    """The known word most similar to a misspelt one; None if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)), None)


def nearest(word: str, known: Iterable[str], likeness: float = LIKE) -> str | None:
    """The hint `did you mean 'base'?`; None if no known word is similar."""
    close = closest(word, known, likeness)
    return None if close is None else f"did you mean {close!r}?"


def several(words: Sequence[str], shown: int = 8, separator: str = ", ") -> str:
    """The first of many words, and how many more there are: `a, b and 3 more`."""
    rest = and_more(len(words) - shown)
    return separator.join(words[:shown]) + (f" {rest}" if rest else "")


def and_list(words: Sequence[str]) -> str:
    """`a, b and c`; empty for no words."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def and_more(hidden: int) -> str:
    """`and 3 more`; empty if nothing is hidden."""
    return f"and {hidden:,} more" if hidden > 0 else ""


def shape_text(shape: Iterable[int]) -> str:
    """`4 x 8`."""
    return " x ".join(map(str, shape)) or "()"


def counted(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"


def bytes_of(text: str) -> int:
    """Parse `40GB`, `1.5 TiB` or a plain number of bytes."""
    match = re.fullmatch(
        r"(\d{1,15}(?:\.\d{1,6})?)\s*(?:([kmgt])(i?)b?|b)?", text.strip(), re.IGNORECASE | re.ASCII
    )
    if not match:
        raise UsageError(f"{text[:40]!r} is not a size", "write 40GB, 500MB or 1.5TB")
    power = " kmgt".index((match[2] or " ").lower())
    size: float = float(match[1]) * (1024 if match[3] else 1000) ** power
    return round(size)


def size_for(count: int) -> str:
    """The size to type so that count bytes fit, rounded up: `4.6MB`."""
    sizes = (1000**4, "TB"), (1000**3, "GB"), (1000**2, "MB"), (1000, "KB")
    whole, unit = next((size for size in sizes if count >= size[0]), sizes[-1])
    tenths = -(-count * 10 // whole)
    return f"{tenths / 10:.12g}{unit}"


ACCESS_POINT = re.compile(r"arn:[a-z-]+:s3[a-z-]*:[a-z0-9-]*:\d*:[a-z]+/")
PORT = re.compile(r"^[^:]*:\d{1,5}$")
# a URL in a text, in quotes or up to a space; pathlib makes `s3:/x` of `s3://x`
URL_IN_TEXT = re.compile(
    r"(?<![A-Za-z0-9+.-])"
    r"(?:(?<=')[A-Za-z][A-Za-z0-9+.-]+://[^']*(?=')"
    r'|(?<=")[A-Za-z][A-Za-z0-9+.-]+://[^"]*(?=")'
    r"|(?:[A-Za-z][A-Za-z0-9+.-]+://|(?:s3a?|gs|gcs|az|abfss?|hf):/)[^\s'\"]*)"
)
CLOSING = ":;,.)]}"  # of the sentence around a URL


def holds_account(rest: str) -> bool:
    """True if an account or password, not a port or S3 point, precedes the first slash."""
    if "@" not in rest and ACCESS_POINT.match(rest):
        return False
    host = rest.partition("/")[0]
    return "@" in host or (":" in host and ("@" in rest or not PORT.search(host)))


def redacted_url(url: str) -> str:
    """Remove possible credentials from a URL: an account, a password, a query, a fragment.

    A password may contain any character, also `/`, `@` and `?`: in doubt too much is removed. In
    web addresses a port is not a password, whatever follows, and `@` may occur in a path.
    """
    scheme, slashes, rest = re.split(r"(?<=:)(/+)", url, maxsplit=1)
    bare = re.split(r"[?#]", rest, maxsplit=1)[0]
    if scheme.lower() in ("http:", "https:"):
        host = re.sub(r"^\[[0-9A-Fa-f:.]+\]", "ip", rest.partition("/")[0])
        hidden = "@" in host or (":" in host and not PORT.search(re.split(r"[?#]", host)[0]))
    else:
        hidden = holds_account(rest) or ":" in bare.rpartition("@")[0]
    if hidden:
        bare = "***" if bare != rest or "@" not in rest else f"***@{rest.rpartition('@')[2]}"
    return f"{scheme}{slashes}{bare}"


def redacted(text: str) -> str:
    """Apply `redacted_url` to every URL in a text."""

    def without(match: re.Match[str]) -> str:
        url = match[0].rstrip(CLOSING)
        return redacted_url(url) + match[0][len(url) :]

    return URL_IN_TEXT.sub(without, text)


def in_ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in order, with runs as their ends: `0-3, 7`."""
    runs = runs_of(numbers)
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def runs_of(numbers: Iterable[int]) -> list[list[int]]:
    """The first and the last of each run of consecutive whole numbers, in order."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs
