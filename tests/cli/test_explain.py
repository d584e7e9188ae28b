"""Words on the screen can be looked up as they stand there."""

from __future__ import annotations

import re

import pytest
from reports import uniform
from typer.testing import CliRunner

from shadow.claims.explanations import EXPLANATIONS
from shadow.claims.gates import GATES
from shadow.claims.recognised import RECOGNISED
from shadow.cli.commands import app
from shadow.comparing.comparison import compare
from shadow.comparing.differences import FIGURES
from shadow.reports import columns
from shadow.reports.words import HEADS, terms
from shadow.telling.comparison import comparison_document
from shadow.telling.document import Table
from shadow.telling.lineage import FIELDS
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
    assert len(heads) > 25
    assert {"PR", "null PR", "conc.", "rel. norm", "shift", "energy", "PR/null", "A - B"} <= {
        *heads
    }
    assert [head for head in heads if explained(head).exit_code] == []


def test_every_head_of_a_lineage_is_explained_and_has_a_legend():
    """But for the name of the step, which stands in the title of each chain."""
    heads = [column.head for column in FIELDS]
    assert {"most in", "dirs."} <= set(heads)
    assert [head for head in heads if head != "step" and explained(head).exit_code] == []
    assert [column.head for column in FIELDS if not column.legend] == ["step"]


def test_every_figure_of_a_comparison_is_explained():
    """Their titles stand in the first column of the table."""
    assert [figure.title for figure in FIGURES if explained(figure.title).exit_code] == []


def test_a_head_names_a_column_that_there_is():
    """Else `explain` would leave its formula out without a word."""
    known = {column.name for table in columns.TABLES.values() for column in table.columns}
    assert [head for head in HEADS.values() if head.column and head.column not in known] == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["PR"], "participation_ratio  "),
        (["pr"], "participation_ratio  "),
        (["conc."], "concentration  "),
        (["conc. A"], "concentration  "),
        (["conc"], "concentration  "),
        (["x", "rounding"], "floor_ratio  "),
        (["null", "PR"], "null_participation_ratio  "),
        (["eff. rank"], "effective_rank  "),
        (["energy"], "energy_share  "),
    ],
)
def test_a_head_shows_its_column(words, name):
    """Written as one word or several, in any case, and with the letter of a report."""
    assert name in explained(*words).stdout


def test_a_misspelt_head_answers_with_the_nearest():
    """Exit 2, as for a column."""
    result = explained("conc,")
    assert isinstance(result.exception, Exception)
    assert result.exception.hint == "did you mean 'conc.'?"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gates"], "at least 0.5"),
        (["null"], "random sign"),
        (["x", "null"], "value of the null"),
        (["follows"], "at least 0.25 of an even share"),
        (["neither follows nor avoids"], "alignment_left"),
        (["kept"], "finished report"),
        (["kept"], "share of the stored delta's energy"),  # the column of that name
        (["FAILED"], "its condition is true"),
        (["rounding"], "a gate: it passes when"),
        (["profile"], "the sizes of the rows and columns"),
        (["update"], "what training did to the weights"),
        (["lab"], "small models that were trained on known data"),
        (["Delta"], "the difference tuned − base"),
        (["embed"], "a module:"),
        (["mlp.up"], "a module:"),
        (["rank", "one"], "a single direction"),
        (["effective number"], "entropy of their shares"),
        (["X"], "excess_purity "),
        (["1/X"], "equivalent_directions "),
        (["A"], "letter and pair of a report"),
        (["pruned", "base"], "the figures show beyond doubt: in every changed matrix, some"),
        (["zeroed"], "zeroed `pruned base`, a change that the figures show beyond doubt:"),
        (["merged_adapter"], "merged_adapter `low-rank adapter, or an edit of few directions`,"),
        (["nats"], "natural logarithm"),
        (["AUC"], "At 0.5 it does not separate them"),
        (["left", "out"], "for the reason"),
        (["Other", "explanations"], "cannot be excluded"),
        (["PR"], "effective number of directions"),
        (["sign-flip null"], "random sign"),
        (["leading directions"], "16 singular vectors"),
        (["attention", ":", "MLP"], "ratio of parameters"),
        (["null edge"], "sqrt(max r_i) + sqrt(max c_j)"),
        (["participation", "share"], "participation_ratio / null_participation_ratio"),
        (["not_a_matrix"], "vectors, of which only the relative norm"),
        (["orthogonalised optimiser"], "another explanation"),
        (["adapter"], "a low-rank update"),
        (["lora"], "a low-rank update"),
        (["rank"], "how many directions a matrix has"),
        (["rank"], "a gate: it passes when"),
        (["dequantised"], "few distinct values"),
        (["gates.failed"], "gates in summary.json a list, a row for each gate"),
        (["gates.failed"], "Of a gate: its condition does not hold"),
        (["inside_layers.kept"], "share of the stored delta's energy"),
        (["WORD"], "type one that is on the screen"),
        (["RUN"], "`shadow show reports`"),
    ],
)
def test_other_words_of_the_screens_are_explained(words, told):
    """The label, its reference, the gates, what the finding says of directions, states, outcomes
    and reasons.
    """
    result = explained(*words)
    assert result.exit_code == 0
    assert told in " ".join(result.stdout.split())


