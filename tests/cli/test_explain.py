"""Words on the screen can be looked up as they stand there."""

from types import SimpleNamespace

import pytest
from reports import uniform
from typer.testing import CliRunner

from shadow.checks.answer import COMMON, ErrorRate
from shadow.checks.explanations import EXPLANATIONS, RECOGNISED
from shadow.checks.pair_gates import GATES
from shadow.cli.commands import app
from shadow.comparing.codes import KINDS as COMPARED
from shadow.comparing.comparison import compare
from shadow.errors import UsageError
from shadow.gates.verdicts import WORDS_OF_VERDICTS
from shadow.reports import columns
from shadow.reports.columns import GLOSSARY
from shadow.telling import dictionary
from shadow.telling.comparisons import comparison_document
from shadow.telling.dictionary import KINDS, other_words, word_documents
from shadow.telling.document import Paragraph, TableBlock
from shadow.telling.finding import CODES
from shadow.telling.reading import read_summary
from shadow.telling.report import component_table, module_table
from shadow.templates import SLOT, outline


def explained(*words):
    return CliRunner().invoke(app, ["explain", *words])


def heads_of(*blocks):
    """Of every table among the blocks."""
    return [
        column.head for block in blocks if isinstance(block, TableBlock) for column in block.columns
    ]


def test_every_head_of_a_table_is_explained(tmp_path):
    """By component, by module, the figures of a comparison and its modules."""
    folders = [uniform(tmp_path / "a", 0.4), uniform(tmp_path / "b", 0.3)]
    document = comparison_document(compare(folders))
    modules = module_table(read_summary(folders[0])[0])
    heads = heads_of(component_table([]), modules, *document.blocks)
    assert heads
    assert [head for head in heads if explained(head).exit_code] == []


@pytest.mark.parametrize(("words", "name"), [
    (["PR"], "participation_ratio  "), (["pr"], "participation_ratio  "),
    (["conc."], "concentration  "), (["conc"], "concentration  "),
    (["x", "rounding"], "floor_ratio  "),
    (["null", "PR"], "null_participation_ratio  "), (["A"], "report"),
    (["energy"], "energy_share  "),
    (["not_a_matrix"], "not_a_matrix  a reason for skipping tensors: vectors, of which only"),
    (["lineage"], "lineage  a gate: it passes when base and tuned"),
    (["embed"], "embed  a module: what role a matrix has in the model"),
    (["size"], "size  a sentence of the finding: "),
])  # fmt: skip
def test_a_head_shows_its_column(words, name):
    """Written as one word or several, in any case; a letter is a report. Others: what they are."""
    assert name in explained(*words).stdout


@pytest.mark.parametrize(("words", "guess"), [
    (["conc,"], "'conc.'"), (["null_edge_sharpp"], "'null_edge_sharp'"), (["banana"], None),
    (["one_checkpont"], "'one_checkpoint'"),
])  # fmt: skip
def test_a_word_that_is_not_known_answers_with_the_nearest(words, guess):
    """What is unlike all gets none."""
    hint = explained(*words).exception.hint
    assert guess in hint if guess else "'" not in hint


OTHERS = (
    "gates", "null", "kept", "FAILED",
    "rounding", "profile", "update", "Delta", "embed", "mlp.up", "rank one",
    "effective number", "X", "1/X", "A", "pruned base", "zeroed", "merged_adapter", "nats",
    "left out", "Other explanations", "PR", "leading directions",
    "null edge", "participation share", "not_a_matrix",
    "orthogonalised optimiser", "adapter", "lora", "rank", "dequantised", "gates.failed",
    "inside_layers.kept", "WORD", "RUN",
)  # fmt: skip


