"""`shadow` commands in tests: a process that imports once, a fork for each, and what came of it."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

SECONDS = 120  # after which a command counts as hung

# Imports once and forks for every command: the imports take two seconds, a command on toy files a
# tenth of one.
ZYGOTE = """
import contextlib, functools, gc, importlib, inspect, json, os, pkgutil, resource, signal, sys
import traceback
import rich.console, typer.main
import shadow.cli
# The Hub's client reads the environment when it is imported: what needs it is imported by commands.
sys.modules["huggingface_hub"] = None
for one in pkgutil.walk_packages(shadow.__path__, "shadow."):
    if "__main__" not in one.name:
        with contextlib.suppress(ImportError):
            importlib.import_module(one.name)
del sys.modules["huggingface_hub"]
with contextlib.suppress(ImportError):  # what drawing imports
    import matplotlib.backends.backend_svg, matplotlib.figure, matplotlib.layout_engine
ours = [module for name, module in sys.modules.items() if name.startswith("shadow.")]
names = [(module, name, one) for module in ours for name, one in vars(module).items()]
for module, name, one in names:
    if hasattr(one, "cache_info") and not inspect.signature(one).parameters:
        one()
    # `plan` does not measure the machine for a second each time (test_api.py has a plan that does)
    if name == "pace" and inspect.isfunction(one):
        setattr(module, name, lambda *arguments, **more: 1e10)
sys.path.append(sys.argv[1])
import asking
sys.path.pop()
asking.ask_here()
# at its import it takes width and colours from the environment
(console,) = {module for module, _, one in names if isinstance(one, rich.console.Console)}
# Commands are built from their signatures once, not in every fork.
typer.main.get_command = functools.cache(typer.main.get_command)
for _, _, one in names:
    if isinstance(one, typer.Typer):
        typer.main.get_command(one)
os.fsync = lambda handle: None  # as in conftest.py
def forget_client():
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
# what the client imports, not the client itself
import huggingface_hub.hf_api, huggingface_hub.file_download
forget_client()
gc.freeze()  # a fork that does not look at what is there need not copy it
for line in sys.stdin:
    job = json.loads(line)
    words = [os.fsdecode(bytes.fromhex(one)) for one in job["arguments"]]
    if {"check", "whole"} & {*words}:  # which ask for the classes of the demo
        import transformers.models.auto.modeling_auto, transformers.models.llama.modeling_llama
        forget_client()
    pipes = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(job["seconds"])
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[1][1], 2)
        if job["file_size"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], job["file_size"]))
        sys.stdout = open(1, "w", encoding=os.environ.get("PYTHONIOENCODING"), closefd=False)
        sys.stderr = open(2, "w", 1, sys.stdout.encoding, "backslashreplace", closefd=False)
        importlib.reload(console).EVERY = 1e6  # a slow machine has no line of progress
        sys.argv = ["shadow", *words]
        code = 0
        if job["recorded"]:
            import coverage
            path, test = job["recorded"]
            recording = coverage.Coverage(path, True, include="*/shadow/*", context=test)
            recording.start()
        try:
            shadow.cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        if job["recorded"]:
            recording.stop()
            recording.save()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    texts = []
    for _, writer in pipes:
        os.close(writer)
    for reader, _ in pipes:  # before the child ends: it waits while 64 kB lie in a pipe
        with os.fdopen(reader, "rb") as file:
            texts.append(file.read().hex())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, *texts]), flush=True)
"""


@dataclass
class Run:
    code: int
    out: str
    err: str

    def assert_refused(self, code: int = 1) -> str:
        """An expected fault: the exit code, one `error:` line, at most one `hint:`, nothing else.
        Returns the error.
        """
        assert "Traceback" not in self.out + self.err, self.err[-400:]
        assert self.code == code, self.err
        lines = self.err.splitlines()
        assert [line.split(":")[0] for line in lines] in (["error"], ["error", "hint"]), self.err
        assert self.out == ""
        assert self.err.replace("\n", "").isprintable()
        return lines[0]

    def assert_done(self, code: int = 0) -> str:
        """A command that did its work. Returns what it printed, wrapped lines of tables as well."""
        assert "Traceback" not in self.err, self.err[-400:]
        assert self.code == code, self.err
        assert self.out.replace("\n", "").isprintable()
        assert self.err.replace("\n", "").isprintable()
        return self.out


@cache
def zygote() -> subprocess.Popen[str]:
    """The one process of this worker that imports. It ends with its stdin: with the worker."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", ZYGOTE, str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class Started:
    """A command that runs beside the test, one at a time; a fork, as if started alone."""

    latest: ClassVar["Started | None"] = None
    recorded: ClassVar[tuple[str, str] | None] = None
    """The file and the test for which tests/mutants.py records the lines of the command."""

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        env: dict[str, str | None] | None = None,
        bare: bool = False,
        file_size: int = 0,
        seconds: int = SECONDS,
    ) -> None:
        """env: beside those of this process, None for one less. bare: no other variables."""
        before = Started.latest
        assert before is None or before.run, "the warm process answers for one command at a time"
        variables = {} if bare else os.environ | {"COLUMNS": "200"}
        variables |= env or {}
        job = {
            "arguments": [os.fsencode(str(one)).hex() for one in arguments], "cwd": str(cwd),
            "env": {name: str(value) for name, value in variables.items() if value is not None},
            "file_size": file_size, "seconds": seconds,
            "recorded": None if file_size else Started.recorded,
        }  # fmt: skip
        pipe = zygote().stdin
        assert pipe
        pipe.write(json.dumps(job) + "\n")
        pipe.flush()
        self.pid = int(self._line())
        self.run: Run | None = None
        Started.latest = self

    def _line(self) -> str:
        pipe = zygote().stdout
        assert pipe
        return pipe.readline()

    def kill(self, number: int = signal.SIGKILL) -> Run:
        """Sends a signal, and waits for the end."""
        os.kill(self.pid, number)
        return self.end()

    def end(self) -> Run:
        """Waits for the command."""
        if self.run is None:
            code, *texts = json.loads(self._line())
            self.run = Run(code, *(bytes.fromhex(text).decode() for text in texts))
        return self.run


def run_shadow(*arguments: object, cwd: Path, **more: object) -> Run:
    """Runs a `shadow` command in a folder: in a fork of a process that has everything imported.

    What depends on the interpreter's start (encodings, the hash seed, threads, signals) needs the
    script itself.
    """
    return Started(*arguments, cwd=cwd, **more).end()  # type: ignore[arg-type]
