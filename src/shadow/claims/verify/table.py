"""The claims that `shadow verify` checks, and what each is asked of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shadow.claims.answer import table
from shadow.claims.verify.base import BASE
from shadow.claims.verify.files import FILES
from shadow.claims.verify.merged import MERGED
from shadow.claims.verify.mixture import LETTERS, MIXTURE
from shadow.claims.verify.quantised import QUANTISED
from shadow.claims.verify.same import SAME
from shadow.claims.verify.stored import STORED
from shadow.claims.verify.trained import TRAINED
from shadow.errors import UsageError


@dataclass(frozen=True)
class Form:
    """What a claim is asked of."""

    checkpoints: tuple[str, ...]
    """Their names, in order, as in usage: `BASE`, `TUNED`."""
    repeats: bool = False
    """Whether the last may be given several times."""
    options: tuple[str, ...] = ()
    """Which of `moved`, `frozen` and `base` it takes."""
    needs: tuple[str, ...] = ()
    """Options of which one must be given."""

    @property
    def usage(self) -> str:
        """`BASE TUNED --moved PATTERN --frozen PATTERN`, `TUNED A B... [--base REF]`."""
        words = [" ".join(self.checkpoints) + ("..." if self.repeats else "")]
        for option in self.options:
            text = f"--{option} {'REF' if option == 'base' else 'PATTERN'}"
            words.append(text if option in self.needs else f"[{text}]")
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


VERIFY = table(SAME, MERGED, TRAINED, STORED, BASE, MIXTURE, FILES, QUANTISED)
FORMS: Mapping[str, Form] = {
    "same": Form(("A", "B")),
    "merged": Form(("BASE", "ADAPTER", "MERGED")),
    "trained": Form(("BASE", "TUNED"), options=("moved", "frozen"), needs=("moved", "frozen")),
    "stored": Form(("FULL", "STORED"), options=("base",)),
    "base": Form(("TUNED", "CANDIDATE"), repeats=True),
    "mixture": Form(("TUNED", "A", "B"), repeats=True, options=("base",)),
    "files": Form(("A", "B")),
    "quantised": Form(("ORIGINAL", "QUANTISED")),
}
