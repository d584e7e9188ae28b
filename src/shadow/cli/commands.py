"""The commands under their names, their help, and what an error looks like."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from shadow.cli import audit, check, compare, console, gate, lookup, options, reports, verify
from shadow.cli.interrupts import INTERRUPTED, STOPPED, Unfinished, stop
from shadow.errors import ShadowError, UsageError
from shadow.version import __version__

EXAMPLES = {
    "check": (
        "shadow check ./model",
        "shadow check ./model --base ./base --adapter ./adapter",
        "shadow check ./model --full ./full --junit junit.xml",
    ),
    "audit": (
        "shadow audit demo",
        "shadow audit ./base ./tuned --name mine:base..tuned",
        "shadow audit qwen2.5-7b --fail-on 'concentration > 0.5'",
    ),
    "show": ("shadow show reports/demo/base..narrow --format markdown",),
    "compare": (
        "shadow compare reports/demo/base..narrow reports/demo/base..broad",
        "shadow compare reports --scores scores.csv",
    ),
    "gate": (
        "shadow gate reports --policy policy.yaml --junit gate.xml",
        "shadow gate reports --against accepted",
    ),
}


class Commands(TyperGroup):
    """The group of all commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print plain help without options, so that all commands fit a terminal of 24 rows."""
        formatter = ctx.make_formatter()  # of the other one what is written is taken for a fault
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_commands(ctx, formatter)
        self.format_epilog(ctx, formatter)
        print(formatter.getvalue().rstrip())


class Command(TyperCommand):
    """A command with examples in its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Format help like typer, with examples; and the claims of `verify`, imported here."""
        lines = claims() if self.name == "verify" else EXAMPLES.get(self.name or "", ())
        title = "Claims" if self.name == "verify" else "Examples"
        if lines:  # \b: they stay as they are
            self.epilog = "\n  ".join([f"\b\n{title}:", *lines])
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse like typer, with `--json` short for `--format json`."""
        params = self.get_params(ctx)
        known = {name for param in params for name in (*param.opts, *param.secondary_opts)}
        valued = [
            name for param in params if not getattr(param, "is_flag", True) for name in param.opts
        ]
        if "--format" in known:  # not the value of another option, nor after --
            args = [
                "--format=json" if word == "--json" and before not in (*valued, "--") else word
                for before, word in pairwise(["", *args])
            ]
        return super().parse_args(ctx, args)


def claims() -> tuple[str, ...]:
    """A line for each claim of `shadow verify`: what to type, and what it claims."""
    from shadow.checks.registry import CHECKS

    typed = {name: f"{name} {form.names_in_usage}" for name, form in CHECKS.items()}
    width = max(map(len, typed.values()))
    return tuple(f"{words:<{width}}  {CHECKS[name].says}" for name, words in typed.items())


app = typer.Typer(
    name="shadow",
    cls=Commands,
    help="Check models, and measure what fine-tuning changed in their weights.",
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
    group.command(name or command.__name__, cls=Command, help=text)(options.typed(command))


for _command in (
    check.check, audit.audit, verify.verify, compare.compare, reports.show, reports.report,
    audit.plan, gate.gate, compare.lineage, reports.export, reports.figure,
    lookup.explain, lookup.families, reports.clean,
):  # fmt: skip
    _add(app, _command)
_words = "Train small models on known data, and audit them."
_lab = typer.Typer(name="lab", cls=Commands, help=_words, no_args_is_help=True)
_add(_lab, audit.lab_run, "run")
app.add_typer(_lab)


# Objects made before Python looks for cycles among them. At its own 700 the imports of torch and
# pandas, of which all stays, take 0.3 s more: a tenth of `audit demo`.
COLLECT_AFTER = 20_000


def run() -> int:
    """Run the command of `sys.argv`; returns its exit code. Errors are printed on stderr.

    Raises KeyboardInterrupt if interrupted, unless the same command can continue the work.
    """
    # Only here: importing a module of `shadow` leaves the process unchanged. One BLAS thread for
    # each worker (see shadow.run.workers); torch and NumPy read these variables on import, which no
    # module of this package does before a command runs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    console.begin()
    try:
        try:
            code = app(standalone_mode=False) or 0
        finally:
            print(end="", flush=True)  # so that a full disk is noticed here, not on exit
            # to look for cycles once more when Python ends, among all of torch, takes 0.6 s
            gc.freeze()
        if code == INTERRUPTED:  # so typer answers a KeyboardInterrupt
            raise KeyboardInterrupt
    except Unfinished:
        return stop(f"{STOPPED}; run the same command again to continue")
    except typer.TyperException as fault:
        if message := " ".join(fault.format_message().split()).rstrip("."):  # else it was the help
            context = getattr(fault, "ctx", None)
            hint = f"`{context.command_path} --help` lists what there is" if context else None
            message = message.replace(": Value error, ", ": ")  # of pydantic
            console.complain(UsageError(message[:1].lower() + message[1:], hint))
        return 2
    except ShadowError as error:
        console.complain(error)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        console.give_up()
        if not isinstance(error, BrokenPipeError):  # else the reader (`| head`) has gone
            where = error.filename or "input or output failed"  # such as a full disk
            console.complain(ShadowError(f"{where}: {error.strerror or error}"))
        return 1
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise  # not torch's words
        console.complain(ShadowError("there is not enough memory", "free some, or use --jobs 1"))
        return 1
    return int(code)
