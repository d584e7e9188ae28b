"""The three checkpoints of the family `demo`, out of a finished lab: a base, a narrow and a broad
continuation.

    shadow lab run --preset full -o lab
    python benchmarks/evidence/demo_family.py lab

They are the base small-warm-0 and its runs B and C of seed 0, rounded to bf16: 1.3 MB in all. The
folder gets `base/`, `narrow/`, `broad/` and `training.json`, which says how each came to be and how
well it answers as it is stored.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer

from shadow.lab.design import REGIMES, SCALES, Base, Run
from shadow.lab.experiment import accuracies, checkpoint, record
from shadow.lab.training import load, save

ROOT = Path(__file__).parents[2]
BASE = Base("small", 0)


def export(lab: Path, out: Path, base: Base = BASE) -> None:
    """Write the demo's checkpoints and `training.json` from a lab's folder that has base and its
    runs B and C.
    """
    scale = SCALES[base.scale]
    models: dict[str, object] = {}
    for stage, regime in (("base", None), ("narrow", "B"), ("broad", "C")):
        name, mixture, recipe = None, base.original, scale.base
        if regime is not None:
            name, recipe = Run(base, regime).name, scale.tune
            mixture = REGIMES[regime].mixture(scale.world, base.original)
        save(load(checkpoint(lab, base, name)), out / stage, torch.bfloat16)
        finished = json.loads(record(lab, base, name).read_text(encoding="utf-8"))
        last_state = finished if regime is None else finished["rows"][-1]
        models[stage] = {
            "mixture": mixture.name,
            "cells": len(mixture.cells),
            "recipe": asdict(recipe),
            "tokens": recipe.steps * scale.size.tokens,
            "loss": last_state["loss"],
            "accuracies": accuracies(base, out / stage),
        }
    training = {
        "lab": {"base": base.key, "narrow": Run(base, "B").name, "broad": Run(base, "C").name},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "models": models,
    }
    (out / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")


def main(
    lab: Annotated[
        Path, typer.Argument(help="Folder of a finished run of the preset full.", file_okay=False)
    ],
) -> None:
    """Write the demo's checkpoints into this checkout."""
    torch.set_num_threads(1)
    export(lab, ROOT / "registry" / "demo")


if __name__ == "__main__":
    typer.run(main)
