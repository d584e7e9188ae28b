"""Documents of `explain`: columns, tables, words and topics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shadow.checks.answer import Check
from shadow.checks.registry import kinds
from shadow.places.names import name_rules
from shadow.reasons import REASONS
from shadow.reports.columns import SCHEMA, Column, Table, notation_of, read_words
from shadow.reports.words import RULES, Head, null_cases
from shadow.telling.document import (
    Block,
    Document,
    FigureRow,
    Figures,
    Paragraph,
    Word,
    named,
    number,
    table_of,
    worded,
)
from shadow.telling.finding import CODES, NOT_SHOWN
from shadow.templates import fill

_WORDS = read_words("words.yaml")
TOPICS: Mapping[str, str] = _WORDS["topics"]
_OF_SCREENS = {
    word: Head(**entry) for words, entry in _WORDS["screens"].items() for word in words.split(", ")
}
_MODULE = Head("a module: what role a matrix has in the model, by the name of its tensor", "module")


RATE = (
    "Of {of:count} answers to planted claims {wrong:count} are wrong"
    "[ (below {bound:share} with 95 % confidence)]: {where}"
)


def _texts(texts: Mapping[str, str], title: str = "") -> Figures:
    return Figures([FigureRow(name, text) for name, text in texts.items() if text], title)


def _quiet(text: str) -> Paragraph:
    return Paragraph(text, quiet=True)


def columns_document(columns: Sequence[Column]) -> Document:
    """`explain` without a word: every column in one line."""
    fields = [named("column", "name"), worded("meaning", "text")]
    return Document([table_of(fields, columns)])


def word_document(word: str, explained: Head | None, column: Column | None) -> Document:
    """`explain WORD`: what stands below a head of a table or beside a word; and of its column
    formula, range, null value, source and pitfalls.
    """
    blocks: list[Block] = [Paragraph(explained.text, lead=word)] if explained else []
    if column is not None:
        facts = {
            "formula": column.formula,
            "type": column.type,
            "unit": column.unit or ("none" if column.formula else ""),
            "range": column.range,
            "null": column.null or "never",
            "source": column.source,
            "pitfalls": column.pitfalls,
        }
        blocks += [Paragraph(column.text, lead=column.name), _texts(facts)]
    return Document(blocks)


def notation_document(columns: Sequence[Column]) -> Document | None:
    """Return what the letters in these columns stand for; None where they have none."""
    text = notation_of(columns)
    return Document([_quiet(text)]) if text else None


def finding_document() -> Document:
    """`explain finding`: all sentences, by their codes, and the other explanations."""
    others = {
        code: f"{claim.title}: {claim.meaning}"
        for code, claim in kinds()["explanation"].checks.items()
    }
    return Document(
        [
            Paragraph("what a report says about its pair, in words", lead="finding"),
            Paragraph(TOPICS["finding"]),
            _texts(CODES, "Sentences, in their order"),
            _texts(others, "Other explanations"),
            _quiet(TOPICS["answers"]),
            _quiet(" ".join(NOT_SHOWN)),
        ]
    )


def gates_document() -> Document:
    """`explain gates`: the six gates, and when a pair passes each."""
    about = "conditions under which figures can be those of a fine-tune"
    texts = {name: gate.meaning.replace("`", "") for name, gate in kinds()["gate"].checks.items()}
    return Document([Paragraph(about, lead="gates"), _texts(texts), _quiet(TOPICS["gates"])])


def schema_document(tables: Sequence[Table]) -> Document:
    """`explain --all`: what each table is."""
    fields = [
        named("table", "name"),
        number("columns", lambda table: len(table.columns), "count"),
        worded("where", "file"),
        worded("one row is", "row"),
    ]
    title = f"Schema {SCHEMA}. `shadow explain COLUMN` has formulas and sources."
    rules = [Paragraph(f"- {rule}", quiet=True, close=True) for rule in RULES]
    return Document([table_of(fields, tables), Paragraph(title), *rules])


def table_document(table: Table) -> Document:
    """`explain --all`: type, unit, meaning and null case of every column, most needed first."""
    fields = [
        named("column", "name"),
        worded("type"),
        worded("meaning", lambda column: _meaning(table, column)),
    ]
    rows = sorted(table.columns, key=lambda one: one.name not in table.start_here)
    about = f"{table.file}, schema {SCHEMA}; one row is {table.row}"
    return Document([Paragraph(about, lead=table.name), table_of(fields, rows)])


def _meaning(table: Table, column: Column) -> Word:
    """Return what a column is, its unit, when it is null, and whether a reader begins with it."""
    more = [f"in {column.unit}"] if column.unit else []
    if cases := null_cases(column):
        more.append(f"null: {', '.join(cases)}")
    more += ["later"] if column.name in table.later else []
    more += ["start here"] if column.name in table.start_here else []
    aside = "; ".join(more)
    return Word(f"{column.text};" if aside else column.text, aside=aside)


def other_words() -> Mapping[str, Head]:
    """By what stands on the screen, in small letters: what it means."""
    sentences = _WORDS["sentences"].items()
    texts = {code: f"a sentence of the finding: {text}" for code, text in sentences}
    texts |= {name: f"a reason for skipping tensors: {one.text}" for name, one in REASONS.items()}
    for kind in kinds().values():
        for code, check in kind.checks.items():
            figures = {"code": code, "usage": check.usage, "meaning": check.meaning}
            text = fill(kind.text, {**figures, "rate": _rate(check)})
            names = {code: f"`{check.title}`, {text}", check.title: text}
            texts |= names if kind.has_titles else {code: text}
    return {
        **{word: Head(text) for word, text in texts.items()},
        **dict.fromkeys(name_rules().modules, _MODULE),
        **_OF_SCREENS,
    }


def _rate(check: Check) -> str | None:
    """Return how often its answers were wrong; of none the exact bound of 95 %. None where
    unknown.
    """
    if (rate := check.error_rate) is None:
        return None
    bound = None if rate.wrong else 1 - 0.05 ** (1 / rate.of)
    return fill(RATE, {**vars(rate), "bound": bound})
