"""`whole CHECKPOINT`: whether one checkpoint agrees with itself.

In this package: shards, values, names (what a loader expects), vocabulary, configs (tokens,
adapters), small_files (compared with each other), copies, peers, quantised_modules and
gguf_metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from shadow.checks.answer import Answer, Check, Outcome, Question
from shadow.checks.whole import (
    configs,
    copies,
    gguf_metadata,
    names,
    peers,
    quantised_modules,
    shards,
    small_files,
    values,
)
from shadow.checks.whole.part import DOUBT, FAULT, NOTE, FindingRule, Findings, folded, gathered
from shadow.checks.whole.vocabulary import find_vocabulary
from shadow.errors import UsageError
from shadow.templates import Reason, Value
from shadow.text import nearest

if TYPE_CHECKING:
    from shadow.checkpoints.expected import Expected
    from shadow.checkpoints.safetensors_files import Header
    from shadow.run.runtime import Gathering, Runtime
    from shadow.run.scan import Swept
    from shadow.run.scanned import Unmatched

# by code, the most telling fault first
RULES: Mapping[str, FindingRule] = {
    **shards.RULES,
    **configs.OF_ADAPTERS,
    **quantised_modules.RULES,
    **values.RULES,
    **names.RULES,
    **gguf_metadata.RULES,
    **configs.RULES,
    **small_files.RULES,
    **copies.RULES,
    **peers.RULES,
}
# a row has its name before it, a sentence its names
WORDS = {code: f"[{{names}}: ]{rule.text}" for code, rule in RULES.items()} | {
    "more": "{like}; the same of {rows:count other|others}",
    "whole": "{tensors:all tensor|tensors} and the files beside them agree"
    "[, apart from what is accepted ({accepted:and})]",
    "whole_headers": "headers of {tensors:all tensor|tensors} and the files beside them agree"
    "[, apart from what is accepted ({accepted:and})]; values are not looked at",
    "not_all": "{parts:and} agree[, apart from what is accepted ({accepted:and})]",
    "looked": "looked at: {parts:and}[; left out: {left_out:and}]",
    "accepted_absent": "{code} is accepted, and did not occur",
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
    copies: Sequence[copies.Copy] = ()
    modules: quantised_modules.Modules | None = None
    gguf: Header | None = None
    with_values: bool = True
    accept: Mapping[str, str] = field(default_factory=dict)
    """By the code of a fault that a person accepts, the reason."""

    @property
    def parts(self) -> list[str]:
        """The parts of the checkpoint that were looked at."""
        parts = {
            "files": True,
            "values": self.values is not None and self.with_values,
            "names": self.names is not None and not self.names.expected.problem,
            "tokens": self.words is not None and self.words.are_named,
            "factors": self.adapter is not None and self.adapter.is_compared,
        }
        return [part for part, is_looked_at in parts.items() if is_looked_at]


def judge(facts: Whole) -> Answer:
    """Judge every part by itself: one fault is enough, and what is unknown leaves it open."""
    findings = Findings(RULES, facts.accept)
    shards.judge_files(findings, facts.files)
    looked_at: Sequence[tuple[Callable[..., None], object]] = (
        (values.judge_values, facts.values),
        (names.judge_names, facts.names),
        (configs.judge_words, facts.words),
        (configs.judge_adapter, facts.adapter),
        (small_files.judge_small_files, facts.small),
        (quantised_modules.judge_modules, facts.modules),
        (gguf_metadata.judge_metadata, facts.gguf),
    )
    for judge_part, part in looked_at:
        if part is not None:
            judge_part(findings, part)
    if facts.names is not None and facts.names.expected.problem not in ("", "cut", "quantised"):
        peers.judge_pieces(findings, facts.names.tensors)
    for code, name, other in facts.copies:
        findings.add(name, code, other=other)
    if facts.values is not None and not facts.values.is_quantised:
        peers.judge_peers(findings, facts.values.swept)
    if facts.values is None:
        findings.add("", "nothing_opened")
    order = [*RULES]
    rows = sorted(findings.rows[FAULT], key=lambda row: row.name)
    rows.sort(key=lambda row: order.index(row.why.code))
    accepted = [row for row in rows if row.accepted]
    faults = [row for row in rows if not row.accepted]
    against = folded([*faults, *accepted])
    figures = {**findings.figures, "faults": len(faults)}
    doubts = gathered(findings.rows[DOUBT])
    notes = gathered(findings.rows[NOTE])
    codes = [*dict.fromkeys(row.why.code for row in accepted)]
    for code in sorted(facts.accept.keys() - {*codes}):
        notes.append(Reason("accepted_absent", {"code": code}))
    agree: dict[str, Value] = {"parts": facts.parts, "accepted": codes or None}
    if doubts and not faults:
        reasons = [*doubts, Reason("not_all", agree)]
        return Answer(Outcome.INCONCLUSIVE, reasons, figures, against, notes)
    left_out = None if facts.with_values else ["values"]
    notes.append(Reason("looked", {"parts": facts.parts, "left_out": left_out}))
    if faults:
        reasons = gathered(faults, by_code=True)
        return Answer(Outcome.DOES_NOT_HOLD, reasons, figures, against, notes, doubts)
    code = "whole" if facts.with_values else "whole_headers"
    reason = Reason(code, {**agree, "tensors": figures["tensors"]})
    return Answer(Outcome.HOLDS, [reason], figures, against, notes)


def require_acceptable(accept: Mapping[str, str]) -> None:
    """Raise UsageError for a code that is no fault's, and for a fault without a reason."""
    faults = [code for code, rule in RULES.items() if rule.severity is FAULT]
    for code, because in accept.items():
        if code not in RULES:
            hint = nearest(code, faults) or "docs/rules.md lists the codes of all faults"
            raise UsageError(f"no fault of whole has the code {code[:40]!r}", hint)
        if code not in faults:
            hint = f"`shadow explain {code}` says what to do"
            raise UsageError(
                f"{code} is a {RULES[code].severity}, and only a fault is accepted", hint
            )
        if not because.strip():
            raise UsageError(f"{code} is accepted without a reason", f"write {code}=REASON")


