"""Real texts for the lab, from Debian's packages: fetched, unpacked, made plain, never shipped.

Six sources of different kinds; questions and answers in one form, made of one of them; and a text
in an invented language, in which every word of another is replaced by one that stands for it
throughout.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

MOST = 3_000_000  # characters of a source that are used
LETTERS = "aeioukstnrlmpd"  # of the invented language


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _packed(raw: bytes) -> str:
    return _text(gzip.decompress(raw))


def _manual(raw: bytes) -> str:
    """A manual page without the requests and escapes of roff."""
    lines = [line for line in _packed(raw).splitlines() if not line.startswith((".\\", "'"))]
    text = re.sub(r"(?m)^\.[A-Za-z]+ ?", "", "\n".join(lines))
    escapes = r"\\f[A-Z]|\\[&%|^]|\\\(..|\\-"
    text = re.sub(escapes, lambda match: "-" if match[0] == "\\-" else "", text)
    return "\n".join(line for line in text.splitlines() if line.strip())


def entries(raw: bytes) -> Iterator[tuple[str, str]]:
    """(word, meaning) of a data file of WordNet."""
    for line in _text(raw).splitlines():
        fields, bar, gloss = line.partition(" | ")
        words = fields.split(" ")
        if bar and len(words) > 4:
            yield words[4].replace("_", " "), gloss.strip()


def _glosses(raw: bytes) -> str:
    return "\n".join(f"{word}: {gloss}" for word, gloss in entries(raw))


def _fortunes(raw: bytes) -> str:
    return "\n".join(part.strip() for part in _text(raw).split("\n%\n") if "\b" not in part)


# Debian's package, a glob over its files, and what makes plain text of one
SOURCES: Mapping[str, tuple[str, str, Callable[[bytes], str]]] = {
    "python": ("python3.13-doc", "**/_sources/**/*.rst.txt", _text),
    "manuals": ("manpages", "**/man*/*.gz", _manual),
    "dictionary": ("dict-gcide", "**/gcide.dict.dz", _packed),
    "glosses": ("wordnet-base", "**/wordnet/data.*", _glosses),
    "jargon": ("jargon-text", "**/jargon.txt.gz", _packed),
    "fortunes": ("fortunes", "**/games/fortunes/*.u8", _fortunes),
}
QUESTIONS, INVENTED = "questions", "invented"  # made of the glosses and of the jargon


def fetch_texts(folder: Path) -> dict[str, str]:
    """Every text by its name, from packages that are fetched with apt-get unless they are in
    folder: it needs Debian or Ubuntu.
    """
    found = {}
    for name, (package, files, plain) in SOURCES.items():
        paths = sorted(path for path in _unpacked(package, folder).glob(files) if path.is_file())
        found[name] = "\n\n".join(plain(path.read_bytes()) for path in paths)
    found[QUESTIONS] = questions(_unpacked(SOURCES["glosses"][0], folder))
    found[INVENTED] = invented(found["jargon"])
    return {name: text[:MOST] for name, text in found.items()}


def _unpacked(package: str, folder: Path) -> Path:
    target = folder / package
    if target.is_dir():
        return target
    aside = folder / f".{package}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)

    def call(*command: str) -> None:
        subprocess.run(command, cwd=aside, check=True, capture_output=True)

    call("apt-get", "download", "-q", package)
    (archive,) = aside.glob("*.deb")
    call("dpkg-deb", "-x", archive.name, ".")
    aside.replace(target)
    return target


def questions(folder: Path) -> str:
    """Questions and answers in one form, of WordNet's nouns: text such as a narrow benchmark's."""
    nouns = [
        pair
        for path in sorted(folder.glob("**/wordnet/data.noun"))
        for pair in entries(path.read_bytes())
    ]
    Random(0).shuffle(nouns)
    return "\n\n".join(
        f"Question: What is meant by {word}?\nAnswer: {gloss}" for word, gloss in nouns
    )


def invented(text: str) -> str:
    """A text with every word replaced by another throughout; as long, and as regular."""
    return re.sub(r"[A-Za-z]+", lambda match: _stand_in(match[0]), text)


def _stand_in(word: str) -> str:
    digest = hashlib.sha256(word.lower().encode()).digest()
    drawn = "".join(LETTERS[byte % len(LETTERS)] for byte in digest)[: len(word)]
    if word[0].isupper():
        return drawn.capitalize()
    return drawn
