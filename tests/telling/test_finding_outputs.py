"""Every output shows the same finding, and none lets its text become markup."""

import pyarrow.parquet as pq
import reports
from finding_cases import SETTINGS, card, check, codes, model, step
from typer.testing import CliRunner

from shadow.checks.explanations import EXPLANATIONS, Explanation
from shadow.checks.summary import Finding, Sentence
from shadow.cli.commands import app
from shadow.gates.verdicts import Judgement
from shadow.outputs.markdown import plain
from shadow.reports.columns import TABLES
from shadow.telling.finding import CODES
from shadow.telling.reading import read_summary

# outputs

TEXT = "<b>x</b> | `a` [l](http://e.x) ![i](j) @team #7421 www.e.x **b** \x1b[31m\n- item $m$"
OTHER = {"code": "quantised_copy", "name": "<i>|n|</i>", "answer": "no", "reason": "@you | #3"}
HOSTILE = Finding(
    headline="<b>|`x`\n[red]",
    sentences=[Sentence(code="size", text=TEXT, figures={})],
    other_explanations=[Explanation(OTHER, figures={})],
    not_shown=["not\nshown"],
)


def test_no_text_becomes_markdown():
    """Markup, tables, links, images, mentions and references stay text, on one line."""
    text = plain(HOSTILE.sentences[0].text)
    assert "\n" not in text
    active = ("<b>", "|", "`", "[l]", "](", "![", "@team", "#7421", "http://", "www.e", "**", "$")
    for mark in (*active, "\x1b"):
        assert mark not in text
    assert plain("- item").startswith("<!-- -->")
    assert (
        plain("The change is 8.0 % of the base's norm (as stored 9 %).")
        == "The change is 8.0 % of the base's norm (as stored 9 %)."
    )


def test_hostile_findings_are_harmless_in_every_output(must):
    """Of a forged summary: Markdown of a report and of CI show it as text."""
    summary = must("size").with_values(finding=HOSTILE, family="<f>|@x", pair="`q`")
    metadata = {"version": "1", "settings": {**SETTINGS, "chosen": {"modules": ["|@m"]}}}
    judged = Judgement("f", "p", summary=summary)
    for text in (card(summary, metadata), step(judged)):
        active = ("<b>", "<i>", "<f>", "@team", "@you", "@x", "@m", "#7421", "http://", "`a`")
        for mark in (*active, "`q`", "\x1b"):
            assert mark not in text
        assert "x" in text


def test_explain_finding_lists_every_code():
    """`shadow explain finding`: sentences and other explanations."""
    text = CliRunner().invoke(app, ["explain", "finding"]).stdout
    assert all(code in text for code in (*CODES, *EXPLANATIONS))


def test_an_older_report_says_what_its_columns_carry(tmp_path):
    """Only the columns that every report of the schema has."""
    folder = reports.write(tmp_path / "base..tuned", model())
    path = folder / "matrices.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.select([name for name in table.column_names if name in TABLES["matrices"].first]),
        path,
    )
    summary, _ = read_summary(folder)
    check(summary)
    assert codes(summary.finding)[0] == "size"


def test_markdown_names_local_checkpoints_by_their_folders(must):
    """A model card tells nobody's folders; a repository of the Hub keeps its whole name."""
    summary = must("size")
    local = {"repo": "/home/me/secret/tuned-7", "commit": None, "fingerprint": "f"}
    hub = {"repo": "org/base", "commit": "c" * 40, "fingerprint": None}
    metadata = {"version": "1", "settings": SETTINGS}
    text = card(summary.with_values(base=hub, tuned=local), metadata)
    assert f"- base: org/base @<!-- --> {'c' * 40}\n- tuned: tuned-7\n" in text
    assert "secret" not in text
    parts = {**local, "repo": "language=org/name vision=/home/me/se cret/tower audio=/x/y"}
    text = card(summary.with_values(base=hub, tuned=parts), metadata)
    assert "language=org/name vision=tower audio=y\n" in text
