"""Hostile files and words for the command line, each in a process of its own:
`python tests/fuzz.py --processes 500`.

A command ends in time with a documented exit code. What it prints can be printed, an error is a
line with at most one hint, there is no traceback, and it writes nothing outside its output folder.
What breaks this is printed, with the number of its seed.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from command import Run
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

CODES = (0, 1, 2, 3, 4, 5)  # as docs/cli.md lists them
SECONDS = 240  # of the clock, on a busy machine; a command takes three of a core
OUTPUT = "out"
# what a command may write: the default of -o, and the index of a list, which `show` brings up to
# date; a path of them or below them
MAY_WRITE = (OUTPUT, "reports", "report/index.json")
EXAMPLE = 6  # of a seed: the first ones change little
Place = Callable[[Path, bytes], list[str]]

WORDS = (
    "audit", "plan", "verify", "show", "gate", "compare", "export", "families", "explain", "whole",
    "same", "trained", "related", "quantised", "files", "stored", "merged", "./base",
    "./tuned", "report", "./missing", "demo:base..narrow", "demo", "--level", "norms", "--json",
    "--layer", "0-3", "--module", "mlp.up", "--fail-on", "nonfinite", "x > 1", "--moved",
    "language.layers.0", "--frozen", "*", "--jobs", "1", "-1", "--format", "json", "--full", "-q",
    "--list", "--strict", "--no-spectra", "--subjects", "delta", "--component", "vision", "--to",
    "csv", "--headers", "--help", "--base", "--tuned", "--name", "a:b..c", "\ud800", "\x1b[2J", "",
    "--margin", "nan", "--shard", "1/2", "--max-disk", "1B", "--allow-pickle", "concentration",
    "--all", "-", "/dev/zero", "::error::x", "x" * 300, "language=./base,vision=./tuned",
)  # fmt: skip


def cases(targets: Any, top: Path) -> dict[str, tuple[Any, Place]]:
    """What may be in the files or words of a command, and how it is placed; by name."""
    import fuzz  # which imports this module

    audit = ["audit", "./base", "./tuned", "--level", "norms", "--allow-pickle", "-o", OUTPUT]
    whole = ["verify", "whole", "./tuned"]

    def file(name: str, words: list[str], *, alone: bool = False) -> Place:
        def place(folder: Path, content: bytes) -> list[str]:
            if alone:
                (folder / "tuned" / "model.safetensors").unlink()
            (folder / name).write_bytes(content)
            return words

        return place

    def typed(*words: str) -> Place:
        def place(folder: Path, content: bytes) -> list[str]:
            text = content.replace(b"\0", b"").decode("utf-8", "surrogateescape")
            return [*words, text]

        return place

    def several(folder: Path, content: bytes) -> list[str]:
        (folder / "tuned" / "model.safetensors").unlink()
        fuzz.write_whole(folder / "tuned", content)
        return whole

    def given_words(folder: Path, content: bytes) -> list[str]:
        return [*json.loads(content)]

    def of(name: str) -> Any:
        return targets[name].content

    adapter = top / "base" / "model.safetensors"

    def of_adapter(folder: Path, content: bytes) -> list[str]:
        (folder / "tuned" / "model.safetensors").unlink()
        shutil.copy(adapter, folder / "tuned" / "adapter_model.safetensors")
        (folder / "tuned" / "adapter_config.json").write_bytes(content)
        return ["verify", "trained", "./base", "./tuned"]

    words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7)
    families = ["plan", "toy-*", "--registry", "registry", "--offline"]
    scored = ["compare", "report", "other", "--scores"]
    weights = "tuned/model.safetensors"
    return {
        "weights": (of("header"), file(weights, audit)),
        "weights-whole": (of("header"), file(weights, whole)),
        "gguf": (of("gguf"), file("tuned/a.gguf", audit, alone=True)),
        "gguf-whole": (of("gguf"), file("tuned/a.gguf", whole, alone=True)),
        "bin": (fuzz.changed_bytes(pickled()), file("tuned/pytorch_model.bin", audit, alone=True)),
        "config": (of("config"), file("tuned/config.json", audit)),
        "index": (of("index"), file("tuned/model.safetensors.index.json", ["plan", *audit[1:3]])),
        "adapter": (of("adapter"), of_adapter),
        "whole": (of("whole"), several),
        "registry": (of("registry"), file("registry/a.yaml", families)),
        "list": (of("list"), file("l", ["audit", "--list", "l", "--offline", "-o", OUTPUT])),
        "yaml-list": (of("yaml-list"), file("l.yaml", ["plan", "--list", "l.yaml", "--offline"])),
        "policy": (of("policy"), file("p.yaml", ["gate", "report", "--policy", "p.yaml"])),
        "rule": (of("rule"), typed("gate", "report", "--fail-on")),
        "claims": (of("claims"), file("c.yaml", ["verify", "--claims", "c.yaml", "--offline"])),
        "csv": (of("csv"), file("a.csv", [*scored, "a.csv"])),
        "harness": (of("harness"), file("a.json", [*scored, "a.json"])),
        "summary": (of("summary"), file("report/summary.json", ["show", "report"])),
        "parquet": (of("parquet"), file("report/matrices.parquet", ["show", "report", "--full"])),
        "batch": (of("batch"), file("report/index.json", ["show", "report", "--json"])),
        "words": (words.map(lambda chosen: json.dumps(chosen).encode()), given_words),
    }  # fmt: skip


def pickled() -> tuple[bytes, ...]:
    """A `.bin` file in both formats of torch."""
    state = {"model.layers.0.mlp.up_proj.weight": torch.ones(2, 3)}
    files = []
    for is_new in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=is_new)
        files.append(file.getvalue())
    return tuple(files)


def drawn(content: Any, number: int) -> bytes:
    """One example of a seed."""
    examples: list[bytes] = []

    @seed(number)
    @settings(max_examples=EXAMPLE, database=None, deadline=None, phases=[Phase.generate])
    @given(content)
    def once(example: bytes) -> None:
        examples.append(example)

    once()
    return examples[-1]


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    """The files of a folder, with size and time of change, without those that may be written."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        may_change = any(name == may or name.startswith(f"{may}/") for may in MAY_WRITE)
        if path.is_file() and not may_change:
            state = path.stat()
            found[name] = state.st_size, state.st_mtime_ns
    return found


