"""The commands under their names, and what an error looks like."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable
from typing import Annotated

import typer

from shadow import __version__
from shadow.cli import audit, compare, console, gate, lab, lookup, options, reports, verify
from shadow.cli.interrupts import INTERRUPTED, STOPPED, Unfinished, stop
from shadow.cli.usage import Command, Commands, as_usage_error
from shadow.errors import ShadowError, UsageError

app = typer.Typer(
    name="shadow",
    cls=Commands,
    help=(
        "Measure what fine-tuning changed in the weights of a model: how far each matrix moved,"
        " along how many directions, and in which layers."
    ),
    epilog="Try `shadow audit demo`. `shadow COMMAND --help` has options and examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"shadow {__version__}")
        raise typer.Exit


@app.callback()
def _shadow(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _add(group: typer.Typer, command: Callable[..., None], name: str | None = None) -> None:
    """Add a command. Its help is its docstring, a line a paragraph, as Rich keeps line breaks."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    group.command(name, cls=Command, help=text)(options.typed(command))


for _command in (
    audit.audit, verify.verify, compare.compare, reports.show, reports.report,
    audit.plan, gate.gate, compare.lineage, reports.export, reports.figure,
    lookup.explain, lookup.families, reports.clean,
):  # fmt: skip
    _add(app, _command)
_words = "Train small models on known data, and audit them."
_lab = typer.Typer(name="lab", cls=Commands, help=_words, no_args_is_help=True)
_add(_lab, lab.lab_run, "run")
app.add_typer(_lab)


# Objects made before Python looks for cycles among them. At its own 700 the imports of torch and
# pandas, of which all stays, take 0.3 s more: a tenth of `audit demo`.
COLLECT_AFTER = 20_000


def _prepare_process() -> None:
    """Set up the whole process, before a command imports torch or NumPy.

    Only here: importing a module of `shadow` leaves the process unchanged. One BLAS thread for each
    worker (see shadow.run.workers); torch and NumPy read these variables on import, which no module
    of this package does before a command runs.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    console.forgive_letters()


def run() -> int:
    """Run the command of `sys.argv`; returns its exit code. Errors are printed on stderr.

    Raises KeyboardInterrupt if interrupted, unless the same command can continue the work.
    """
    _prepare_process()
    console.begin()
    try:
        try:
            code = app(standalone_mode=False) or 0
        finally:
            console.flush()
            # to look for cycles once more when Python ends, among all of torch, takes 0.6 s
            gc.freeze()
        if code == INTERRUPTED:  # so typer answers a KeyboardInterrupt
            raise KeyboardInterrupt
    except Unfinished:
        return stop(f"{STOPPED}; run the same command again to continue")
    except typer.TyperException as fault:
        if (wrong := as_usage_error(fault)) is not None:
            console.complain(wrong)
        return 2
    except ShadowError as error:
        console.complain(error)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # the reader (`| head`) has gone
        console.give_up()
        return 1
    except OSError as error:
        console.give_up()
        where = error.filename or "input or output failed"  # such as a full disk
        console.complain(ShadowError(f"{where}: {error.strerror or error}"))
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise  # not torch's words
        hint = "free some, or use fewer workers, as by --jobs 1"
        console.complain(ShadowError("there is not enough memory", hint))
        return 1
    return int(code)
