"""The three checkpoints of the family `demo`, out of a finished lab: a base, a narrow and a broad
continuation, rounded to bf16.

    shadow lab run --preset full -o lab
    python benchmarks/evidence/demo_family.py lab

The folder gets `base/`, `narrow/`, `broad/` and `training.json`, which says how each came to be and
how well it answers as it is stored.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
import typer

from shadow.lab.experiment import REGIMES, SMALL, Base, Run, accuracies, checkpoint
from shadow.lab.training import MIXTURES, load, save

OUT = Path(__file__).parents[2] / "registry" / "demo"


def main(lab: Path) -> None:
    """Write the demo's checkpoints out of a finished run of the preset full."""
    torch.set_num_threads(1)
    base = Base(SMALL, 0)
    runs = {"base": None, **{name: Run(base, REGIMES[key]) for name, key in NAMES.items()}}
    models: dict[str, object] = {}
    for stage, run in runs.items():
        mixture = MIXTURES["original" if run is None else run.regime.data]
        recipe = SMALL.base if run is None else SMALL.tune
        folder = checkpoint(lab, base) if run is None else checkpoint(lab, base, run.name)
        save(load(folder), OUT / stage, torch.bfloat16)
        models[stage] = {
            "mixture": mixture.name,
            "cells": len(mixture.cells),
            "recipe": asdict(recipe),
            "tokens": recipe.steps * SMALL.size.tokens,
            "accuracies": accuracies(base, OUT / stage),
        }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    training = {"versions": versions, "models": models}
    (OUT / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")


NAMES = {"narrow": "B", "broad": "C"}

if __name__ == "__main__":
    typer.run(main)
