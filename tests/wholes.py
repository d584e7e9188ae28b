"""Checkpoints for the tests of `verify whole`, and how they are asked about."""

import subprocess
import sys
from pathlib import Path

import planted
from safetensors.torch import save_file

import shadow
from shadow.checkpoints.expected import OFFLINE
from shadow.checkpoints.pickles import environment
from shadow.checks.answer import Outcome

FILE = "model.safetensors"
HOLDS, FAILS, OPEN = Outcome.HOLDS, Outcome.DOES_NOT_HOLD, Outcome.INCONCLUSIVE


def store(folder: Path, tensors: planted.Tensors, name: str = FILE) -> None:
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / name)


def verified(folder: Path, **options):
    return shadow.verify("whole", folder, **options)


class WarmChild:
    """The confined child that asks transformers, asked many times. It ends with the thread that
    began it, and its seconds are counted.
    """

    def __init__(self, home: Path) -> None:
        self.home, self.child = home, None

    def begin(self) -> None:
        self.end()
        command = [sys.executable, "-P", "-m", "shadow.checkpoints.expected"]
        self.child = subprocess.Popen(
            command, text=True, env=environment(str(self.home)) | OFFLINE, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, command, *_, **__) -> subprocess.CompletedProcess:
        self.child.stdin.write(Path(command[-1]).read_text() + "\n")
        self.child.stdin.flush()
        answer = next((line for line in self.child.stdout if line.strip()), "")
        code = 0 if answer else self.child.wait()
        return subprocess.CompletedProcess(command, code, answer.encode(), b"")

    def end(self) -> None:
        if self.child:
            self.child.communicate()


def codes(found) -> set[str]:
    return {one.code for one in found.against}
