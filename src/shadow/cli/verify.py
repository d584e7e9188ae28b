"""`shadow verify`: a claim about checkpoints, checked entry by entry."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from shadow.cli import console
from shadow.cli import options as shared
from shadow.cli.gate import begin, summarise
from shadow.cli.options import FILE, prepare
from shadow.errors import ShadowError, UsageError
from shadow.options import ARGUMENT, option
from shadow.run.runtime import Files, Runtime, access_of, cache_of, ignore
from shadow.storage import as_given
from shadow.text import visible

if TYPE_CHECKING:
    from shadow.checks.answer import FailedVerification, Question, Verification


def verify(
    files: Files,
    claim: str | None = option("Claim to check: see below.", None, ARGUMENT, metavar="CLAIM"),
    checkpoints: Sequence[str] = option(
        "Checkpoint or adapter: ./DIR, /DIR, org/name, or org/name@revision.",
        (),
        ARGUMENT,
        metavar="CHECKPOINT",
    ),
    moved: Sequence[str] = option(
        "Of trained: what should have moved: language.layers.0-7, or the beginning of tensors'"
        " names; may be repeated.",
        (),
        metavar="PATTERN",
    ),
    frozen: Sequence[str] = option(
        "Of trained: what should be equal to the base; may be repeated.", (), metavar="PATTERN"
    ),
    base: str | None = option("Of stored: what FULL was trained from.", metavar="REF"),
    headers: bool = option("Of whole: leave out values, read headers alone.", False),
    accept: Sequence[str] = option(
        "Of whole: a known fault that does not fail, and why; may be repeated.",
        (),
        metavar="CODE=REASON",
    ),
    listed: Path | None = option(
        "YAML file of claims to check, instead of one.", None, "--claims", **FILE
    ),
    junit: Path | None = shared.JUNIT,
    jobs: int | None = shared.JOBS,
    format: shared.Format = shared.FORMAT,
    quiet: bool = option("Print a line for each claim, and errors.", False, "-q", "--quiet"),
) -> None:
    """Check a claim about checkpoints, entry by entry. It holds, does not hold, or is inconclusive.

    Exit codes: 0 holds; 4 does not hold; 5 inconclusive; 1 failed; 2 wrong usage. Of several
    claims the first of 1, 4, 5, 0.
    """
    begin(junit, "verify")
    prepare(files.offline)
    from shadow.checks.answer import FailedVerification, Verification, first_code
    from shadow.checks.checklist import command_of
    from shadow.checks.registry import CHECKS, question
    from shadow.checks.registry import verify as check
    from shadow.outputs.ci import write_claims
    from shadow.targets.references import parse_checkpoint
    from shadow.telling import verification as telling

    if listed is not None:
        if claim or moved or frozen or base or headers or accept:
            raise UsageError("--claims and a claim do not go together", "leave one of them out")
        questions = _listed(listed)
    elif claim is None:
        hint = f"one of {', '.join(CHECKS)}, such as: shadow verify same ./A ./B"
        raise UsageError("no claim to check", hint)
    else:
        of = [parse_checkpoint(text) for text in checkpoints]
        of_base = None if base is None else parse_checkpoint(base)
        questions = [
            question(
                claim,
                of,
                moved=moved,
                frozen=frozen,
                base=of_base,
                headers=headers,
                accept=accepted(accept),
            )
        ]
    say = ignore if quiet else console.say
    runtime = Runtime(jobs=jobs, access=access_of(files), cache=cache_of(files), say=say)
    is_alone = listed is None
    watch = console.pairs_progress(len(questions), hidden=quiet)

    def checked(question: Question) -> Verification | FailedVerification:
        """Check a claim. If it is one of several, its error is printed and becomes its answer."""
        begun = time.monotonic()
        try:
            with watch(command_of(question).removeprefix("shadow ")) as show:
                answer = check(question, replace(runtime, show=show))
            return replace(answer, seconds=time.monotonic() - begun)
        except ShadowError as error:
            if is_alone:
                raise
            console.complain(error)
            seconds, fault = time.monotonic() - begun, as_given(error.message)
            return FailedVerification(question.claim, question.of, fault, seconds=seconds)

    verifications = [*map(checked, questions)]
    if junit is not None:  # before anything is printed, whose reader may have gone
        write_claims(junit, verifications)
    summarise(telling.verifications_document(verifications))
    if format == "json":
        every = [verification.as_json() for verification in verifications]
        console.show_json(every[0] if is_alone else every)
    elif quiet:
        lines = telling.in_lines(verifications)
        console.show_text("".join(f"{visible(line)}\n" for line in lines))
    else:
        for verification in verifications:
            if isinstance(verification, Verification):
                console.show(telling.verification_document(verification))
        if not is_alone:
            console.show(telling.verifications_document(verifications))
    if code := first_code({verification.exit_code for verification in verifications}):
        raise typer.Exit(code)


def accepted(texts: Sequence[str]) -> dict[str, str]:
    """Parse each `CODE=REASON`; the reason is empty where there is none."""
    parts = [text.partition("=") for text in texts]
    return {code.strip(): reason.strip() for code, _, reason in parts}


def _listed(file: Path) -> list[Question]:
    """Read the claims of a file. Raises ShadowError, with the line of an invalid one."""
    from shadow.checks.registry import question
    from shadow.targets.checked import read_form
    from shadow.targets.forms import ClaimsForm

    hint = "docs/verify.md describes it: a list such as `- same ./a ./b`"
    form, lines = read_form(ClaimsForm, file, hint=hint)
    questions = []
    for number, claim in enumerate(form.root):
        given = {
            key: getattr(claim, key) for key in ("moved", "frozen", "base", "headers", "accept")
        }
        try:
            questions.append(question(claim.claim, claim.of, **given))
        except UsageError as error:
            where = f"{file}:{lines[number,]}"
            raise UsageError(f"{where}: {error.message}", error.hint) from error
    return questions