def test_words_of_the_screens_are_explained():
    """Gates, states, outcomes, reasons, claims by title and code, each term of the glossary."""
    claims = [*EXPLANATIONS.values(), *RECOGNISED.values()]
    words = [*OTHERS, *GATES, *GLOSSARY, *(one for c in claims for one in (c.code, c.title))]
    found = {word: explained(*word.split()) for word in words}
    assert [word for word, one in found.items() if one.exit_code or not one.stdout.strip()] == []


def test_a_word_names_a_column_that_there_is():
    """Else `explain` would leave its formula out without a word."""
    known = {column.name for table in columns.TABLES.values() for column in table.columns}
    assert [
        head for head in other_words().values() if head.column and head.column not in known
    ] == []


@pytest.mark.parametrize("word", ["label", "evidence", "short_run", "weight_decay"])
def test_a_word_that_is_gone_is_an_unknown_one(word):
    """Of the label, and of explanations that can never be excluded."""
    refused = explained(word).exception
    assert word in str(refused)
    assert isinstance(refused, UsageError)


def codes():
    """Every code of a reason, a note or a verdict, with its template."""
    yield from COMMON.items()
    yield from WORDS_OF_VERDICTS.items()
    for kind in KINDS:
        for check in kind.values():
            yield from check.words.items()
    for members in COMPARED.values():
        for member in members:
            yield member.code, member.text
            yield member.value, member.text


@pytest.mark.parametrize(("code", "template"), sorted({*codes()}))
def test_every_code_is_explained(code, template):
    """As JSON and JUnit have it; figures are named, and no slot is left."""
    blocks = [
        block for document in word_documents(code, WORDS_OF_VERDICTS) for block in document.blocks
    ]
    texts = " ".join(getattr(block, "text", "") for block in blocks)
    assert outline(template) in texts
    assert not SLOT.search(texts)


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_a_sentence_is_explained(code):
    """Of a recognised change, a gate or a column of that name, what that is."""
    done = explained(code)
    assert done.exit_code == 0
    assert len(done.stdout.split()) > 3


@pytest.mark.parametrize(("code", "text"), [
    (
        "two_models",
        "a code: COMPARED: these are not two states of one model",
    ),  # all gates' words
    ("not_finite", "a code: some entries are not finite"),
    ("sides_unrelated", "the two sides of NAME have little in common"),
])  # fmt: skip
def test_a_code_that_several_checks_share_names_none_of_them(code, text):
    blocks = [block for document in word_documents(code) for block in document.blocks]
    texts = [block.text for block in blocks if isinstance(block, Paragraph)]
    assert any(text in shown for shown in texts)


def test_the_outline_of_a_template():
    """Numbers are N, texts their names, words in the plural; what may be left out is."""
    template = "{a:count tensor is|tensors are} in {names:and}[ by {size:share}], of {b|one|many}"
    assert outline(template) == "N tensors are in NAMES, of many"
    assert outline("{a/b:all tensor|tensors} at {inside_layers.kept:share}") == "N tensors at N"


@pytest.mark.parametrize(("word", "column"), [
    ("zero share", "zero_share"), ("decay_cosine", "decay_cosine"), ("figures.spikes", "spikes"),
])  # fmt: skip
def test_a_column_is_found_by_words_and_behind_a_point(word, column):
    """A space may replace an underscore."""
    head = dictionary._meanings(word, dictionary._columns(), {})[-1]
    assert (head.text, head.column) == ("", column)


@pytest.mark.parametrize(("wrong", "of", "bound"), [
    (0, 20, "(below 14 % with 95 % confidence)"), (0, 1, "(below 95 % with"),
    (1, 20, "wrong: a page"),
])  # fmt: skip
def test_of_no_wrong_answer_a_bound_is_said(wrong, of, bound):
    """1 - 0.05^(1 / of); a check without planted claims has no rate."""
    text = dictionary._rate(SimpleNamespace(error_rate=ErrorRate(wrong, of, "a page")))
    assert f"claims {wrong} are wrong" in text
    assert bound in text
    assert dictionary._rate(SimpleNamespace(error_rate=None)) is None
