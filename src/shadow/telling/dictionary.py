"""Documents of `explain`: columns, tables, words and topics."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from shadow.checks.answer import COMMON, Check, Severity
from shadow.checks.explanations import EXPLANATIONS, RECOGNISED
from shadow.checks.pair_gates import GATES
from shadow.checks.registry import CHECKS
from shadow.checks.whole import RULES as RULES_OF_WHOLE
from shadow.comparing.codes import KINDS as COMPARED
from shadow.errors import UsageError
from shadow.places.names import name_rules
from shadow.reasons import REASONS
from shadow.reports.columns import (
    GLOSSARY,
    HEADS,
    JSON_FILES,
    RULES,
    TABLES,
    Column,
    Head,
    Table,
    notation_of,
    null_cases,
    read_words,
)
from shadow.reports.provenance import SCHEMA
from shadow.telling.document import (
    Block,
    Document,
    Paragraph,
    Word,
    figures_of,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.finding import CODES, NOT_SHOWN
from shadow.templates import fill, outline
from shadow.text import VERY_LIKE, nearest

_WORDS = read_words("words.yaml")
_TEXTS = _WORDS["topics"]
NO_CODES: Mapping[str, str] = {}
KINDS = (EXPLANATIONS, RECOGNISED, GATES, CHECKS)
SEVERITIES: Mapping[Severity, str] = {
    Severity.FAULT: "fault: the checkpoint does not hold (exit code 4)",
    Severity.DOUBT: "doubt: without a fault the answer is inconclusive (exit code 5)",
    Severity.NOTE: "note: it does not change the answer",
}
RATE = (
    "Of {of:count} answers to planted claims {wrong:count} are wrong"
    "[ (below {bound:share} with 95 % confidence)]: {where}"
)


def _quiet(text: str) -> Paragraph:
    return Paragraph(text, quiet=True)


def columns_document() -> Document:
    """Make `explain` without a word: every column in one line."""
    fields = [named("column", "name"), worded("meaning", "text")]
    return Document([table_of(fields, _columns().values())])


def _columns() -> Mapping[str, Column]:
    """Every column by name; for a name in several tables, that of matrices.parquet."""
    columns: dict[str, Column] = {}
    for column in (column for table in TABLES.values() for column in table.columns):
        columns.setdefault(column.name, column)
    return columns


def word_documents(word: str, codes: Mapping[str, str] = NO_CODES) -> Iterable[Document]:
    """Make `explain WORD`: the meaning of a head of a table or another word; for a column also
    formula, range, null value, source, pitfalls and the symbols in these; for a code, what it says.
    Raises UsageError for an unknown word.

    codes: templates by code, of what stands above this room.
    """
    if topic := TOPICS.get(word):
        yield topic()
        return
    columns = _columns()
    shown: list[Column] = []
    for head in _meanings(word, columns, codes):
        blocks: list[Block] = [Paragraph(head.text, lead=word)] if head.text else []
        column = columns.get(head.column)
        if column is not None and column not in shown:
            shown.append(column)
            facts = {
                "formula": column.formula,
                "type": column.type,
                "unit": column.unit or ("none" if column.formula else ""),
                "range": column.range,
                "missing": column.null or "never",
                "source": column.source,
                "pitfalls": column.pitfalls,
            }
            blocks += [Paragraph(column.text, lead=column.name), figures_of(facts)]
        yield Document(blocks)
    if rule := RULES_OF_WHOLE.get(word.lower()):
        facts = {"severity": SEVERITIES[rule.severity], "why": rule.why, "what to do": rule.do}
        yield Document([figures_of(facts, "Of `verify whole`")])
    if notation := notation_of(shown):
        yield Document([_quiet(notation)])


def _meanings(word: str, columns: Mapping[str, Column], codes: Mapping[str, str]) -> list[Head]:
    """Everything that a word means: a head of a table, a column, another word of the
    screens, a term.

    In any case; heads also without their points. A space may replace an underscore in the name of a
    column; a name with points is a figure of summary.json, a letter a compared report.
    """
    lower = word.lower()
    others = other_words()
    other = others.get(lower)
    terms = {term.lower(): text for term, text in GLOSSARY.items()}
    head = _head(word)
    meanings = [] if head is None else [head]
    name = word if word in columns else "_".join(lower.split())
    if name in columns and name not in [meaning.column for meaning in meanings]:
        meanings.append(Head("", name))
    if other is not None and not (head and other.column):
        meanings.append(other)
    if lower in terms and not any(meaning.column in columns for meaning in meanings):
        meanings.insert(0, Head(terms[lower]))
    key, point, figure = word.partition(".")
    if not meanings and point and key in JSON_FILES["summary.json"]:
        last = figure.rpartition(".")[2]
        meanings.append(Head(JSON_FILES["summary.json"][key]))
        meanings += [Head("", last)] if last in columns else []
    sayings = _sayings(codes)
    texts: dict[str, str] = {}
    for title, words in sayings:
        if lower in words:
            text = outline(words[lower])
            is_shared = texts.get(text, title) != title
            texts[text] = "a code" if is_shared else title
    meanings += [Head(f"{title}: {text}") for text, title in texts.items()]
    if not meanings:
        known = [*columns, *HEADS, *TOPICS, *others, *GLOSSARY]
        for _, words in sayings:
            known += words
        hint = nearest(word, known, VERY_LIKE) or "`shadow explain` lists every column"
        raise UsageError(f"no column or word {word!r}", hint)
    return meanings


def _head(word: str) -> Head | None:
    """The head of a table that a word is, in any case, also without its points."""
    if word in HEADS:
        return HEADS[word]
    heads = {name.replace(".", "").lower(): head for name, head in HEADS.items()}
    head = heads.get(word.replace(".", "").lower())
    return HEADS["report"] if head is None and re.fullmatch("[A-Z]", word) else head


def _sayings(codes: Mapping[str, str]) -> list[tuple[str, Mapping[str, str]]]:
    """Every code with its template, and what it is a code of."""
    sayings: list[tuple[str, Mapping[str, str]]] = []
    for meaning, members in COMPARED.items():
        sayings += [(meaning, {member.code: member.text for member in members})]
        sayings += [(meaning, {member.value.lower(): member.text for member in members})]
    for kind in KINDS:
        sayings += [(f"a code of {check.title}", check.words) for check in kind.values()]
    return [*sayings, ("a code", COMMON), ("a code", codes)]


def _finding() -> Document:
    """Make `explain finding`: all sentences by code, and the other explanations."""
    others = {code: f"{claim.title}: {claim.meaning}" for code, claim in EXPLANATIONS.items()}
    return Document(
        [
            Paragraph("what a report says about its pair, in words", lead="finding"),
            Paragraph(_TEXTS["finding"]),
            figures_of(CODES, "Sentences, in their order"),
            figures_of(others, "Other explanations"),
            _quiet(_TEXTS["answers"]),
            _quiet(" ".join(NOT_SHOWN)),
        ]
    )


def _gates() -> Document:
    """Make `explain gates`: the six gates, and when a pair passes each."""
    about = "conditions under which figures can be those of a fine-tune"
    texts = {name: gate.meaning.replace("`", "") for name, gate in GATES.items()}
    return Document([Paragraph(about, lead="gates"), figures_of(texts), _quiet(_TEXTS["gates"])])


TOPICS = {"finding": _finding, "gates": _gates}


def schema_document() -> Document:
    """Make `explain --all`: a description of each table."""
    fields = [
        named("table", "name"),
        number("columns", lambda table: len(table.columns), "count"),
        worded("where", "file"),
        worded("one row is", "row"),
    ]
    title = f"Schema {SCHEMA}. `shadow explain COLUMN` has formulas and sources."
    rules = [Paragraph(f"- {rule}", quiet=True, close=True) for rule in RULES]
    return Document([table_of(fields, TABLES.values()), Paragraph(title), *rules])


def table_document(table: Table) -> Document:
    """Describe a table for `explain --all`: type, unit, meaning, null case of every column."""

    def meaning(column: Column) -> Word:
        """Its text, unit, null cases, and whether a reader begins with it."""
        more = [f"in {column.unit}"] if column.unit else []
        if cases := null_cases(column):
            more.append(f"missing: {', '.join(cases)}")
        more += ["later"] if column.name in table.later else []
        more += ["start here"] if column.name in table.start_here else []
        aside = "; ".join(more)
        return Word(f"{column.text};" if aside else column.text, aside=aside)

    fields = [named("column", "name"), worded("type"), worded("meaning", meaning)]
    rows = sorted(table.columns, key=lambda column: column.name not in table.start_here)
    about = f"{table.file}, schema {SCHEMA}; one row is {table.row}"
    return Document([Paragraph(about, lead=table.name), table_of(fields, rows)])


def other_words() -> Mapping[str, Head]:
    """The meanings of words on the screen, by the word in lower case."""
    sentences = _WORDS["sentences"].items()
    texts = {code: f"a sentence of the finding: {text}" for code, text in sentences}
    for name, reason in REASONS.items():
        texts[name] = f"a reason for skipping tensors: {reason.text}"
    for kind in KINDS:
        for code, check in kind.items():
            figures = {"code": code, "usage": check.usage, "meaning": check.meaning}
            text = fill(kind.text, {**figures, "rate": _rate(check)})
            names = {code: f"`{check.title}`, {text}", check.title: text}
            texts |= names if kind.has_titles else {code: text}
    module = "a module: what role a matrix has in the model, by the name of its tensor"
    screens = _WORDS["screens"].items()
    return {
        **{word: Head(text) for word, text in texts.items()},
        **dict.fromkeys(name_rules().modules, Head(module, "module")),
        **{word: Head(**entry) for words, entry in screens for word in words.split(", ")},
    }


def _rate(check: Check) -> str | None:
    """Say how often its answers were wrong; of none the exact bound of 95 %. None where
    unknown.
    """
    if (rate := check.error_rate) is None:
        return None
    bound = None if rate.wrong else 1 - 0.05 ** (1 / rate.of)
    return fill(RATE, {**vars(rate), "bound": bound})