def test_several_words_are_explained_one_after_another():
    """Where they are no phrase; of several of which one is unknown none is explained."""
    text = explained("spikes", "delta").stdout
    assert "singular values are above null_edge" in text
    assert "the difference tuned − base" in text
    assert explained("spikes", "qwertz").exit_code != 0


def test_letters_of_formulas_are_explained_once_and_where_they_occur():
    """`energy` is two columns of one delta; a position in a list has no letter, and `p` of a layer
    is no share of a singular value.
    """
    text = " ".join(explained("energy").stdout.split())
    assert text.count("D = tuned - base is the delta") == 1
    assert "E = sum sigma^2" not in text
    assert "E = sum sigma^2" in explained("spike_energy").stdout
    assert "delta" not in explained("position").stdout
    assert "p = sigma" not in explained("depth_entropy").stdout


def test_a_text_of_a_column_stands_by_itself():
    """`the same for ...` says nothing where no other column stands above it."""
    texts = {
        column.name: column.text for table in columns.TABLES.values() for column in table.columns
    }
    leans = r"the same (of|for|in|by|as|with)|of these|\b(their|these)\b .*|.* (above|holds) it$"
    assert [name for name, text in texts.items() if re.match(leans, text)] == []


@pytest.mark.parametrize("words", [["sharp", "edge"], ["sharp_edge"]])
def test_several_words_find_the_name_that_holds_them(words):
    """In any order; what is merely spelt like them is no answer."""
    assert explained(*words).exception.hint == "did you mean 'null_edge_sharp'?"


def test_every_claim_is_explained_by_its_title_and_by_its_code():
    """Titles are on the screen, codes in summary.json."""
    titled = [*EXPLANATIONS.values(), *RECOGNISED.values()]
    words = [*GATES, *(word for claim in titled for word in (claim.code, claim.title))]
    assert [word for word in words if explained(word).exit_code] == []


@pytest.mark.parametrize(
    ("typed", "meant"), [("zerod", "zeroed"), ("merged_adaptor", "merged_adapter")]
)
def test_a_misspelt_code_answers_with_the_nearest(typed, meant):
    """Exit 2, as for a column."""
    assert meant in explained(typed).exception.hint


@pytest.mark.parametrize("word", ["pandas", "banana", "weather", "qwertz"])
def test_a_word_that_is_unlike_all_others_gets_no_guess(word):
    """What is alike by chance, as `profile` and `failed`, helps nobody."""
    assert explained(word).exception.hint == "`shadow explain` lists every column"


def test_the_column_comes_before_another_meaning():
    """`kept` is a column first, and then how a pair of a list stands."""
    text = " ".join(explained("kept").stdout.split())
    assert text.index("share of the stored delta's energy") < text.index("finished report")


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
