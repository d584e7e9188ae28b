"""The page tells what the report says, lets no text of it become markup, and loads nothing."""

import base64
import hashlib
import json
import os
import re
import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import families
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run_shadow
from hypothesis import given
from hypothesis import strategies as st
from picture import contrast

from shadow.lists.index import Index, ListRow
from shadow.outputs.page import file_text, write_page
from shadow.outputs.page.pair import script_json
from shadow.telling.reading import read_summary

HOSTILE = "</script><img src=x onerror=alert(1)><b>&lt;%{x} $\\alpha$ \u202e\u2028\x1b[31m"
# what a reader sees
SHOWN = "</script><img src=x onerror=alert(1)><b>&lt;%{x} $\\alpha$ \\x202e\\x2028\\x1b[31m"


class Elements(HTMLParser):
    """What a browser makes of a page: elements with attributes, texts of scripts and the rest."""

    def __init__(self, content: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.inside = ""
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag
        self.text += " " if tag == "td" else ""
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.inside != "style":
            self.text += data.replace("\N{NO-BREAK SPACE}%", " %")

    def json(self, name):
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == name)
        return json.loads(text)


def folders_in(run: Path) -> list[Path]:
    return sorted(path.parent for path in run.rglob("matrices.parquet"))


def written(run: Path) -> bytes:
    output = run.parent / f"{run.name}.html"
    write_page(run, folders_in(run), output)
    return output.read_bytes()


page_of = cache(written)  # of reports that no test changes


def ranking(content: bytes) -> list[tuple[str, float, bool]]:
    """The pairs of the ranking in their order: family, concentration, whether it lacks a gate."""
    html = content.decode()
    rows = html.partition('id="overview"')[2].partition("</table>")[0].split("<tr>")[2:]
    return [
        (
            re.search(r'href="#pair-\d+">(\S+)', row)[1],
            float(re.search(r'class="n">(-?[\d.]+)', row)[1]),
            "Gates: " in row,
        )
        for row in rows
    ]


# ---- the file


def test_the_page_of_the_demo_is_small_enough_for_mail(demo_reports, tmp_path):
    """Two reports with every chart, written by the command, whose stdout stays empty."""
    done = run_shadow("report", demo_reports, "-o", "page.html", cwd=tmp_path)
    page = (tmp_path / "page.html").read_text()
    assert (page.count("sha256 of its tensors"), "registry/demo" in page) == (4, False)
    assert done.assert_done() == ""
    assert (tmp_path / "page.html").stat().st_size < 500_000
    assert len(ranking((tmp_path / "page.html").read_bytes())) == 2


@pytest.mark.slow
def test_a_mixture_of_4608_expert_matrices_takes_less_than_2_mb(tmp_path):
    """Experts share their cell's figures and curves."""
    families.mixture(tmp_path / "run" / "toy" / "base..tuned", layers=24, experts=64, width=96)
    assert len(page_of(tmp_path / "run")) < 2_000_000


def test_the_same_reports_give_the_same_bytes(small, tmp_path):
    """Also where the folder lies elsewhere and the page is written over an older one."""
    run = small.parent
    copy = tmp_path / "other" / run.name
    shutil.copytree(run, copy)
    assert page_of(run) == written(run) == written(copy)


