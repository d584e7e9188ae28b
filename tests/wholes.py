"""Checkpoints for the tests of `verify whole`, and how they are asked about."""

from pathlib import Path

import planted
from safetensors.torch import save_file

import shadow
from shadow.checks.answer import Outcome

FILE = "model.safetensors"
HOLDS, FAILS, OPEN = Outcome.HOLDS, Outcome.DOES_NOT_HOLD, Outcome.INCONCLUSIVE


def store(folder: Path, tensors: planted.Tensors, name: str = FILE) -> None:
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / name)


def verified(folder: Path, **options):
    return shadow.verify("whole", folder, **options)


def codes(found) -> set[str]:
    return {one.code for one in found.against}
