"""The claims that `shadow verify` checks, and what each is asked of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shadow.checks.answer import table
from shadow.checks.files import FILES
from shadow.checks.merged import MERGED
from shadow.checks.mixture import LETTERS, MIXTURE
from shadow.checks.patterns import parse_pattern
from shadow.checks.quantised import QUANTISED
from shadow.checks.related import RELATED
from shadow.checks.same import SAME
from shadow.checks.stored import STORED
from shadow.checks.trained import TRAINED
from shadow.errors import UsageError
from shadow.gone import gone
from shadow.text import and_list, nearest


@dataclass(frozen=True)
class Form:
    """What a claim is asked of."""

    checkpoints: tuple[str, ...]
    """Their names, in order, as in usage: `BASE`, `TUNED`."""
    says: str
    """What it says of them, in a line of help."""
    repeats: bool = False
    """Whether the last may be given several times."""
    options: tuple[str, ...] = ()
    """Which of `moved`, `frozen` and `base` it takes."""

    @property
    def names_in_usage(self) -> str:
        """`BASE TUNED`, `TUNED A B...`."""
        return " ".join(self.checkpoints) + ("..." if self.repeats else "")

    @property
    def usage(self) -> str:
        """`BASE TUNED [--moved PATTERN] [--frozen PATTERN]`, `TUNED A B... [--base REF]`."""
        words = [self.names_in_usage]
        for option in self.options:
            words.append(f"[--{option} {'REF' if option == 'base' else 'PATTERN'}]")
        return " ".join(words)

    def names(self, count: int) -> list[str]:
        """What so many checkpoints are called: `TUNED, A, B, C`; `TUNED, CANDIDATE, CANDIDATE 2`.

        Raises UsageError where letters do not suffice.
        """
        last, more = self.checkpoints[-1], count - len(self.checkpoints)
        if last not in LETTERS:
            return [*self.checkpoints, *(f"{last} {number}" for number in range(2, 2 + more))]
        letters = LETTERS[LETTERS.index(last) + 1 :]
        if more > len(letters):
            most = len(self.checkpoints) + len(letters)
            raise UsageError(f"{count} checkpoints are too many", f"name {most} at most")
        return [*self.checkpoints, *letters[:more]]


VERIFY = table(SAME, MERGED, TRAINED, STORED, RELATED, MIXTURE, FILES, QUANTISED)
FORMS: Mapping[str, Form] = {
    "same": Form(("A", "B"), "equal weights, whatever names and dtypes"),
    "merged": Form(("BASE", "ADAPTER", "MERGED"), "MERGED is BASE plus ADAPTER"),
    "trained": Form(
        ("BASE", "TUNED"),
        "what should move did, and no frozen weight",
        options=("moved", "frozen"),
    ),
    "stored": Form(("FULL", "STORED"), "STORED is FULL, rounded", options=("base",)),
    "related": Form(("TUNED", "CANDIDATE"), "the nearest relative of TUNED", repeats=True),
    "mixture": Form(
        ("TUNED", "A", "B"), "TUNED is a merge of A, B, ...", repeats=True, options=("base",)
    ),
    "files": Form(("A", "B"), "equal configs, tokenizers and code"),
    "quantised": Form(("ORIGINAL", "QUANTISED"), "no error beyond that of the format"),
}
NEEDS_PATTERN = "needs --moved PATTERN or --frozen PATTERN"
# of a pair: the base is the first checkpoint, the tuned side the second
OF_PAIRS = tuple(
    name for name, form in FORMS.items() if len(form.checkpoints) == 2 and not form.repeats
)


@dataclass(frozen=True)
class PairClaim:
    """A claim that is asked of a base and a tuned side."""

    claim: str
    moved: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    def __str__(self) -> str:
        patterns = [f"--moved {one}" for one in self.moved]
        return " ".join([self.claim, *patterns, *(f"--frozen {one}" for one in self.frozen)])


def pair_claim(text: str) -> PairClaim:
    """`trained --moved layers.0-7 --frozen embed` -> PairClaim. Raises UsageError."""
    claim, *rest = re.sub(r"(\s--\w+)=", r"\1 ", text).split()
    found: dict[str, list[str]] = {"--moved": [], "--frozen": []}
    if len(rest) % 2 or any(option not in found for option in rest[::2]):
        hint = "write `trained --moved PATTERN --frozen PATTERN`, each as often as you like"
        raise UsageError(f"{text[:80]!r} is no claim with patterns", hint)
    for option, pattern in zip(rest[::2], rest[1::2], strict=True):
        found[option].append(parse_pattern(pattern).text)
    form = require_form(claim, 2, moved=found["--moved"], frozen=found["--frozen"])
    if "moved" in form.options and not any(found.values()):
        raise UsageError(f"{claim} {NEEDS_PATTERN}", f"write: {claim} {form.usage}")
    return PairClaim(claim, tuple(found["--moved"]), tuple(found["--frozen"]))


def require_form(
    claim: str,
    count: int,
    *,
    moved: Sequence[str] = (),
    frozen: Sequence[str] = (),
    base: object = None,
) -> Form:
    """What a claim is asked of. Raises UsageError for a claim that is not known, and for another
    number of checkpoints or other options than it takes.
    """
    form = FORMS.get(claim)
    if form is None:
        if error := gone("claim", claim):
            raise error
        hint = nearest(claim, FORMS) or f"one of {', '.join(FORMS)}"
        raise UsageError(f"no claim {claim[:40]!r}", hint)
    usage = f"write: shadow verify {claim} {form.usage}"
    least = len(form.checkpoints)
    if count < least or (count > least and not form.repeats):
        wanted = f"{least} or more checkpoints" if form.repeats else f"{least} checkpoints"
        raise UsageError(f"{claim} needs {wanted}, and got {count}", usage)
    given = {"moved": bool(moved), "frozen": bool(frozen), "base": base is not None}
    for option, is_given in given.items():
        if is_given and option not in form.options:
            known = [name for name, other in FORMS.items() if option in other.options]
            verb = "has" if len(known) == 1 else "have"
            raise UsageError(f"{claim} has no --{option}", f"{and_list(known)} {verb} it")
    form.names(count)
    return form