def test_the_page_loads_nothing(small):
    """No element names an address outside the page."""
    content = page_of(small.parent)
    page = Elements(content)
    for tag, attributes in page.found:
        for key in ("src", "href", "action", "data", "poster", "srcset"):
            address = attributes.get(key)
            assert address is None or re.match(r"#|data:,$", address), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert b"@import" not in content.split(b"<script>")[0]
    assert b"url(" not in content.split(b"<script>")[0]
    metas = [recorded for tag, recorded in page.found if tag == "meta" and "http-equiv" in recorded]
    (policy,) = (a["content"] for a in metas if a["http-equiv"] == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    run = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(run) == 2
    for text in run:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_the_page_without_scripts_tells_what_matters(vision):
    """Finding, explanations, gates, modules, components, skips and provenance are plain HTML."""
    page = Elements(page_of(vision.parent))
    summary = json.loads((vision / "summary.json").read_text())
    finding = summary["finding"]
    assert finding["sentences"]
    for one in (*finding["sentences"], *finding["other_explanations"]):
        assert one.get("text", one.get("reason")).replace("`", "") in page.text
    assert all(text in page.text for text in finding["not_shown"])
    assert all(gate["reason"] in page.text for gate in summary["gates"])
    skipped = ("nonfinite", "NaN or infinite entries", "3 NaN", "model.odd.weight", "quantized")
    names = ("language", "vision", "projector", "attn.q", "mlp.down", "By component")
    for text in (*skipped, "gptq", "model.packed", "0" * 12, "1" * 12, *names):
        assert text in page.text


def test_text_of_a_report_never_becomes_markup(tmp_path):
    """A hostile name makes no element, no attribute and no end of a script."""

    def page_with(run, text, **names):
        options = {
            "skipped": ({"tensor": text, "reason": "quantized", "detail": text},),
            "base": {"repo": text, "commit": None, "fingerprint": text},
        }
        folder = tmp_path / run / "toy" / "base..tuned"
        families.small(folder, layers=1, device=text, **options, **names)
        return Elements(page_of(tmp_path / run))

    hostile, tame = page_with("run", HOSTILE, family=HOSTILE, prefix=HOSTILE), page_with("x", "x")
    shape = [(tag, sorted(attributes)) for tag, attributes in hostile.found]
    assert shape == [(tag, sorted(attributes)) for tag, attributes in tame.found]
    assert hostile.text.count(SHOWN) >= 5
    assert all(char.isprintable() or char == "\n" for char in hostile.text)
    data = hostile.json("data-0")
    assert data["tensor"][0].startswith(SHOWN)


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_inside_a_script_element_cannot_end_it(value):
    """Whatever the text: no markup is left, and it reads back the same, with controls visible."""
    text = str(script_json(value))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == json.loads(script_json(json.loads(text)))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    run = tmp_path_factory.mktemp("several") / "run"
    for index, narrow in enumerate((0.1, 2.0, 0.8)):
        name = f"family-{index}"
        folder = run / name / "base..tuned"
        families.small(folder, layers=4, family=name, narrow=narrow, seed=index)
    packed = {"tensor": "packed", "reason": "quantized", "shape": [9999, 9999]}
    options = {"layers": 4, "family": "unrelated", "narrow": 2.0, "skipped": (packed,)}
    families.small(run / "unrelated" / "base..tuned", **options)
    return run


def test_pairs_are_ranked_by_concentration_and_those_that_fail_a_gate_come_last(several):
    """The order is of summary.json's medians; a pair whose figures do not count has no rank."""
    ranked = ranking(page_of(several))
    summaries = {folder.parent.name: read_summary(folder)[0] for folder in folders_in(several)}
    medians = {name: summary.figures.concentration for name, summary in summaries.items()}
    order = sorted(medians.keys() - {"unrelated"}, key=lambda name: -medians[name])
    assert [name for name, _, _ in ranked] == [*order, "unrelated"]
    assert [failed for _, _, failed in ranked] == [False] * len(order) + [True]
    for name, concentration, _ in ranked:
        assert concentration == pytest.approx(medians[name], abs=0.006)


def test_a_report_that_cannot_be_read_is_named_on_the_page(several, tmp_path, inside):
    """The others are shown, the command says what is wrong and exits with 1."""
    run = tmp_path / "run"
    shutil.copytree(several, run)
    (run / "family-1" / "base..tuned" / "tensors.parquet").write_bytes(b"PAR1 nothing")
    done = inside("report", run, "-o", "page.html")
    assert (done.code, done.out) == (1, "")
    assert "family-1/base..tuned: tensors.parquet" in done.err.replace("\n", "")
    page = Elements((tmp_path / "page.html").read_bytes())
    assert "run/family-1/base..tuned unreadable" in " ".join(page.text.split())
    assert len(ranking((tmp_path / "page.html").read_bytes())) == 3


@pytest.mark.parametrize(
    "forged",
    [lambda text: [text], lambda text: f"{text}\xff".encode("latin-1")],
    ids=["lists", "no UTF-8"],
)
def test_spectra_of_another_type_are_refused(tmp_path, inside, forged):
    """As every reader of the table refuses them; the page read columns as they are."""
    folder = families.small(tmp_path / "toy" / "base..tuned", layers=1)
    table = pq.read_table(folder / "spectra.parquet")
    place = table.schema.get_field_index("subject")
    subjects = pa.array(list(map(forged, table["subject"].to_pylist())))
    pq.write_table(table.set_column(place, "subject", subjects), folder / "spectra.parquet")
    assert "spectra.parquet" in inside("report", folder).assert_refused()


# ---- the command


def test_pairs_of_a_list_without_a_report_are_named_with_the_reason(small, tmp_path, inside):
    """What the index of a list says of pairs that failed or were not reached stands on the page."""
    run = tmp_path / "run"
    shutil.copytree(small, run / "toy" / "base..tuned")
    rows = [
        ListRow(None, "toy", pair, "tuned", folder, "org/a", "org/b", state=state, error=error)
        for pair, folder, state, error in (
            ("base..tuned", "toy/base..tuned", "done", None),
            ("base..b", "toy/base..b", "failed", "no such <b>repository"),
            ("base..c", "toy/base..c", "pending", None),
            ("base..d", "/etc/elsewhere", "pending", None),  # which no list writes
        )
    ]
    index = Index("0.2.0", (1, {}), None, tuple(rows))
    (run / "index.json").write_text(json.dumps(index.as_json()))
    assert inside("report", "run", "-o", "page.html").code == 0
    recorded = " ".join(Elements((tmp_path / "page.html").read_bytes()).text.split())
    assert "run/toy/base..b failed no such <b>repository" in recorded
    assert "run/toy/base..d pending" in recorded
    assert "run/toy/base..c pending" in recorded
    assert "run/toy/base..tuned done" not in recorded


def test_report_refuses_what_it_cannot_do(small, tmp_path, inside):
    """A missing folder, a file that is no page of ours, a folder to write into that is absent."""
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    os.mkfifo(tmp_path / "pipe.html")  # nobody writes into it
    for words, named, code in (
        (("missing",), "missing", 1),
        ((small, "-o", "notes.html"), "notes.html", 1),
        ((small, "-o", "pipe.html"), "pipe.html", 1),
        ((small, "-o", "notes.html/page.html"), "notes.html", 1),
        ((small, "-o", tmp_path), str(tmp_path), 2),
    ):
        assert named in inside("report", *words).assert_refused(code)
    assert (tmp_path / "notes.html").read_text() == "<p>mine</p>"


# ---- the look


def colours() -> dict[str, tuple[str, str]]:
    both = r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)"
    return {name: pair for name, *pair in re.findall(both, file_text("page.css"))}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_in_both_themes(theme):
    """WCAG AA: 4.5 for text, 3 for the lines and marks of charts."""
    found = {name: pair[theme] for name, pair in colours().items()}
    for text in ("text", "soft", "accent", "warm"):
        assert contrast(found[text], found["page"]) >= 4.5, text
    assert contrast(found["text"], found["warn-page"]) >= 4.5
    assert contrast(found["text"], found["raised"]) >= 4.5
    for line in ("base", "tuned", "delta", *(f"s{index}" for index in range(10))):
        assert contrast(found[line], found["page"]) >= 3, line


def test_a_forged_report_without_modules_has_a_page(demo_reports, inside, tmp_path):
    folder = shutil.copytree(demo_reports / "base..broad", tmp_path / "forged")
    (folder / "summary.json").unlink()
    table = pq.read_table(folder / "matrices.parquet")
    at = table.schema.get_field_index("module")
    words = pa.array([(None, "else", "attn.q")[row % 3] for row in range(len(table))], pa.string())
    pq.write_table(table.set_column(at, table.schema.field(at), words), folder / "matrices.parquet")
    inside("report", "forged", "-o", "page.html").assert_done()
