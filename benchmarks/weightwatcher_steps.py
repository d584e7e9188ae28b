"""What WeightWatcher runs for one `shadow audit`'s figures, for `against_weightwatcher.py`.

Usage: weightwatcher_steps.py BASE TUNED MAX_N OUT. It needs nothing but weightwatcher and torch.
The checkpoints are given as folders, the form that keeps one tensor in memory at a time, and the
three steps share one process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

started = time.monotonic()

import weightwatcher  # noqa: E402 - the import is timed too


def main(base: str, tuned: str, max_n: int, out: Path) -> None:
    """Analyse base, tuned and tuned - base; write the details and the seconds of each step to OUT
    as JSON.
    """
    seconds = {"import": time.monotonic() - started}
    details = {}
    for step, model, other in (
        ("base", base, None),
        ("tuned", tuned, None),
        ("delta", tuned, base),
    ):
        begun = time.monotonic()
        watcher = weightwatcher.WeightWatcher(model=model, base_model=other)
        table = watcher.analyze(max_N=max_n)
        watcher.get_summary(table)
        seconds[step] = time.monotonic() - begun
        details[step] = json.loads(table.to_json(orient="records", double_precision=15))
    out.write_text(
        json.dumps({"version": weightwatcher.__version__, "seconds": seconds, "details": details})
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
