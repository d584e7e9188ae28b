"""Write the README's pictures and the generated parts of pages; --check: are they up to date?

In any of MARKED, between `<!-- name -->` and `<!-- /name -->` stands what the code makes; a test
fails when it drifts.
"""

import atexit
import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pages
import pandas as pd
import picture
import planted
import torch
from safetensors.torch import load_file, save_file

from shadow.reports.columns import NOTATION

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "evidence"))
from evidence_parts import PARTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
MARKED = (README, *sorted(DOCS.glob("*.md")))  # files that may have generated parts
SHADOW = Path(sys.executable).parent / "shadow"
ENVIRONMENT = {
    "COLUMNS": "80", "LINES": "40", "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8",
}  # fmt: skip
if "PYTHONPATH" in os.environ:  # the checkout to describe, where it is not the installed one
    ENVIRONMENT["PYTHONPATH"] = os.environ["PYTHONPATH"]


def shadow(*arguments: str | Path, cwd: str | Path | None = None, code: int = 0) -> str:
    """What the command prints on stdout, at 80 columns without colour.

    cwd: the folder it is in. code: its exit code.
    """
    path = str(SHADOW.parent) + ":/usr/bin:/bin"
    env = {**ENVIRONMENT, "PATH": path}
    child = subprocess.run(
        [SHADOW, *arguments], capture_output=True, encoding="utf-8", env=env, cwd=cwd
    )
    told = f"{arguments} ended with {child.returncode}\n{child.stdout}\n{child.stderr}"
    assert child.returncode == code, told
    return "\n".join(line.rstrip() for line in child.stdout.splitlines()).strip("\n")


@functools.cache
def reports_of_demo() -> str:
    """A folder of the reports of the demo family, until this process ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    shadow("audit", "demo", "-o", folder)
    return folder


def audited_demo() -> str:
    """The demo audit as a person sees it; what differs from machine to machine is replaced."""
    folder = reports_of_demo()
    text = shadow("show", f"{folder}/demo/base..narrow").replace(folder, "reports")
    text = re.sub(r"(?m)^(base|tuned)  .*/demo/(\w+)$", r"\1   .../registry/demo/\2", text)
    return re.sub(r", [\d.]+ s$", ", 0.3 s", text, flags=re.MULTILINE)


ANSWER = r"^(?:holds|does not hold|inconclusive)(?:.|\n(?=\S))*"  # to a blank line
QUESTIONS = {  # what people ask: a command, its exit code, and the words of its output that answer
    "Is my folder whole?": ("shadow check ./tuned", 0, r"^ whole +(holds .*)$"),
    "Did my fine-tune do what I meant?": (
        "shadow verify trained ./base ./tuned --frozen embed", 4, ANSWER,
    ),
    "Was my merge right?": (
        "shadow check ./merged --base ./base --adapter ./adapter", 0,
        r"^ merged +(holds .*(?:\n {9}.*)*)",
    ),
    "Is this copy faithful?": ("shadow verify stored ./full ./copy", 0, ANSWER),
    "What changed between two releases?": ("shadow audit ./base ./tuned", 0, r"^\S.*[.]$"),
}  # fmt: skip


@contextlib.contextmanager
def checkpoints() -> Iterator[str]:
    """A folder with the demo's models: base, tuned (narrow), other (broad); full, tuned in float32,
    its copy in BF16, and download, that copy widened to float32 again; an adapter of base, and
    merged, base with it.
    """
    demo = README.parent / "registry" / "demo"
    with tempfile.TemporaryDirectory() as folder:
        for name, stage in {"base": "base", "tuned": "narrow", "other": "broad"}.items():
            shutil.copytree(demo / stage, Path(folder) / name)
        random = torch.Generator().manual_seed(0)
        full = {
            name: values.float() * (1 + 1e-3 * torch.randn(values.shape, generator=random))
            for name, values in load_file(demo / "narrow" / "model.safetensors").items()
        }
        copies = {"full": full, "copy": {name: one.bfloat16() for name, one in full.items()}}
        copies["download"] = {name: one.bfloat16().float() for name, one in full.items()}
        for name, tensors in copies.items():
            shutil.copytree(demo / "narrow", Path(folder) / name)
            save_file(tensors, Path(folder) / name / "model.safetensors", {"format": "pt"})
        merged = load_file(demo / "base" / "model.safetensors")
        factors = {}
        for name in [name for name in merged if "q_proj" in name or "v_proj" in name]:
            rows, columns = merged[name].shape
            factors[name] = (planted.normal(1, rows, 4) / 20, planted.normal(2, 4, columns) / 20)
            update = 2 * factors[name][0] @ factors[name][1]
            merged[name] = (merged[name].float() + update).to(torch.bfloat16)
        planted.adapter(Path(folder) / "adapter", factors, target_modules=["q_proj", "v_proj"])
        shutil.copytree(demo / "base", Path(folder) / "merged")
        save_file(merged, Path(folder) / "merged" / "model.safetensors", {"format": "pt"})
        yield folder


def answer(command: str, code: int, words: str, folder: str) -> str:
    """The words of what a command prints that answer, on one line. code: its exit code."""
    printed = shadow(*shlex.split(command)[1:], cwd=folder, code=code)
    found = re.search(words, printed, re.MULTILINE)
    assert found is not None, printed
    return " ".join(found[found.lastindex or 0].split()).replace(f"{folder}/", "./")


def questions() -> str:
    """A Markdown table of the questions that people bring, the command for each and its answer."""
    rows = []
    with checkpoints() as folder:
        for question, (command, code, words) in QUESTIONS.items():
            line = answer(command, code, words, folder)
            rows.append(f"| {question} | `{command}` | {line} |")
    return "\n".join(["| you ask | you type | it answers |", "|---|---|---|", *rows])


CHECKS = {  # a claim and its exit code
    "shadow verify same ./copy ./download": 0,
    "shadow verify same ./full ./copy": 4,
    "shadow verify trained ./base ./tuned --moved 'language.layers.*.mlp.*'": 0,
    "shadow verify trained ./base ./tuned --frozen embed": 4,
    "shadow verify stored ./full ./copy --base ./base": 0,
}


def answers() -> str:
    """Claims about the demo's models, each with its answer."""
    with checkpoints() as folder:
        recorded = [f"$ {one}\n{answer(one, code, ANSWER, folder)}" for one, code in CHECKS.items()]
    return fenced("\n".join(recorded))


