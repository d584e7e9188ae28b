"""`whole CHECKPOINT`: whether one checkpoint agrees with itself.

In this package: shards, values, names (what a loader expects), vocabulary, configs (tokens,
adapters), small_files (compared with each other) and copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.answer import Answer, Check, Outcome, Question, largest_first
from shadow.checks.whole import configs, copies, names, shards, small_files, values
from shadow.checks.whole.part import DOUBT, FAULT, NOTE, FindingRule, Findings, folded, gathered
from shadow.checks.whole.vocabulary import find_vocabulary
from shadow.templates import Reason

if TYPE_CHECKING:
    from shadow.run.runtime import Runtime
    from shadow.run.scan import Swept
    from shadow.run.scanned import Unmatched

# by code, the most telling fault first
RULES: Mapping[str, FindingRule] = {
    **shards.RULES,
    **configs.OF_ADAPTERS,
    **values.RULES,
    **names.RULES,
    **configs.RULES,
    **small_files.RULES,
    **copies.RULES,
}
# a row has its name before it, a sentence its names
WORDS = {code: f"[{{names}}: ]{rule.text}" for code, rule in RULES.items()} | {
    "more": "{like}; the same of {rows:count other|others}",
    "whole": "{tensors:all tensor|tensors} and the files beside them agree",
    "whole_headers": "headers of {tensors:all tensor|tensors} and the files beside them agree;"
    " values are not looked at",
    "not_all": "no contradictions, but not everything could be checked",
}


@dataclass(frozen=True)
class Whole:
    """Facts about one checkpoint; None for what was not examined."""

    files: shards.FileFacts
    values: values.Values | None = None
    names: names.Names | None = None
    words: configs.Words | None = None
    adapter: configs.Factors | None = None
    small: small_files.SmallFiles | None = None
    copies: copies.Copies | None = None
    with_values: bool = True


def judge(found: Whole) -> Answer:
    """Judge every part by itself: one fault is enough, and what is unknown leaves it open."""
    findings = Findings(RULES)
    shards.judge_files(findings, found.files)
    if found.values is not None:
        values.judge_values(findings, found.values)
    if found.names is not None:
        names.judge_names(findings, found.names)
    if found.words is not None:
        configs.judge_words(findings, found.words)
    if found.adapter is not None:
        configs.judge_adapter(findings, found.adapter)
    if found.small is not None:
        small_files.judge_small_files(findings, found.small)
    if found.copies is not None:
        copies.judge_copies(findings, found.copies)
    faults = findings.rows[FAULT]
    doubts = gathered(findings.rows[DOUBT])
    notes = gathered(findings.rows[NOTE])
    figures = {**findings.figures, "faults": len(faults)}
    if faults:
        against = folded(largest_first(faults))
        reasons = gathered(faults, by_code=True)
        order = [*RULES]
        reasons.sort(key=lambda reason: order.index(reason.code))
        return Answer(Outcome.DOES_NOT_HOLD, reasons, figures, against, [*doubts, *notes])
    if doubts:
        return Answer(Outcome.INCONCLUSIVE, [*doubts, Reason("not_all")], figures, (), notes)
    code = "whole" if found.with_values else "whole_headers"
    said = Reason(code, {"tensors": figures["tensors"]})
    return Answer(Outcome.HOLDS, [said], figures, (), notes)


def gather(asked: Question, runtime: Runtime, scratch: Path) -> Whole:
    """Read headers and small files, then ask a loader, then sweep once over values."""
    read = not asked.headers
    checkpoint, stored, small, files = shards.open_whole(
        asked.models[0], runtime, scratch, with_values=read
    )
    if checkpoint is None:
        return Whole(files, with_values=read)
    adapter, expected, named = None, None, None
    is_adapter = any(name.startswith("adapter_model") for name in checkpoint.sources)
    is_adapter |= checkpoint.adapter is not None
    is_loaded = asked.models[0] in runtime.found  # a model in memory
    if not is_adapter and not is_loaded:
        expected = names.gather_expected(checkpoint, scratch / "loader", is_cut=files.are_cut)
    vocabulary = find_vocabulary(checkpoint, expected)
    if expected is not None:
        tied = None
        if vocabulary.heads and vocabulary.embeddings:
            ends = vocabulary.heads[0], vocabulary.embeddings[0]
            reading = runtime if read else None
            tied = names.gather_tied(checkpoint, ends, reading, is_tied=expected.tied)
        indexed = files.weight_map.keys()
        named = names.Names(checkpoint.tensors, checkpoint.config, expected, tied, indexed)
    swept: list[Swept] = []
    unread: list[Unmatched] = []
    if read:
        from shadow.run.scan import sweep

        swept, unread = sweep(checkpoint, stored.values(), runtime, scratch / "sweep")
    if is_adapter:
        config = small.get(configs.ADAPTER_CONFIG)
        is_lost = config is None and configs.ADAPTER_CONFIG not in files.names
        adapter = configs.read_factors(config, stored, swept, is_lost=is_lost)
    words = configs.read_words(
        small,
        rows=vocabulary.rows,
        sees=vocabulary.sees,
        checks_size=expected is None or bool(expected.problem),
        usual=expected.usual if expected else (),
    )
    tokens = max(words.vocabulary.values(), default=-1) + 1
    is_quantised = names.is_quantised(checkpoint)
    own = () if is_quantised else stored.values()
    beside = small_files.read_small_files(small, files.every, words, own)
    if is_loaded:
        found = copies.copies_in_memory(checkpoint, vocabulary)
    else:
        tokens = small_files.written_tokens(beside)
        found = copies.gather_copies(checkpoint, vocabulary, tokens, swept, runtime)
    if read:
        modules = small_files.sweep_modules(asked.models[0], beside, runtime, scratch / "modules")
        swept += modules[0]
        unread += modules[1]
    known = {*vocabulary.embeddings, *vocabulary.heads}
    tables = dict.fromkeys(vocabulary.padded, 0) | dict.fromkeys(known, tokens)
    every = values.Values(stored, swept, unread, tables, is_quantised)
    return Whole(files, every, named, words, adapter, beside, found, read)


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
