"""Lineages: the order of stages from provenance, what each step changed, and how it lies to the
step before.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from random import Random

import chains
import numpy as np
import pytest
import torch
from chains import cosine, explained
from command import run_shadow
from reports import delta, identity, place, write
from safetensors.torch import save_file

from shadow.comparing.lineage import MOST_CHAINS, Step, lineage, shrinking
from shadow.comparing.one_checkpoint import numbered
from shadow.errors import ShadowError
from shadow.outputs.figures import draw, write_figure
from shadow.outputs.figures.source import Choice
from shadow.outputs.page import write_page
from shadow.summary.rows import CheckpointSide
from shadow.telling.reading import SummarisedReport, read_step


def shadow(*arguments: str | Path, cwd: Path, width: int = 80):
    return run_shadow(*arguments, cwd=cwd, env={**os.environ, "COLUMNS": str(width)})


# -------------------------------------------------------------------------------- order


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A report with one changed matrix in each of four layers, as a step."""
    rows = [
        delta(0.3, place(layer, "mlp.up"), frobenius_norm=0.1 + layer, parameters=6144)
        for layer in range(4)
    ]
    return read_step(SummarisedReport(write(tmp_path_factory.mktemp("template") / "a..b", rows)))


@pytest.fixture
def step(template):
    """What makes a step from one checkpoint to another, of the folder of its report."""

    def make(
        folder: str, base: CheckpointSide, tuned: CheckpointSide, norm: float = 0.05, **told: object
    ) -> Step:
        start, _, end = folder.rpartition("/")[2].partition("..")
        names = {"folder": folder, "pair": f"{start}..{end}", "start": start, "end": end}
        return replace(template, **names, base=base, tuned=tuned, norm=norm, **told)

    return make


def commit(repo: str, number: int) -> dict[str, object]:
    return {"repo": repo, "commit": f"{number:040x}", "fingerprint": f"{number:064x}"}


STAGES = [commit("org/base", 1), commit("org/sft", 2), commit("org/dpo", 3), commit("org/rl", 4)]


@pytest.fixture
def steps(step):
    """Three steps that follow one another, and one over the first two."""
    names = ("base..sft", "sft..dpo", "dpo..rl")
    found = [
        step(name, *pair, norm=norm)
        for name, pair, norm in zip(names, pairwise(STAGES), (0.08, 0.02, 0.04), strict=True)
    ]
    return [*found, step("base..dpo", STAGES[0], STAGES[2])]


def test_the_order_is_that_of_provenance_whatever_the_order_of_reports(steps):
    """Every order of the reports gives the chain base, sft, dpo, rl, and below it the report that
    spans two steps.
    """
    for order in permutations(steps):
        found = lineage(order)
        assert [chain.stages for chain in found.chains] == [["base", "sft", "dpo", "rl"]]
        assert [one.pair for one in found.chains[0].whole] == ["base..dpo"]
        assert not found.notes


def test_ratios_are_those_of_norms_to_the_step_before(steps):
    """.02 of the same matrices after .08 is a quarter of it."""
    ratios = [one.ratio for one in lineage(steps).chains[0].steps]
    assert ratios == [None, pytest.approx(0.25), pytest.approx(2.0)]


def test_audits_of_different_parts_have_no_ratio(step, steps):
    """A filter of one of the two makes their norms those of other matrices."""
    part = step("part/sft..dpo", *STAGES[1:3], chosen={"layers": [0]})
    found = lineage([steps[0], part]).chains[0].steps[1]
    assert found.ratio is None
    assert "restricted" in found.no_ratio


def test_one_base_of_several_models_makes_a_chain_of_each(step, steps):
    """A second model tuned from sft is the end of a chain of its own."""
    other = step("sft..coder", STAGES[1], commit("org/coder", 9))
    found = lineage([*steps, other])
    assert [chain.stages for chain in found.chains] == [
        ["base", "sft", "dpo", "rl"],
        ["base", "sft", "coder"],
    ]
    assert not found.notes


def test_another_commit_of_a_stage_is_a_gap(step, steps):
    """sft..dpo begins at a later commit of sft than base..sft ended at: two chains, and a note with
    both commits.
    """
    later = step("later/sft..dpo", commit("Org/SFT", 0xABCDEF << 136), STAGES[2])
    found = lineage([steps[0], later])
    assert len(found.chains) == 2
    assert not found.is_one
    assert "begins at commit abcdef0 of Org/SFT" in found.notes[0]
    assert "the files differ" in found.notes[0]