def compared_demo() -> str:
    """The demo's two models compared, as a person sees it; folders are as in the command above."""
    pairs = (f"{reports_of_demo()}/demo/base..{stage}" for stage in ("narrow", "broad"))
    text = shadow("compare", *pairs)
    return re.sub(r"(?m)^([AB]  .* of demo  )\S*/(demo/\S*/)$", r"\1reports/\2", text)


def planted_lineage() -> str:
    """The stages of a planted chain, as a person sees them."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        stages = planted.plant_stages(top)
        own = planted.registry(
            top / "registry", stages, ("base..sft", "sft..dpo", "dpo..rl", "base..rl")
        )
        shadow("audit", "toy", "--registry", own, "-o", top / "reports")
        return shadow("lineage", "toy", "--registry", own, "-o", top / "reports")


def row_of_demo() -> str:
    """One row of the demo's report, mlp.up of layer 1: some of its columns, and their meaning."""
    names = [
        "subject", "layer", "module", "relative_norm", "participation_ratio",
        "null_participation_ratio",
    ]  # fmt: skip
    rows = pd.read_parquet(f"{reports_of_demo()}/demo/base..narrow/matrices.parquet")
    row = rows.query("subject == 'delta' and layer == 1 and module == 'mlp.up'")[
        [*names, "concentration", "spikes"]
    ]
    recorded = row.iloc[0]
    words = (
        f"In words: training moved the up-projection of layer {recorded['layer']:.0f} by"
        f" {recorded['relative_norm']:.1%} of its norm.\nIts effective number of directions is"
        f" {recorded['participation_ratio']:.0f}. The same entries with random signs have"
        f" {recorded['null_participation_ratio']:.0f}."
    )
    shown = row.to_string(index=False, float_format="{:.3g}".format)
    return f"{fenced(shown)}\n\n{words.replace('%', ' %')}"


PROBES = ("narrow", "original", "broad", "held_out")


def demo_scores() -> str:
    """A CSV of the accuracies that the demo's models had on four probes when they were trained."""
    models = json.loads(
        (README.parent / "registry/demo/training.json").read_text(encoding="utf-8")
    )["models"]
    rows = ["model,benchmark,score"]
    for model, recorded in models.items():
        rows += [f"demo:{model},{probe},{recorded['accuracies'][probe]}" for probe in PROBES]
    return "\n".join(rows)


def fenced(text: str) -> str:
    return f"```text\n{text}\n```"


BLOCKS: dict[str, Callable[[], str]] = {  # every generated part by name
    "demo": lambda: fenced(audited_demo()),
    "questions": questions,
    "compare": lambda: fenced(compared_demo()),
    "lineage": lambda: fenced(planted_lineage()),
    "commands": pages.command_line,
    "row": row_of_demo,
    "rules": pages.rules,
    "families": lambda: fenced(shadow("families", "stages")),
    "notation": lambda: NOTATION,
    **PARTS,
    "demo-scores": lambda: f"```csv\n{demo_scores()}\n```",
    "answers": answers,
}


def part(text: str, name: str) -> str:
    """What stands in a file between the marks of a name."""
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]


def places() -> dict[str, list[Path]]:
    """The files in which each generated part stands."""
    return {
        name: [file for file in MARKED if f"<!-- {name} -->\n" in file.read_text(encoding="utf-8")]
        for name in BLOCKS
    }


def written() -> dict[Path, str]:
    """Every file that has generated parts, with these made anew."""
    new = {file: file.read_text(encoding="utf-8") for file in MARKED}
    for name, files in places().items():
        if not files:
            raise SystemExit(f"no file has a part <!-- {name} -->")
        content = BLOCKS[name]()
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        for file in files:
            new[file] = pattern.sub(
                lambda match, content=content: f"{match[1]}{content}\n{match[2]}", new[file]
            )
    return new


COMMANDS = ("make demo", "make test")  # by which a newcomer begins


def unnamed(text: str) -> list[str]:
    """The COMMANDS that a page lacks: all stand in one block, each with a comment."""
    named = [
        re.findall(r"(?m)^\$ (make \w+) +# +\S", block)
        for block in re.findall(r"(?s)```console\n(.*?)```", text)
    ]
    first = next((words for words in named if words), [])
    return [command for command in COMMANDS if command not in first]


if __name__ == "__main__":
    if missing := unnamed(README.read_text(encoding="utf-8")):
        sys.exit(f"README.md does not say what {' and '.join(missing)} takes, in one block")
    new = {**written(), **picture.pictures()}
    if "--check" in sys.argv:
        stale = [
            file.name
            for file, text in new.items()
            if not file.is_file() or file.read_text(encoding="utf-8") != text
        ]
        sys.exit(f"{' and '.join(stale)} out of date: run `make docs`" if stale else None)
    for file, text in new.items():
        file.write_text(text, encoding="utf-8")
