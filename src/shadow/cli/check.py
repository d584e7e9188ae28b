"""`shadow check`: the claims that a model's sides allow, as a checklist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shadow.cli import console
from shadow.cli import options as shared
from shadow.cli.gate import begin, summarise
from shadow.cli.options import FILE, prepare
from shadow.cli.verify import accepted
from shadow.errors import ShadowError, UsageError
from shadow.options import ARGUMENT, option
from shadow.run.runtime import Files, Runtime, access_of, cache_of
from shadow.storage import as_given

if TYPE_CHECKING:
    from shadow.checks.checklist import CheckRequest


def check(
    files: Files,
    model: str | None = option(
        "Model or adapter: ./DIR, /DIR, org/name, or org/name@revision.",
        None,
        ARGUMENT,
        metavar="MODEL",
    ),
    base: str | None = option("What it was trained from.", metavar="REF"),
    adapter: str | None = option("Adapter that was merged into it; needs --base.", metavar="REF"),
    full: str | None = option("Original of which it is a copy in fewer bits.", metavar="REF"),
    headers: bool = option("Leave out values, read headers alone.", False),
    drop_in: bool = option(
        "Fail if names, shapes, dtypes or files beside the weights are not the base's.", False
    ),
    accept: Sequence[str] = option(
        "A known fault that does not fail, and why; may be repeated.", (), metavar="CODE=REASON"
    ),
    listed: Path | None = option(
        "YAML list of such checks, instead of one.", None, "--list", **FILE
    ),
    junit: Path | None = shared.JUNIT,
    jobs: int | None = shared.JOBS,
    format: shared.MarkdownFormat = shared.MARKDOWN,
) -> None:
    """Check a model, alone and against what it was made from.

    Exit codes: 0 all lines hold; 4 one does not hold; 5 one is inconclusive; 1 failed; 2 wrong
    usage. Of several lines the first of 1, 4, 5, 0.
    """
    begin(junit, "check")
    prepare(files.offline)
    from shadow.checks.answer import FailedVerification, first_code
    from shadow.checks.checklist import Answered, Checklist, CheckRequest, typed
    from shadow.checks.checklist import check as ask
    from shadow.outputs.ci import write_claims
    from shadow.outputs.markdown import markdown
    from shadow.targets.references import parse_checkpoint
    from shadow.telling import checklist as telling

    if listed is not None:
        if model or base or adapter or full or headers or drop_in or accept:
            raise UsageError("--list and a model do not go together", "leave one of them out")
        every = _listed(listed)
    elif model is None:
        raise UsageError("no model to check", "such as: shadow check ./model --base ./base")
    else:
        given = {"model": model, "base": base, "adapter": adapter, "full": full}
        sides: dict[str, Any] = {
            word: parse_checkpoint(text) for word, text in given.items() if text
        }
        every = [CheckRequest(**sides, headers=headers, drop_in=drop_in, accept=accepted(accept))]
    runtime = Runtime(jobs=jobs, access=access_of(files), cache=cache_of(files), say=console.say)
    checklists: list[Checklist] = []
    watch = console.pairs_progress(len(every))
    for request in every:
        try:
            with watch(f"check {typed(str(request.model))}") as show:
                checklists.append(ask(request, replace(runtime, show=show)))
        except ShadowError as error:
            if listed is None:
                raise
            console.complain(error)
            of = {"CHECKPOINT": str(request.model)}
            failed = FailedVerification("whole", of, as_given(error.message))
            checklists.append(Checklist(request, (failed,)))
    lines: list[Answered] = []
    for checklist in checklists:
        lines += checklist.lines
    if junit is not None:
        write_claims(junit, lines)
    summarise(telling.checklist_documents(checklists))
    if format == "json":
        values = [checklist.as_json() for checklist in checklists]
        console.show_json(values[0] if listed is None else values)
    for checklist in checklists:
        if format == "markdown":
            console.show_text(markdown(telling.card(checklist)))
        elif format == "table":
            console.show(telling.checklist_document(checklist))
    if code := first_code({checklist.exit_code for checklist in checklists}):
        raise typer.Exit(code)


def _listed(file: Path) -> list[CheckRequest]:
    """Read the checks of a file. Raises ShadowError, with the line of an invalid one."""
    from shadow.checks.checklist import CheckRequest
    from shadow.targets.checked import read_form
    from shadow.targets.forms import CheckForm, ChecksForm

    hint = "docs/ci.md describes it: a list such as `- {model: ./a, base: ./b}`"
    form, _ = read_form(ChecksForm, file, hint=hint)
    keys = CheckForm.model_fields
    return [CheckRequest(**{key: getattr(entry, key) for key in keys}) for entry in form.root]
