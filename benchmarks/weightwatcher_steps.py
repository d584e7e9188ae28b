"""What WeightWatcher runs for one `shadow audit`'s figures, for `growth.py`.

Usage: weightwatcher_steps.py BASE TUNED. It needs nothing but weightwatcher and torch. The
checkpoints are given as folders, the form that keeps one tensor in memory at a time, and the three
steps share one process.
"""

from __future__ import annotations

import sys

import weightwatcher

base, tuned = sys.argv[1:]
for model, other in ((base, None), (tuned, None), (tuned, base)):
    watcher = weightwatcher.WeightWatcher(model=model, base_model=other)
    watcher.get_summary(watcher.analyze(max_N=1_000_000))  # which leaves no matrix out
