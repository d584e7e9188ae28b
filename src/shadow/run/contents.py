"""What the bytes of a checkpoint are known by: a checksum of each tensor, and one digest of all.

A tensor is summed up with the first pair that reads it, whole, whatever parts the pairs are. What
no pair reads, such as buffers of integers, is summed up with the first that reads its file. So each
is read once however the work is divided, and its checksum lies in the journal with an outcome.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from shadow.checkpoints.pairing import Filter, Side
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.reports.column_types import Cell
from shadow.reports.metadata import SIDES, ReportMetadata
from shadow.run.runtime import AlignedPair
from shadow.run.schedule import infos_of, named_of
from shadow.run.settings import Settings
from shadow.spectra.solvers import solver_of

Summed = Mapping[str, Sequence[tuple[Side, TensorInfo]]]  # by key of a pair: tensors of either side


def summed_with(lined: AlignedPair, settings: Settings) -> Summed:
    """The tensors that are summed up with each pair. Where pairs are chosen, only what they read.

    An adapter leaves most of its base alone, which is not read for this either. Nothing is summed
    up where norms alone are measured: that takes longer than they do.
    """
    unfiltered = settings.chosen == Filter()
    if not solver_of(settings.method).has_spectra:
        return {}
    sums: defaultdict[str, list[tuple[Side, TensorInfo]]] = defaultdict(list)
    for side in SIDES:
        checkpoint = lined.base if side == "base" else lined.tuned
        known: set[str] = set()
        readers: dict[str, str] = {}  # by shard: the key of the first pair that reads it
        for pair in lined.pairs:
            for info in infos_of(side, pair):
                readers.setdefault(info.shard, pair.key)
            for info in named_of(side, pair):
                if info.name not in known:
                    known.add(info.name)
                    sums[pair.key].append((side, info))
        if not unfiltered or not lined.pairs:
            continue
        for skip in lined.skipped:
            if skip.side != side or skip.info.name in known or skip.status != "skipped":
                continue
            reader = readers.get(skip.info.shard)
            if reader is None and checkpoint.sources[skip.info.shard].is_local:
                reader = lined.pairs[0].key
            if reader is not None:
                known.add(skip.info.name)
                sums[reader].append((side, skip.info))
    return sums


def content_of(rows: Iterable[Mapping[str, Cell]]) -> str | None:
    """The digest of a side, from all its rows of tensors.parquet: a sha256 of the names, formats,
    shapes and checksums of its tensors, by name. None where one has no checksum.

    Which files they are in, and in which order, does not matter.
    """
    keys = ("tensor", "dtype", "shape", "checksum")
    tensors = [[row[key] for key in keys] for row in rows]
    if not tensors or any(checksum is None for *_, checksum in tensors):
        return None
    lines = sorted(map(json.dumps, tensors))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def with_contents(told: ReportMetadata, contents: Mapping[Side, str | None]) -> ReportMetadata:
    """What a report is of, with the digest of each side."""
    return {
        **told,
        "base": {**told["base"], "content": contents["base"]},
        "tuned": {**told["tuned"], "content": contents["tuned"]},
    }
