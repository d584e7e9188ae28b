"""The page in a headless Chromium: it draws, answers pointer and keyboard, and has no fault."""

import os
import re
import shutil
from pathlib import Path

import families
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect, sync_playwright

from shadow.outputs.page import write_page
from shadow.outputs.page.pair import CAPTIONS
from shadow.quantities import share

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 120_000  # milliseconds after which a browser counts as hung, on a loaded machine

expect.set_options(timeout=PATIENCE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium: apt-get install chromium, or name it in CHROMIUM"
    ),
]
HOSTILE = (
    "</script><img src=x onerror=alert(1)><b>&lt;b&gt; <a href='https://evil.invalid'>%{x}"
    " $\\alpha$</a>"
)
BACKGROUND = "getComputedStyle(document.documentElement).backgroundColor"
NAME = "getComputedStyle(document.querySelector('[data-chart=heat] li')).color"
CHARTS = list(CAPTIONS)
DARK = "rgb(18, 21, 25)"  # the page in the dark theme


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            timeout=PATIENCE,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Opens a page of a file; in the end there was no complaint and no request to a network."""
    complaints, contexts = [], []

    def open_page(file: Path, theme: str = "light", width: int = 1400, fragment: str = ""):
        viewport = {"width": width, "height": 900}
        context = chromium.new_context(color_scheme=theme, viewport=viewport)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()

        def asked(request):
            if not request.url.startswith(("file:", "data:", "blob:")):
                complaints.append(f"request: {request.url}")

        page.on(
            "console",
            lambda recorded: complaints.append(f"console {recorded.type}: {recorded.text}"),
        )
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on("request", asked)
        page.goto(f"file://{file}{fragment}")
        page.wait_for_selector("html[data-ready]")
        page.complaints = complaints
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def written(run: Path) -> Path:
    folders = sorted(path.parent for path in run.rglob("matrices.parquet"))
    write_page(run, folders, run.parent / "page.html")
    return run.parent / "page.html"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A vision-language pair: language, a frozen tower, a projector without a base."""
    run = tmp_path_factory.mktemp("one") / "run"
    parts = (
        families.Part(families.SMALL, 8, outside=(("embed", (96, 64)),)),
        families.Part(families.SMALL, 5, "vision", identical=True),
        families.Part({}, 0, "projector", (("projector.0", (64, 64)),), base=False),
    )
    families.write_family(run / "vlm" / "base..tuned", parts, family="vlm")
    return written(run)


@pytest.fixture(scope="module")
def fifty(tmp_path_factory):
    """Fifty pairs of two layers each, too few for intervals."""
    run = tmp_path_factory.mktemp("fifty") / "run"
    for index in range(50):
        name, change = f"family-{index:02}", 0.01 * 1.05**index
        more = {"layers": 2, "family": name, "seed": index, "narrow": index / 25, "change": change}
        families.small(run / name / "base..tuned", **more)
    return written(run)


def deltas(file: Path) -> dict[tuple, dict]:
    (path,) = (file.parent / "run").rglob("matrices.parquet")
    return {
        (row["module"], row["layer"]): row
        for row in pq.read_table(path).to_pylist()
        if row["subject"] == "delta"
    }


def charts(page) -> list[str]:
    """Names of the charts of the script that have something drawn in them and can be seen."""
    return page.eval_on_selector_all(
        ".plot",
        "all => all.filter(one => one.offsetParent && one.querySelector('svg')).map(one =>"
        " one.dataset.chart)",
    )


CELL = "article:visible [data-chart=heat] rect[data-tip*='layer {} · {}\n']"


def point_at(page, module: str, layer: int) -> str:
    """What the page says while the pointer is on a cell of the heat map."""
    page.locator(CELL.format(layer, module).replace("\n", "\\a ")).first.hover()
    return page.locator(".tip").text_content()


# ---- it draws


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_one_family_is_drawn_in_both_themes(one, opened, theme):
    """All charts of a vision-language pair, in the colours of the theme."""
    page = opened(one, theme)
    assert charts(page) == CHARTS
    assert page.evaluate(BACKGROUND) == {"light": "rgb(255, 255, 255)", "dark": DARK}[theme]
    assert page.evaluate(NAME) == {"light": "rgb(22, 25, 29)", "dark": "rgb(230, 233, 236)"}[theme]


