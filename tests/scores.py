"""Files of scores as benchmarks write them, and reports with scores."""

from __future__ import annotations

import json
from pathlib import Path

from reports import identity, uniform

from shadow.comparing.gains import Gain


def harness(model="org/tuned", results=None, **told):
    """A result as lm-evaluation-harness writes it; told replaces its keys."""
    results = {"mmlu": {"acc,none": 0.6, "acc_stderr,none": 0.004}} if results is None else results
    return {
        "results": {
            task: {"alias": f" - {task}", "sample_len": 100, **found}
            for task, found in results.items()
        },
        "group_subtasks": {task: [] for task in results}, "configs": {},
        "versions": dict.fromkeys(results, 1.0), "n-shot": dict.fromkeys(results, 5),
        "higher_is_better": {
            task: {"acc": True, "acc_norm": True, "exact_match": True}
            for task in results
        },
        "n-samples": {task: {"original": 100, "effective": 100} for task in results},
        "config": {
            "model": "hf", "model_args": {"pretrained": model, "dtype": "auto"}, "model_sha": "",
            "limit": None,
        },
        "git_hash": "abc", "date": 1.0, "model_source": "hf", "model_name": model,
        "chat_template": None, **told,
    }  # fmt: skip


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def gain(value, benchmark="a", group="narrow", unit="at most 1", metric=None):
    return Gain(
        benchmark, group, metric, unit, True, 0.1, 0.2, value, None, None, None, "b", "t", "f", "f"
    )


def scored_reports(tmp_path, values, gains, **options):
    """Reports of one concentration each, and a CSV of their scores."""
    rows = ["model,benchmark,score,group"]
    folders = []
    for i, (value, own) in enumerate(zip(values, gains, strict=True)):
        base = {**identity(100 + i), "repo": f"org/base-{i}", "commit": f"{i:040x}"}
        tuned = {**identity(200 + i), "repo": f"org/tuned-{i}", "commit": f"{i + 50:040x}"}
        told = {
            "base": base,
            "tuned": tuned,
            "family": f"f{i}",
            "pair": "base..sft",
            "weights": 1.0 + i,
            **options,
        }
        folder = uniform(tmp_path / f"p{i}", value, **told)
        folders.append(folder)
        rows += [f"org/base-{i},mmlu,0.5,narrow", f"f{i}:sft,mmlu,{0.5 + own:.3f},narrow"]
    return folders, write(tmp_path / "scores.csv", "\n".join(rows))