def faults(done: Run, before: Any, after: Any) -> Iterator[str]:
    """What a command did that it may not do."""
    out, err = done.out, done.err
    if done.code not in CODES:
        yield f"exit code {done.code}"
    if "Traceback" in out + err:
        yield "a traceback"
    if "Warning: " in err:
        yield "a warning of Python"
    if not (out + err).replace("\n", "").isprintable():
        yield "output that cannot be printed"
    if done.code == 1 and "error:" not in err and not out:
        yield "a failure without a word"
    if before != after:
        names = sorted({name for name, _ in before.items() ^ after.items()})
        yield f"files changed outside the output: {names[:5]}"


def run(targets: Any, count: int, first: int) -> int:
    """Run so many commands, and print those that broke their word: how many did."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        prepare(top)
        every = list(cases(targets, top / "made").items())
        for number in range(count):
            name, (content, place) = every[number % len(every)]
            example = drawn(content, first + number)
            if problems := attempt(top, place, example):
                failed += 1
                print(number, name, problems, repr(example)[:4000], flush=True)
    return failed


def prepare(top: Path) -> None:
    """Make two checkpoints and two reports once."""
    import planted
    import reports

    made = top / "made"
    for name, size in (("base", 1.0), ("tuned", 1.1)):
        weights = {
            "model.layers.0.mlp.up_proj.weight": size * torch.ones(2, 3),
            "model.norm.weight": torch.ones(3).bfloat16(),
        }
        planted.write(made / name, weights, planted.LLAMA)
    for name in ("report", "other"):
        rows = [reports.delta(0.3, where) for where in reports.places(1, ("mlp.up",))]
        reports.write(made / name, rows)
    (made / "registry").mkdir()


def attempt(top: Path, place: Place, example: bytes) -> list[str]:
    """Run a command in a new folder."""
    folder = top / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(top / "made", folder / "work")
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    words = place(folder / "work", example)
    source = str(Path(__file__).parents[1] / "src")
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": source, "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "SHADOW_NO_CACHE": "1", "PYTHONUTF8": "1", "COLUMNS": "120",
    }  # fmt: skip
    before = listed(folder / "work") | listed(folder / "tmp")
    done = in_process(words, folder, environment)
    if done is None:
        return [f"took more than {SECONDS} s"]
    found = [*faults(done, before, listed(folder / "work") | listed(folder / "tmp"))]
    if found:
        found.append(done.err[-2000:])
    return found


def in_process(words: list[str], folder: Path, environment: dict[str, str]) -> Run | None:
    """Run a command in a new process; None if it did not end."""
    command = [sys.executable, "-P", "-m", "shadow", *words]
    try:
        done = subprocess.run(
            [encoded(word) for word in command],
            cwd=folder / "work", env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    texts = (text.decode(errors="surrogateescape") for text in (done.stdout, done.stderr))
    return Run(done.returncode, *texts)


def encoded(word: str) -> bytes:
    """Return a word as the bytes of an argument; a lone surrogate of high half as its own."""
    return word.encode("utf-8", "surrogatepass" if "\ud800" in word else "surrogateescape")