@pytest.mark.parametrize("width", [400, 900, 1400])
def test_the_page_fits_its_window(one, fifty, opened, width):
    """Nothing is wider than the window, from a telephone to a screen; what must be, scrolls."""
    for file in (one, fifty):
        page = opened(file, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        widest = page.eval_on_selector_all(
            "figure svg", "all => Math.max(...all.map(one => one.getBoundingClientRect().right))"
        )
        assert widest <= width


def test_a_page_without_reports_opens(tmp_path, opened):
    """No family: the words, the theme switch, no chart."""
    (tmp_path / "run").mkdir()
    page = opened(written(tmp_path / "run"))
    expect(page.get_by_role("heading", name="No finished report")).to_be_visible()
    assert charts(page) == []
    page.get_by_role("radio", name="Dark").check()
    assert page.evaluate(BACKGROUND) == DARK


def test_fifty_families_are_ranked_and_each_can_be_opened(fifty, opened):
    """Ranking; details are of the pair chosen by list, link or address."""
    page = opened(fifty)
    texts = page.locator("#overview td.n:nth-child(2)").all_text_contents()
    places = [float(text.split()[0]) for text in texts]
    assert len(places) == 50
    assert places == sorted(places, reverse=True)
    assert page.locator("article:visible").count() == 1
    page.locator("#picker").select_option(label="family-17 base..tuned")
    expect(page.locator("article:visible h2").first).to_have_text("family-17 base..tuned")
    assert "heat" in charts(page)
    page.locator("#overview a").last.click()
    chosen = page.locator("#overview a").last.text_content()
    expect(page.locator("article:visible h2").first).to_have_text(chosen)
    assert page.locator("#picker option:checked").text_content() == chosen
    third = opened(fifty, fragment="#pair-3")
    expect(third.locator("article:visible h2").first).to_have_text("family-03 base..tuned")


# ---- it answers


def test_pointing_at_a_cell_tells_value_and_null(one, opened):
    """The text beside the pointer has the numbers of matrices.parquet for that cell."""
    page = opened(one)
    row = deltas(one)["mlp.up", 5]
    text = point_at(page, "mlp.up", 5)
    assert f"relative norm {share(row['relative_norm'])}" in text
    assert "172 × 64" in text
    metric = page.locator("[data-control=metric]")
    metric.select_option("concentration")
    text = point_at(page, "mlp.up", 5)
    assert f"concentration {row['concentration']:#.2g}" in text
    assert "under the null 0" in text
    metric.select_option("participation_ratio")
    null = deltas(one)["attn.q", 2]["null_participation_ratio"]
    assert f"under the null {null:.0f}" in point_at(page, "attn.q", 2)


def test_the_metric_is_switched_from_the_keyboard(one, opened):
    """Tab reaches the list, a key chooses, and chart and words follow."""
    page = opened(one)
    select = page.locator("[data-control=metric]")
    page.locator("nav.contents a").last.focus()
    for _ in range(3):
        page.keyboard.press("Tab")
        if select.evaluate("one => one === document.activeElement"):
            break
    assert select.evaluate("one => one === document.activeElement")
    page.keyboard.press("ArrowDown")
    assert select.input_value() == "concentration"
    expect(page.locator("[data-text=heat]")).to_contain_text("concentration: ")
    tips = page.locator("[data-chart=heat] rect").evaluate_all(
        "all => all.map(one => one.dataset.tip)"
    )
    assert len(tips) == 4 * 8 + 1 + 4 * 5 + 1
    for (module, layer), row in deltas(one).items():
        where = f"{'' if layer is None else f'layer {layer} · '}{module}\n"
        (recorded,) = (tip for tip in tips if tip.startswith(f"language · {where}"))
        found = float(re.search(r"concentration ([−\d.]+)", recorded)[1].replace("−", "-"))
        assert found == pytest.approx(row["concentration"], abs=0.006)


def test_a_click_on_a_cell_opens_its_spectrum(one, opened):
    """The curve below is that of the cell: its layer, module and spikes."""
    page = opened(one)
    point_at(page, "attn.o", 6)
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("[data-text=spectra]")).to_contain_text("layer 6 · attn.o")
    spikes = deltas(one)["attn.o", 6]["spikes"]
    assert f"{spikes} singular value" in page.locator("[data-text=spectra]").text_content()
    assert page.locator("[data-chart=spectra] .ring").count() == spikes