def gather(question: Question, runtime: Runtime, scratch: Path) -> Gathering[Whole]:
    """Read headers and small files, then sweep once over values while a loader is asked."""
    from shadow.checkpoints.transfers import Transfer, meanwhile

    read = not question.headers
    checkpoint, stored, small, files = shards.open_whole(
        question.models[0], runtime, scratch, with_values=read
    )
    if checkpoint is None:
        return Whole(files, with_values=read, accept=question.accept)
    is_adapter = any(name.startswith("adapter_model") for name in checkpoint.sources)
    is_adapter |= checkpoint.adapter is not None
    is_loaded = question.models[0] in runtime.checkpoints  # a model in memory
    swept: list[Swept] = []
    unread: list[Unmatched] = []

    begun = Event()

    def ask() -> Expected | None:
        try:
            if is_adapter or is_loaded:
                return None
            return names.gather_expected(
                checkpoint,
                runtime.cache,
                scratch / "loader",
                is_cut=files.are_cut,
                begins=begun.set,
            )
        finally:
            begun.set()

    with meanwhile(ask) as answer:
        begun.wait()  # two threads that import take turns: the child, which takes longest, is first
        if read:
            from shadow.run.scan import sweep

            sweeping = sweep(checkpoint, stored.values(), runtime, scratch / "sweep")
            swept, unread = yield from sweeping
    expected = answer.result()
    if expected is not None:
        expected = quantised_modules.without_format(checkpoint, expected)
    vocabulary = find_vocabulary(checkpoint, expected)
    adapter = None
    named = None
    if expected is not None:
        tied = None
        if vocabulary.heads and vocabulary.embeddings:
            ends = vocabulary.heads[0], vocabulary.embeddings[0]
            reading = runtime if read else None
            tied = names.gather_tied(checkpoint, ends, reading, is_tied=expected.tied)
        indexed = files.weight_map.keys()
        # pieces of one module are no names among the weights of others
        is_mixed = checkpoint.refused and any(info.packing for info in checkpoint.tensors.values())
        tensors = {} if is_mixed else checkpoint.tensors
        named = names.Names(tensors, checkpoint.config, expected, tied, indexed)
    modules = None
    if not is_adapter and checkpoint.gguf is None:
        folder = files.names if checkpoint.config and not files.are_cut else ()
        modules = quantised_modules.gather_modules(checkpoint, swept, folder, Transfer(runtime.say))
    if is_adapter:
        adapter = configs.read_factors(small.get(configs.ADAPTER_CONFIG), stored, swept)
    words = configs.read_words(
        small,
        rows=vocabulary.rows,
        sees=vocabulary.sees,
        checks_size=expected is None or bool(expected.problem),
        usual=expected.usual if expected else (),
    )
    tokens = max(words.vocabulary.values(), default=-1) + 1
    is_quantised = names.is_quantised(checkpoint)
    plain = () if is_quantised else stored.values()
    needs_code = expected is not None and expected.problem == "unknown_class"
    beside = small_files.SmallFiles(small, files.every, words, plain, needs_code)
    copied = copies.gather_copies(
        checkpoint, vocabulary, beside.written, words.added, swept, runtime
    )
    if not is_quantised:
        copied += peers.find_copies(checkpoint, swept, runtime)
    known = {*vocabulary.embeddings, *vocabulary.heads}
    tables = dict.fromkeys(vocabulary.padded, 0) | dict.fromkeys(known, tokens)
    fitting: set[str] = set()
    misfits = expected.mismatched if expected is not None else ()
    # the loader has names of its own: one of these may be any of the empty tensors
    has_empty = any(shape[:1] == (0,) for _, shape, _ in misfits)
    if expected is not None and not expected.problem and not has_empty:
        fitting = stored.keys() - {*expected.unexpected}
    every = values.Values(stored, swept, unread, tables, is_quantised, fitting)
    parts = files, every, named, words, adapter, beside, copied, modules, checkpoint.gguf
    return Whole(*parts, read, question.accept)


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
    options=("headers", "accept"),
)