def test_equal_files_are_one_stage_under_any_name(step, steps):
    """A copy of sft in a folder has its fingerprint, and the next step follows."""
    copy = {"repo": "/here/copy", "commit": None, "fingerprint": STAGES[1]["fingerprint"]}
    found = lineage([steps[0], step("copy..dpo", copy, STAGES[2])])
    assert len(found.chains) == 1
    assert len(found.chains[0].steps) == 2


def test_contents_decide_over_fingerprints(step, steps):
    """A copy of sft with another fingerprint is sft; other weights under its fingerprint are not,
    and a report that tells no content goes by the fingerprint.
    """
    sft = {"repo": "/a/sft", "commit": None, "fingerprint": f"{2:064x}", "content": f"{7:064x}"}
    copy = {**sft, "repo": "/b/sft", "fingerprint": f"{8:064x}"}
    changed = {**sft, "repo": "/c/sft", "content": f"{9:064x}"}
    older = {**sft, "content": None}
    first = step("base..sft", STAGES[0], sft)

    def stages(start):
        found = lineage([first, step("sft..x", start, STAGES[2])])
        return [chain.stages for chain in found.chains]

    assert stages(copy) == stages(older) == [["base", "sft", "x"]]
    assert len(stages(changed)) == 2
    assert numbered([sft, copy, changed, older, STAGES[0]]) == [0, 0, 1, 2, 3]
    assert numbered([sft, older, copy]) == [0, 0, 0]
    assert numbered([changed, older]) == [0, 0]


def test_what_has_no_order_is_told(step, steps):
    """A circle, a second report of a pair, a step to the same files, a stage of two origins."""
    circle = step("dpo..base", STAGES[2], STAGES[0])
    found = lineage([*steps[:2], circle])
    assert "lead to each other" in found.notes[0]
    assert sorted(len(chain.steps) for chain in found.chains) == [1, 1, 1]
    twice = step("again/base..sft", *STAGES[:2])
    assert "is of the same two checkpoints" in lineage([steps[0], twice]).notes[0]
    same = step("base..base", STAGES[0], STAGES[0])
    assert lineage([same]).chains == []
    merge = step("coder..dpo", commit("org/coder", 9), STAGES[2])
    found = lineage([*steps[:2], merge])
    assert "dpo is the tuned side of steps from sft and coder" in found.notes[0]
    assert [chain.stages for chain in found.chains] == [["base", "sft", "dpo"], ["coder", "dpo"]]


def test_a_thicket_of_reports_has_an_end(step):
    """Twelve layers of two stages, all joined, have 4,096 ways: the first are told, and how many
    more than are.
    """
    random = Random(0)
    found = []
    for layer in range(12):
        for first in (0, 1):
            for second in (0, 1):
                sides = [
                    commit(f"org/{layer + place}-{own}", 10 * (layer + place) + own + 1)
                    for place, own in ((0, first), (1, second))
                ]
                found.append(step(f"{layer}/{first}..{second}", *sides))
    random.shuffle(found)
    told = lineage(found)
    assert len(told.chains) == MOST_CHAINS
    assert any(f"more than {MOST_CHAINS} chains" in note for note in told.notes)


def test_names_that_two_stages_share_are_those_of_repositories(step):
    """One family's `instruct` is the base of another, which calls its own end `instruct` too."""
    one = step("a/base..instruct", commit("org/base-7b", 1), commit("org/chat-7b", 2))
    two = step("b/base..instruct", commit("org/chat-7b", 2), commit("org/r1-7b", 3))
    assert lineage([one, two]).chains[0].stages == ["base", "chat-7b", "r1-7b"]


def test_siblings_are_no_step(tmp_path):
    """Of two models of one base neither came from the other."""
    settings = {"method": {"precision": "default"}, "chosen": {}, "relation": "sibling"}
    folder = write(tmp_path / "sft..coder", [delta(0.3, place(0, "mlp.up"))], settings=settings)
    assert read_step(SummarisedReport(folder)) is None


