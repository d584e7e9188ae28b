"""`whole CHECKPOINT`: whether one checkpoint agrees with itself.

Its parts are beside this file: files, values, names (what a loader expects), words and adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import Answer, Check, Outcome, Question, largest_first
from shadow.checks.whole import configs, names, shards, values
from shadow.checks.whole.part import Part, gathered, summary
from shadow.checks.whole.shards import open_whole
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.run.runtime import Runtime
    from shadow.run.scan import Swept
    from shadow.run.scanned import Apart

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
# by code, the most telling fault first; a row has its name before it, a sentence its names
TEXTS: Mapping[str, str] = {
    **shards.WORDS,
    **configs.OF_ADAPTERS,
    **values.WORDS,
    **names.WORDS,
    **configs.WORDS,
}
WORDS = {code: f"[{{names}}: ]{text}" for code, text in TEXTS.items()} | {
    "whole": "{tensors:all tensor|tensors}, config and tokenizer agree",
    "whole_headers": "headers of {tensors:all tensor|tensors}, config and tokenizer agree; values"
    " are not looked at",
    "not_all": "nothing contradicts itself, but not all could be checked",
}


@dataclass(frozen=True)
class Whole:
    """What was found of one checkpoint; None of what was not looked at."""

    files: shards.Files
    values: values.Values | None = None
    names: names.Names | None = None
    words: configs.Words | None = None
    adapter: configs.Factors | None = None
    with_values: bool = True


def judge(found: Whole) -> Answer:
    """Every part by itself: one fault is enough, and what is not known leaves it open."""
    part = shards.judge_files(found.files)
    if found.values is not None:
        part.add(values.judge_values(found.values))
    if found.names is not None:
        part.add(names.judge_names(found.names))
    if found.words is not None:
        part.add(configs.judge_words(found.words))
    if found.adapter is not None:
        part.add(configs.judge_adapter(found.adapter))
    return _answer(part, with_values=found.with_values)


def _answer(part: Part, *, with_values: bool) -> Answer:
    figures = {**part.figures, "faults": len(part.against)}
    notes, doubts = gathered(part.notes), gathered(part.doubts)
    if part.against:
        reasons, against = summary(part.against, [*TEXTS]), largest_first(part.against)
        return Answer(Outcome.DOES_NOT_HOLD, reasons, figures, against, [*doubts, *notes])
    if doubts:
        return Answer(Outcome.INCONCLUSIVE, [*doubts, Reason("not_all")], figures, (), notes)
    said = Reason("whole" if with_values else "whole_headers", {"tensors": figures["tensors"]})
    return Answer(Outcome.HOLDS, [said], figures, (), notes)


def gather(asked: Question, runtime: Runtime, scratch: Path) -> Whole:
    """Headers and small files first, then one sweep over values, then a loader."""
    read = not asked.headers
    opened = open_whole(asked.models[0], runtime, scratch, with_values=read)
    checkpoint = opened.checkpoint
    if checkpoint is None:
        return Whole(opened.files, with_values=read)
    tables, sees = _vocabulary(checkpoint)
    rows = min((checkpoint.tensors[name].shape[0] for name in tables), default=0)
    adapter, expected, named = None, None, None
    is_adapter = any(name.startswith("adapter_model") for name in checkpoint.sources)
    is_adapter |= checkpoint.adapter is not None
    if not is_adapter and asked.models[0] not in runtime.found:  # a model in memory has been loaded
        is_cut = opened.files.are_cut
        expected = names.gather_expected(checkpoint, scratch / "loader", is_cut=is_cut)
        ends, tied = {place: name for name, place in tables.items()}, None
        if {"head", "embed"} <= ends.keys():
            tied = names.gather_tied(
                checkpoint, (ends["head"], ends["embed"]), runtime if read else None,
                is_tied=expected.tied,
            )  # fmt: skip
        indexed = opened.files.weight_map.keys()
        named = names.Names(checkpoint.tensors, checkpoint.config, expected, tied, indexed)
    swept: list[Swept] = []
    unread: list[Apart] = []
    if read:
        from shadow.run.scan import sweep

        swept, unread = sweep(checkpoint, opened.stored.values(), runtime, scratch / "sweep")
    if is_adapter:
        said = opened.small.get(configs.ADAPTER_CONFIG)
        adapter = configs.read_factors(said, opened.stored, swept)
    words = configs.read_words(
        opened.small,
        rows=rows,
        sees=sees,
        checks_size=expected is None or bool(expected.problem),
        usual=expected.usual if expected else (),
    )
    dtype = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype"))
    measured = values.Values(
        opened.stored,
        swept,
        unread,
        dict.fromkeys(tables, max(words.vocabulary.values(), default=-1) + 1),
        names.is_quantised(checkpoint),
        DTYPES.get(dtype.removeprefix("torch."), ""),
    )
    return Whole(opened.files, measured, named, words, adapter, read)


def _vocabulary(checkpoint: Checkpoint) -> tuple[dict[str, str], bool]:
    """Embedding and head of the language model; whether it has other components."""
    from shadow.places.architecture import place_tensors

    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    parts = place_tensors(shapes, checkpoint.config)
    places = {name: own[0].place for name, own in parts.items()}
    found = {
        name: place.module
        for name, place in places.items()
        if place.module in ("embed", "head") and place.component == "language"
        if place.layer is None and len(shapes[name]) == 2 and 0 not in shapes[name]
    }
    return found, any(one.component not in ("language", "other") for one in places.values())


CHECK = Check(
    "whole",
    "one checkpoint by itself",
    "files, headers, values, config and tokenizer of one checkpoint agree, and a loader finds all"
    " that its config promises",
    judge,
    WORDS,
    gather,
    checkpoints=("CHECKPOINT",),
    says="one checkpoint agrees with itself",
    options=("headers",),
)