def test_every_control_and_chart_has_a_name(one, opened):
    """For a screen reader: charts tell their ends, controls have labels."""
    page = opened(one)
    labels = page.eval_on_selector_all(
        "figure [role=group]",
        "all => all.filter(one => one.offsetParent).map(one => one.ariaLabel)",
    )
    assert len(labels) == len(CHARTS)
    assert min(map(len, labels)) > 20
    assert "from" in page.locator("[data-chart=heat]").get_attribute("aria-label")
    unnamed = page.eval_on_selector_all(
        "select, input",
        """all => all
        .filter(one => !(one.labels?.length || one.textContent.trim() || one.ariaLabel))
        .map(one => one.outerHTML)""",
    )
    assert unnamed == []


# ---- it trusts nobody


def test_hostile_names_stay_text(tmp_path, opened):
    """Names with tags, entities and templates make no element, link or dialog, nor do tips."""
    for name in ("a", "b"):
        families.small(
            tmp_path / "run" / name / "base..tuned",
            layers=3,
            family=f"{name}{HOSTILE}",
            prefix=HOSTILE,
            skipped=({"tensor": HOSTILE, "reason": "quantized", "detail": HOSTILE},),
        )
    page = opened(written(tmp_path / "run"))
    page.locator("#picker").select_option("1")
    tip = point_at(page, "mlp.up", 1)
    assert "</script><img src=x onerror=alert(1)><b>&lt;b&gt;" in tip
    for name in page.locator("#overview a").all_text_contents():
        assert re.match(r"[ab]</script><img src=x onerror=alert", name)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert page.locator("img, iframe, object, embed").count() == 0
    links = page.evaluate(
        "[...document.querySelectorAll('a')].map(one => one.getAttribute('href'))"
    )
    assert [
        link for link in links if link is not None and not re.fullmatch("#[a-z]+(-[0-9]+)?", link)
    ] == []
    assert page.locator("script").count() == 2 + 1 + 2  # ours, data


def test_a_layer_number_of_millions_does_not_stop_the_page(tmp_path, opened):
    """A tensor's name may claim any layer: what fits no chart is told, the rest drawn."""
    folder = families.small(tmp_path / "run" / "toy" / "base..tuned", layers=5)
    for name in ("matrices", "tensors", "spectra"):
        table = pq.read_table(folder / f"{name}.parquet")
        place = table.schema.get_field_index("layer")
        far = [2_000_000_000 if layer == 4 else layer for layer in table["layer"].to_pylist()]
        table = table.set_column(place, table.schema.field("layer"), [far])
        pq.write_table(table, folder / f"{name}.parquet")
    page = opened(written(tmp_path / "run"))
    expect(page.locator("article")).to_contain_text("Not drawn: 4 cells of layers from 1,000 on.")
    assert charts(page) == CHARTS
    assert page.locator("[data-chart=heat] rect").count() == 4 * 4 + 1


def test_the_policy_stops_what_would_be_fetched_or_run(one, chromium):
    """Even a script that got in could neither call out nor add another: the browser refuses."""
    context = chromium.new_context()
    page = context.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(f"file://{one}")
    page.wait_for_selector("html[data-ready]", timeout=PATIENCE)
    for attempt in (
        "fetch('https://example.invalid/').then(() => 'fetched', () => 'refused')",
        """(() => { const made = document.createElement('script');
        made.textContent = 'window.ran = 1';
        document.body.append(made); return window.ran ?? 'refused'; })()""",
        """(() => { const image = new Image(); return new Promise(done => {
        image.onload = () => done('loaded'); image.onerror = () => done('refused');
        image.src = 'https://example.invalid/x.png'; }); })()""",
    ):
        assert page.evaluate(attempt) == "refused"
    assert sum("Content Security Policy" in text for text in refused) >= 3
    context.close()