# -------------------------------------------------------------------------------- a planted chain


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The stages of a planted chain, and a folder with the reports of a family of them."""
    top = tmp_path_factory.mktemp("planted")
    stages = chains.plant(top)
    chains.registry(top / "registry", stages, ("base..sft", "sft..dpo", "dpo..rl", "base..rl"))
    shadow("audit", "toy", "--registry", "registry", "-o", "reports", cwd=top).assert_done()
    return top, stages


@pytest.fixture(scope="module")
def told(planted):
    done = shadow("lineage", "toy", "--registry", "registry", "--format", "json", cwd=planted[0])
    return json.loads(done.assert_done())


def whole(weights: chains.Weights) -> np.ndarray:
    return np.concatenate([weight.numpy().reshape(-1) for weight in weights.values()])


@pytest.mark.slow
def test_a_planted_chain_is_told_in_order_with_its_sizes(planted, told):
    """Sizes .05, .001 and .01 (of the attention), the second unrounded although the file kept half
    of it.
    """
    (chain,) = told["chains"]
    assert chain["stages"] == ["base", "sft", "dpo", "rl"]
    assert [one["pair"] for one in chain["whole"]] == ["base..rl"]
    sizes = [one["relative_norm_unrounded"] for one in chain["steps"]]
    for found, planned, rel in zip(sizes, (0.05, 0.001, 0.01), (0.02, 0.05, 0.02), strict=True):
        assert found == pytest.approx(planned, rel=rel)
    kept = [one["kept"] for one in chain["steps"]]
    assert kept[0] > 0.98
    assert 0.3 < kept[1] < 0.5
    assert kept[2] > 0.95
    assert chain["steps"][1]["zero_share"] > 0.7
    assert chain["steps"][1]["ratio_of"] == "unrounded"
    assert chain["steps"][1]["ratio"] == pytest.approx(0.001 / 0.05, rel=0.05)
    groups = [
        {one["name"]: one["energy_share"] for one in step["groups"]} for step in chain["steps"]
    ]
    assert groups[2] == {"attention": pytest.approx(1.0)}
    assert set(groups[0]) == {"attention", "MLP", "embedding"}
    assert chain["steps"][0]["quarters"] == [pytest.approx(0.25, abs=0.02)] * 4
    assert not told["notes"]


def test_planted_deltas_are_held_against_each_other(planted, told):
    """Cosines over all entries as NumPy has them: sft and dpo unrelated; and shares inside, matrix
    by matrix.
    """
    _, stages = planted
    steps = told["chains"][0]["steps"]
    names = list(stages)
    for (first, middle, last), one in zip(
        zip(names, names[1:], names[2:], strict=False), steps[1:], strict=True
    ):
        a, b, c = (whole(stages[name]) for name in (first, middle, last))
        found = one["joint"]
        assert found["cosine"] == pytest.approx(cosine(b - a, c - b), abs=1e-9)
        inside = total = 0.0
        for name in chains.SHAPES:
            old, new = ((stages[end][name] - stages[start][name]).numpy() for start, end in
                        ((first, middle), (middle, last)))  # fmt: skip
            left = np.linalg.svd(old)[0][:, :16]
            inside, total = inside + ((left.T @ new) ** 2).sum(), total + (new**2).sum()
        assert found["inside_left"] == pytest.approx(inside / total, rel=1e-4)
        assert (found["matrices"], found["left_out"]) == (17, 0)
    assert abs(steps[1]["joint"]["cosine"]) < 5 * steps[1]["joint"]["chance_cosine"]
    assert steps[0]["joint"] is None
    assert steps[0]["no_joint"] == "the first step"


def test_a_line_through_planted_stages_is_a_regression_of_every_entry(planted, told):
    """R² over all entries of the stored stages, and of their steps in random places, by NumPy;
    whatever the number of workers.
    """
    top, stages = planted
    walked = np.array([whole(stage) for stage in stages.values()])
    moves = np.diff(walked, axis=0)
    shuffled = np.array([np.random.default_rng(0).permutation(move) for move in moves])
    found = told["chains"][0]["linearity"]
    assert found["r2"] == pytest.approx(explained(walked), rel=1e-9)
    start = 0 * walked[:1]
    by_chance = explained(np.concatenate([start, shuffled.cumsum(axis=0)]))
    assert found["r2_by_chance"] == pytest.approx(by_chance, abs=0.01)
    assert (found["stages"], found["matrices"], found["left_out"]) == (4, 17, 0)
    words = ("lineage", "toy", "--registry", "registry")
    for jobs in ("1", "3"):
        again = json.loads(shadow(*words, "--json", "--jobs", jobs, cwd=top).assert_done())
        assert again["chains"][0]["linearity"] == found
    page = " ".join(shadow(*words, cwd=top).assert_done().split())
    assert (
        f"base..rl: R² of a straight line through the 4 stages, at even steps, is"
        f" {found['r2']:.2f}; of a walk with steps of these sizes, {found['r2_by_chance']:.2f}"
    ) in page


def test_a_matrix_that_some_stages_lack_is_left_out_of_the_line(planted, tmp_path):
    """Without the matrix that the middle lacks; a chain of two stages has no line."""
    _, stages = planted
    lacking = "model.layers.1.mlp.up_proj.weight"
    names = ("base", "sft", "dpo")
    for name in names:
        kept = {key: one for key, one in stages[name].items() if name != "sft" or key != lacking}
        chains.save(tmp_path / name, kept, torch.bfloat16)
    for base, tuned in pairwise(names):
        shadow("audit", f"./{base}", f"./{tuned}", "--norms", "-o", "r", cwd=tmp_path).assert_done()
    (chain,) = json.loads(shadow("lineage", "r", "--json", cwd=tmp_path).assert_done())["chains"]
    rest = [{key: one for key, one in stages[name].items() if key != lacking} for name in names]
    found = chain["linearity"]
    assert found["r2"] == pytest.approx(explained(np.array([whole(one) for one in rest])))
    assert (found["stages"], found["matrices"]) == (3, 16)
    told = shadow("lineage", "r/dpo", "--json", cwd=tmp_path).assert_done()
    (chain,) = json.loads(told)["chains"]
    assert (chain["linearity"], chain["no_linearity"]) == (None, "fewer than three stages")


def test_a_step_along_the_one_before_shows(planted, tmp_path):
    """rl takes half its energy from what dpo did: 1/sqrt(2) in the attention, shrunk by storage
    within its bounds.
    """
    top, _ = planted
    for base, tuned in (("sft", "dpo"), ("dpo", "rl")):
        sides = ("--base", top / base, "--tuned", top / tuned)
        words = ("audit", *sides, "--module", "attn.*", "-o", "reports")
        shadow(*words, cwd=tmp_path).assert_done()
    done = shadow("lineage", "reports", "--format", "json", cwd=tmp_path)
    (chain,) = json.loads(done.out)["chains"]
    assert chain["stages"] == ["sft", "dpo", "rl"]
    first, second = chain["steps"]
    found = second["joint"]
    least = math.sqrt(first["kept"] * second["kept"] / 2)
    assert least - 0.02 < found["cosine"] < 1 / math.sqrt(2) + 0.02
    assert found["matrices"] == 8
    assert found["inside_left"] > 1.2 * found["chance_inside_left"]


def test_an_adapter_is_a_last_step(planted, tmp_path):
    """LoRA on the query projections of sft: its cosine with what sft did there, from the product of
    its factors.
    """
    top, stages = planted
    adapter, generator = tmp_path / "adapter", torch.Generator().manual_seed(7)
    adapter.mkdir()
    factors, products = {}, []
    for layer in range(chains.LAYERS):
        left, right = (
            torch.randn(size, generator=generator)
            for size in ((chains.WIDTH, 2), (2, chains.WIDTH))
        )
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        factors |= {f"{name}.lora_A.weight": right, f"{name}.lora_B.weight": left}
        products.append(2 * (left.double() @ right.double()).reshape(-1))
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    sides = ("--base", top / "sft", "--tuned", adapter)
    shadow("audit", *sides, "-o", "reports", cwd=tmp_path).assert_done()
    before = top / "reports" / "toy" / "base..sft"
    done = shadow("lineage", before, "reports", "--format", "json", cwd=tmp_path)
    found = json.loads(done.out)["chains"][0]["steps"][1]
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(chains.LAYERS)]
    old = whole({name: stages["sft"][name] - stages["base"][name] for name in names})
    new = torch.cat(products).numpy()
    assert found["joint"]["cosine"] == pytest.approx(cosine(old, new), abs=1e-6)
    assert (found["joint"]["matrices"], found["joint"]["left_out"]) == (chains.LAYERS, 13)
    line = json.loads(done.out)["chains"][0]["linearity"]
    walked = np.cumsum([0 * old, old, new], axis=0)
    assert line["r2"] == pytest.approx(explained(walked), rel=1e-6)
    assert (line["matrices"], line["left_out"]) == (chains.LAYERS, 13)
    assert found["relative_norm_unrounded"] == pytest.approx(found["relative_norm"])
    assert found["kept"] == pytest.approx(1.0)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(planted, width):
    """Every line fits, the four reports are in it, and no cell is cut."""
    done = shadow("lineage", "toy", "--registry", "registry", cwd=planted[0], width=width)
    assert done.code == 0
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= width
    table = [line for line in lines if ".." in line and " ± " not in line and ":" not in line]
    assert [line.split()[0] for line in table] == ["base..sft", "sft..dpo", "dpo..rl", "base..rl"]
    assert "…" not in done.out
    assert ("unchanged" in done.out) == (width == 120)


def test_checkpoints_that_are_gone_or_changed_leave_the_joint_figures_out(planted, tmp_path):
    """Order and sizes come from the reports alone; the reason stands where the cosine would."""
    _, stages = planted
    work = tmp_path
    for name in ("base", "sft", "dpo"):
        chains.save(work / name, stages[name], torch.bfloat16)
    for base, tuned in (("base", "sft"), ("sft", "dpo")):
        sides = ("--base", f"./{base}", "--tuned", f"./{tuned}", "--module", "attn.q")
        shadow("audit", *sides, "-o", "r", cwd=work).assert_done()

    def chain(*options: str) -> dict[str, object]:
        done = shadow("lineage", "r", "--format", "json", *options, cwd=work)
        (found,) = json.loads(done.assert_done())["chains"]
        return found

    def second(*options: str) -> dict[str, object]:
        return chain(*options)["steps"][1]

    def line(*options: str) -> tuple[object, object]:
        found = chain(*options)
        return found["linearity"], found["no_linearity"]

    assert second()["joint"] is not None
    assert line()[0]["matrices"] == chains.LAYERS
    assert second("--no-joint")["no_joint"] == "left out by --no-joint"
    assert line("--no-joint") == (None, "left out by --no-joint")
    chains.save(work / "dpo", stages["rl"], torch.bfloat16)
    assert second()["no_joint"].endswith("dpo has changed since it was audited")
    assert line()[1] == second()["no_joint"]
    (work / "dpo" / "model.safetensors").unlink()
    assert second()["joint"] is None
    assert second()["ratio"] is not None


def test_a_family_tells_which_of_its_pairs_have_no_report(planted, tmp_path):
    """The declared pairs without a report are notes with the command that makes them."""
    top, _ = planted
    name = Path("reports", "toy", "base..sft")
    shutil.copytree(top / name, tmp_path / name)
    done = shadow("lineage", "toy", "--registry", top / "registry", "--json", cwd=tmp_path)
    notes = json.loads(done.out)["notes"]
    assert "no report of sft..dpo: shadow audit toy:sft..dpo" in notes
    assert len(notes) == 3


@pytest.mark.parametrize("to", [".", "file://"])
def test_a_family_that_no_registry_has_is_found_in_the_folder_of_output(planted, told, to):
    """As one of a list or of `--name`: the steps are those of the same reports; also at a URL."""
    top, _ = planted
    output = f"file://{top}/reports" if to == "file://" else "reports"
    done = shadow("lineage", "toy", "-o", output, "--no-joint", "--format", "json", cwd=top)
    (chain,) = json.loads(done.assert_done())["chains"]
    pairs = [step["pair"] for step in told["chains"][0]["steps"]]
    assert [step["pair"] for step in chain["steps"]] == pairs


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("toy",), 1, "no family and no folder 'toy'"),
        (("demo",), 1, "no finished report of demo below reports"),
        (("demo:base..narrow",), 1, "no family and no folder"),
        (("empty",), 1, "no finished report in it"),
        ((), 2, "missing argument"),
        (("ftp://bucket/x",), 2, "URLs of ftp:// are not supported"),
    ],
)
def test_what_cannot_be_told_is_one_line(tmp_path, arguments, code, message):
    """Exit 1 with a hint for what is not there, 2 for wrong usage; never a traceback."""
    (tmp_path / "empty").mkdir()
    done = shadow("lineage", *arguments, cwd=tmp_path)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert not done.out


def test_names_of_files_are_text(tmp_path):
    """Control characters and markup in names of reports come out visible."""
    nasty = "\x1b[31m[bold]x::error::"
    stages = [(nasty, 1), ("b", 2), (nasty, 3)]
    row = delta(0.3, place(0, "mlp.up"), frobenius_norm=0.1, parameters=1)
    for folder, ((start, first), (end, second)) in zip("ab", pairwise(stages), strict=True):
        base, tuned = commit(f"org/{start}", first), commit(f"org/{end}", second)
        write(tmp_path / "r" / folder, [row], base=base, tuned=tuned, pair=f"{start}..{end}")
    done = shadow("lineage", "r", cwd=tmp_path, width=120)
    assert done.code == 0, done.err
    assert "\x1b[31m" not in done.out
    assert "\\x1b[31m[bold]x" in done.out
    assert not any(line.lstrip().startswith("::") for line in done.out.splitlines())


def test_the_figure_has_the_steps_in_order(planted, tmp_path):
    """Twice the same bytes; a kind of more reports than others may show; an option of other kinds
    is refused.
    """
    folders = sorted((planted[0] / "reports" / "toy").iterdir())
    content, notes = draw("lineage", folders, "svg", Choice())
    assert content == draw("lineage", folders[::-1], "svg", Choice())[0]
    assert notes[0] == "steps base to sft to dpo to rl"
    write_figure("lineage", folders, tmp_path / "x.png")
    words = ("figure", planted[0] / "reports", "--kind", "lineage", "--layer", "1", "-o", "x.svg")
    assert shadow(*words, cwd=tmp_path).code == 2
    row, sides = delta(0.3, place(0, "mlp.up")), {"base": identity(1), "tuned": identity(1)}
    same = write(tmp_path / "same", [row], **sides)
    with pytest.raises(ShadowError, match="no step from one checkpoint to another"):
        draw("lineage", [same], "svg", Choice())


def test_the_page_has_a_section_where_reports_follow_one_another(planted, tmp_path):
    """The chain with its steps, which open their pairs; none where no step follows another."""
    top = planted[0] / "reports" / "toy"
    folders = sorted(top.iterdir())
    write_page(top, folders, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    section = page[page.index('<section id="lineage"') :]
    section = section[: section.index("</section>")]
    assert "base → sft → dpo → rl" in section
    pairs = ("base..sft", "sft..dpo", "dpo..rl", "base..rl")
    places = [section.index(f">{name}</a>") for name in pairs]
    assert places == sorted(places)
    apart = [folder for folder in folders if folder.name in ("base..sft", "base..rl")]
    write_page(top, apart, tmp_path / "apart.html")
    assert '<section id="lineage"' not in (tmp_path / "apart.html").read_text()


def test_a_step_next_to_an_unreadable_report_stands_alone(planted, tmp_path):
    """What follows it is known by its provenance, but a step is shown beside one that is read."""
    top = tmp_path / "toy"
    for name in ("base..sft", "sft..dpo"):
        shutil.copytree(planted[0] / "reports" / "toy" / name, top / name)
    (top / "sft..dpo" / "tensors.parquet").write_bytes(b"PAR1 nothing")
    (top / "sft..dpo" / "summary.json").write_bytes(b"{}")
    written = write_page(top, sorted(top.iterdir()), tmp_path / "page.html")
    assert (written.pairs, len(written.unreadable)) == (1, 1)
    assert '<section id="lineage"' not in (tmp_path / "page.html").read_text()


def test_shrinking_is_the_product_of_what_was_kept(planted):
    """sqrt(kept_1 kept_2), None where either is not known."""
    top = planted[0] / "reports" / "toy"
    first, second = (read_step(SummarisedReport(top / pair)) for pair in ("base..sft", "sft..dpo"))
    assert shrinking(second, first) == pytest.approx(math.sqrt(first.kept * second.kept))


# -------------------------------------------------------------------------------- trained chains


def test_a_step_that_changed_nothing_is_told_so(tmp_path):
    """A copy of a stage: a size of 0 and a note, instead of dashes and a chance of nothing."""
    demo = Path(__file__).parents[2] / "registry" / "demo"
    for name, source in (("base", "base"), ("one", "narrow"), ("two", "narrow")):
        shutil.copytree(demo / source, tmp_path / name, copy_function=shutil.copyfile)
    for one, two in (("base", "one"), ("one", "two")):
        given = ("audit", f"./{one}", f"./{two}", "--name", f"copy:{one}..{two}", "--norms")
        shadow(*given, cwd=tmp_path).assert_done()
    text = shadow("lineage", "copy", cwd=tmp_path).assert_done()
    (row,) = (line.split() for line in text.splitlines() if line.startswith(" one..two"))
    assert row[1:3] == ["0", "%"]
    assert "\none..two: nothing changed\n" in text
    assert "± -" not in text
