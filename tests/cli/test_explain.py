"""Words on the screen can be looked up as they stand there."""

from __future__ import annotations

import pytest
from reports import uniform
from typer.testing import CliRunner

from shadow.checks.explanations import EXPLANATIONS
from shadow.checks.pair_gates import GATES
from shadow.checks.recognised import RECOGNISED
from shadow.cli.commands import app
from shadow.comparing.comparison import compare
from shadow.reports import columns
from shadow.reports.words import terms
from shadow.telling.comparison import comparison_document
from shadow.telling.document import Table
from shadow.telling.report import component_table, module_table
from shadow.telling.words import other_words


def explained(*words):
    return CliRunner().invoke(app, ["explain", *words])


def heads_of(*blocks):
    """Of every table among the blocks."""
    return [column.head for block in blocks if isinstance(block, Table) for column in block.columns]


def test_every_head_of_a_table_is_explained(tmp_path):
    """By component, by module, the figures of a comparison and its modules."""
    compared = compare([uniform(tmp_path / "a", 0.4), uniform(tmp_path / "b", 0.3)])
    document = comparison_document(compared)
    heads = heads_of(component_table([]), module_table([], {}), *document.blocks)
    assert heads
    assert [head for head in heads if explained(head).exit_code] == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["PR"], "participation_ratio  "), (["pr"], "participation_ratio  "),
        (["conc."], "concentration  "), (["conc. A"], "concentration  "),
        (["conc"], "concentration  "), (["x", "rounding"], "floor_ratio  "),
        (["null", "PR"], "null_participation_ratio  "), (["eff. rank"], "effective_rank  "),
        (["energy"], "energy_share  "),
    ],
)  # fmt: skip
def test_a_head_shows_its_column(words, name):
    """Written as one word or several, in any case, and with the letter of a report."""
    assert name in explained(*words).stdout


def test_a_misspelt_head_answers_with_the_nearest():
    """Exit 2, as for a column."""
    result = explained("conc,")
    assert isinstance(result.exception, Exception)
    assert result.exception.hint == "did you mean 'conc.'?"


@pytest.mark.parametrize(
    "words",
    [
        "gates", "null", "x null", "follows", "neither follows nor avoids", "kept", "FAILED",
        "rounding", "profile", "update", "lab", "Delta", "embed", "mlp.up", "rank one",
        "effective number", "X", "1/X", "A", "pruned base", "zeroed", "merged_adapter", "nats",
        "AUC", "left out", "Other explanations", "PR", "sign-flip null", "leading directions",
        "attention : MLP", "null edge", "participation share", "not_a_matrix",
        "orthogonalised optimiser", "adapter", "lora", "rank", "dequantised", "gates.failed",
        "inside_layers.kept", "WORD", "RUN",
    ],
)  # fmt: skip
def test_other_words_of_the_screens_are_explained(words):
    """Gates, what a finding says of directions, states, outcomes and reasons."""
    result = explained(*words.split())
    assert result.exit_code == 0
    assert result.stdout.strip()


@pytest.mark.parametrize("words", [["sharp", "edge"], ["sharp_edge"]])
def test_several_words_find_the_name_that_holds_them(words):
    """In any order; what is merely spelt like them is no answer."""
    assert explained(*words).exception.hint == "did you mean 'null_edge_sharp'?"


def test_every_claim_is_explained_by_its_title_and_by_its_code():
    """Titles are on the screen, codes in summary.json."""
    titled = [*EXPLANATIONS.values(), *RECOGNISED.values()]
    words = [*GATES, *(word for claim in titled for word in (claim.code, claim.title))]
    assert [word for word in words if explained(word).exit_code] == []


@pytest.mark.parametrize("word", ["pandas", "banana", "weather", "qwertz"])
def test_a_word_that_is_unlike_all_others_gets_no_guess(word):
    """What is alike by chance, as `profile` and `failed`, helps nobody."""
    assert explained(word).exception.hint == "`shadow explain` lists every column"


@pytest.mark.parametrize("term", terms())
def test_every_term_of_the_glossary_is_explained(term):
    """As it stands there."""
    assert explained(*term.split()).exit_code == 0


def test_a_word_names_a_column_that_there_is():
    """Else `explain` would leave its formula out without a word."""
    known = {column.name for table in columns.TABLES.values() for column in table.columns}
    assert [
        head for head in other_words().values() if head.column and head.column not in known
    ] == []


@pytest.mark.parametrize("word", ["label", "evidence", "short_run", "weight_decay"])
def test_a_word_that_is_gone_says_what_to_use(word):
    """Of the label, and of explanations that can never be excluded."""
    result = CliRunner().invoke(app, ["explain", word])
    assert result.exit_code != 0
    assert f"{word} is gone" in str(result.exception)
