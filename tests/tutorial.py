"""Real weights from PyPI, and what the commands of docs/start.md say of them: run it to write
the page's outputs.

rxnfp 0.1.0 (MIT): a BERT of 6.7M parameters pretrained on chemical reactions and two models
fine-tuned from it, as torch .bin files of the old format. `make real` holds the page against them.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import readme

PAGE = readme.DOCS / "start.md"
RUN = re.compile(r"```console\n((?:\$ .*\n)+)```\n\n<!-- (tutorial-[\w-]+) -->\n")
# the line on a checkpoint, folded or not
SOURCE = re.compile(r"(?m)^(base   |tuned  )(.+(?:\n {7} ?\S.*)*)")


def fetch(folder: Path) -> Path:
    """Download and unpack the wheel into a folder, once. Returns the folder that holds `rxnfp`."""
    if not list(folder.glob("rxnfp-*.whl")):
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", folder,
            "rxnfp==0.1.0",
        ]  # fmt: skip
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("rxnfp-*.whl"))) as wheel:
        wheel.extractall(folder / "rxnfp")
    return folder / "rxnfp"


def fenced_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def outputs(wheel: Path) -> dict[str, str]:
    """What the last command above each mark prints, by the name of the mark."""
    text = PAGE.read_text(encoding="utf-8")
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "rxnfp").symlink_to(wheel.resolve() / "rxnfp")
        (folder / "mine").mkdir()
        (folder / "mine" / "rxnfp.yaml").write_text(
            fenced_blocks(text, "yaml")[0], encoding="utf-8"
        )
        for lines, mark in RUN.findall(text):
            printed = [
                _run(line[2:].split(), folder)
                for line in lines.splitlines()
                if line.startswith("$ shadow")
            ]
            found[mark] = readme.fenced(_same_everywhere(printed[-1], folder, wheel))
    return found


def _run(command: list[str], folder: Path) -> str:
    """What a command prints and says, without progress, as in a terminal of 80 columns."""
    program = [readme.SHADOW] if command[0] == "shadow" else [sys.executable]
    environment = {**readme.ENVIRONMENT, "PATH": "/usr/bin:/bin"}
    more = {"cwd": folder, "capture_output": True, "encoding": "utf-8", "env": environment}
    done = subprocess.run([*program, *command[1:]], check=False, **more)
    said = done.stdout if done.returncode == 0 else done.stderr
    return "\n".join(line.rstrip() for line in said.splitlines()).strip("\n")


def _same_everywhere(text: str, folder: Path, wheel: Path) -> str:
    """Without what differs from machine to machine: folders, seconds, memory, cores."""
    text = SOURCE.sub(lambda match: match[1] + _one_line(match[2], str(wheel.resolve())), text)
    for place in (str(wheel.resolve()), str(folder)):
        text = text.replace(f"{place}/rxnfp/models/transformers", "...").replace(f"{place}/", "")
    text = re.sub(r"(?m)^(memory|cores |time  ) .*\n?", "", text).rstrip("\n")
    return re.sub(r", [\d.]+ s$", ", 18 s", text, flags=re.MULTILINE)


def _one_line(recorded: str, place: str) -> str:
    """A checkpoint on one line, its folder shortened: where it was folded depends on the folder."""
    folded = "\0?".join(map(re.escape, f"{place}/rxnfp/models/transformers/"))
    joined = re.sub(
        rf"{folded}([\w\0]+)", lambda match: f".../{match[1]}", re.sub(r"\n {7} ?", "\0", recorded)
    )
    return re.sub(r"(?<=\.\.\./)[\w\0]+", lambda match: match[0].replace("\0", ""), joined).replace(
        "\0", " "
    )


def written(text: str, found: dict[str, str]) -> str:
    """The page with these outputs between their marks."""
    for name, content in found.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    return text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        seen = outputs(fetch(Path(os.environ.get("SHADOW_REAL_CACHE") or scratch)))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), seen), encoding="utf-8")
