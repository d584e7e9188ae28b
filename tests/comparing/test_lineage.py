"""Lineages: the order of stages from provenance, and what each step changed."""

import json
import os
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import planted
import pytest
from command import run_shadow
from reports import delta, place, places, rewrite, write

from shadow.comparing.codes import StepDoubt
from shadow.comparing.lineage import MOST_CHAINS, Step, lineage, numbered
from shadow.outputs.markdown import markdown
from shadow.reports.folders import finished_metadata
from shadow.reports.provenance import CheckpointMetadata
from shadow.telling.comparisons import lineage_document
from shadow.telling.reading import AuditReport, read_step


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
    return read_step(AuditReport(write(tmp_path_factory.mktemp("template") / "a..b", rows)))


@pytest.fixture
def step(template):
    """What makes a step from one checkpoint to another, of the folder of its report."""

    def make(
        folder: str,
        base: CheckpointMetadata,
        tuned: CheckpointMetadata,
        norm: float = 0.05,
        **recorded: object,
    ) -> Step:
        start, _, end = folder.rpartition("/")[2].partition("..")
        names = {"folder": folder, "pair": f"{start}..{end}", "start": start, "end": end}
        return replace(template, **names, base=base, tuned=tuned, norm=norm, **recorded)

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
    """Every order of reports gives base, sft, dpo, rl with ratios of norms, then the long step."""
    for order in permutations(steps):
        found = lineage(order)
        assert [chain.stages for chain in found.chains] == [["base", "sft", "dpo", "rl"]]
        assert [one.pair for one in found.chains[0].whole] == ["base..dpo"]
        ratios = [one.ratio for one in found.chains[0].steps]
        assert ratios == [None, pytest.approx(0.25), pytest.approx(2.0)]
        assert not found.notes


def test_contents_decide_over_fingerprints(step):
    """A copy of sft with another fingerprint is sft."""
    sft = {"repo": "/a/sft", "commit": None, "fingerprint": f"{2:064x}", "content": f"{7:064x}"}
    copy = {**sft, "repo": "/b/sft", "fingerprint": f"{8:064x}"}
    changed = {**sft, "repo": "/c/sft", "content": f"{9:064x}"}
    older = {**sft, "content": None}

    def stages(start, sft=sft):
        found = lineage([step("base..sft", STAGES[0], sft), step("sft..x", start, STAGES[2])])
        return [chain.stages for chain in found.chains]

    assert stages(copy) == stages(older) == [["base", "sft", "x"]]
    assert len(stages(changed)) == 2
    unknown = {"repo": "/here/copy", "commit": None, "fingerprint": STAGES[1]["fingerprint"]}
    assert len(stages(unknown, STAGES[1])) == 1
    assert numbered([sft, copy, changed, older, STAGES[0]]) == [0, 0, 1, 2, 3]
    assert numbered([sft, older, copy]) == [0, 0, 0]
    assert numbered([changed, older]) == [0, 0]


def test_what_has_no_order_is_told(step, steps):
    """A circle, a second report of a pair, a step to the same files; a stage of two origins."""
    circle = step("dpo..base", STAGES[2], STAGES[0])
    found = lineage([*steps[:2], circle])
    assert (len(found.notes), found.chains) == (3, [])
    assert {remark.code for remark in found.remarks} == {"circular"}
    twice = step("again/base..sft", *STAGES[:2])
    assert len(lineage([steps[0], twice]).notes) == 1
    same = step("base..base", STAGES[0], STAGES[0])
    assert lineage([same]).chains == []
    merge = step("coder..dpo", commit("org/coder", 9), STAGES[2])
    found = lineage([*steps[:2], merge])
    assert [chain.stages for chain in found.chains] == [["base", "sft", "dpo"], ["coder", "dpo"]]
    many = [step(f"base..m{n}", STAGES[0], commit("org/m", 9 + n)) for n in range(MOST_CHAINS + 1)]
    found = lineage(many)
    assert (len(found.chains), len(found.notes)) == (MOST_CHAINS, 1)


SIZES = {"norm": 0.08, "relative_norm": 0.2, "relative_norm_unrounded": 0.1, "chosen": None}
NEXT = {"norm": 0.02, "relative_norm": 0.5, "relative_norm_unrounded": 0.4}
UNKNOWN = {"relative_norm_unrounded": None}


@pytest.mark.parametrize(("before", "after", "ratio", "of"), [
    ({}, {}, 0.4, "unrounded"), ({}, UNKNOWN, 0.25, "stored"), (UNKNOWN, {}, 0.25, "stored"),
    ({"relative_norm_unrounded": 0.0}, {}, 0.25, "stored"),
    ({}, {"relative_norm_unrounded": 0.0}, 0.0, "unrounded"), ({"norm": 0.0}, {}, None, None),
    ({}, {"norm": None}, None, None), ({}, {"chosen": {"layers": [1]}}, None, None),
])  # fmt: skip
def test_a_step_has_its_ratio_to_the_one_before(step, before, after, ratio, of):
    """Of norms before storage, 0.04 and 0.016, where both are known; of audits of the same part."""
    first = step("base..sft", *STAGES[:2], **SIZES | before)
    second = step("sft..dpo", *STAGES[1:3], **SIZES | NEXT | after)
    (chain,) = lineage([first, second]).chains
    start, found = chain.steps
    assert (start.ratio, start.ratio_of) == (None, None)
    assert (found.ratio, found.ratio_of) == (ratio and pytest.approx(ratio), of)
    assert (found.size == 0.5) is (after == UNKNOWN)


def test_two_stages_of_one_name_are_told_by_their_repositories(step):
    found = lineage([step("a..b", *STAGES[:2]), step("b..a", *STAGES[1:3])])
    assert found.chains[0].stages == ["base", "b", "dpo"]


def test_siblings_are_no_step(tmp_path):
    """Of two models of one base neither came from the other."""
    settings = {"method": {"level": "full"}, "chosen": {}, "relation": "sibling"}
    folder = write(tmp_path / "sft..coder", [delta(0.3, place(0, "mlp.up"))], settings=settings)
    assert read_step(AuditReport(folder)) is None


def note_on(folder, rows):
    """The doubt about the only step, and the text of the lineage."""
    step = read_step(AuditReport(write(folder / "a..b", rows)))
    return step.doubt, markdown(lineage_document(lineage([step])))


def test_matrices_that_are_rotated_are_not_called_unrelated(tmp_path):
    """A quarter of the matrices have the base's singular values and are far from it."""
    same = {"sigma_scale": 1.0, "sigma_scale_iqr": 0.0}
    rows = [
        delta(0.3, where, cosine=0.02, **same) if where["layer"] == 0 else delta(0.3, where)
        for where in places(4)
    ]
    doubt, text = note_on(tmp_path, rows)
    assert doubt is StepDoubt.STEP_REARRANGED
    assert "little in common" not in text
    assert "a..b: matrices are rotated" in text


def test_sides_with_little_in_common_are_called_so(tmp_path):
    doubt, text = note_on(tmp_path, [delta(0.3, where, cosine=0.1) for where in places(4)])
    assert doubt is StepDoubt.STEP_UNRELATED
    assert "a..b: base and tuned have little in common" in text


def test_nothing_is_said_of_sides_whose_layers_were_not_compared(tmp_path):
    """Of an embedding alone no cosine is judged."""
    doubt, text = note_on(tmp_path, [delta(0.3, place(None, "embed"))])
    assert doubt is None
    assert "in common" not in text


# -------------------------------------------------------------------------------- a planted chain


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The stages of a planted chain, and a folder with the reports of a family of them."""
    top = tmp_path_factory.mktemp("chain")
    known = planted.plant_stages(top)
    planted.registry(top / "registry", known, ("base..sft", "sft..dpo", "dpo..rl", "base..rl"))
    shadow("audit", "toy", "--registry", "registry", "-o", "reports", cwd=top).assert_done()
    return top, known


@pytest.fixture(scope="module")
def recorded(stages):
    done = shadow("lineage", "toy", "--registry", "registry", "--format", "json", cwd=stages[0])
    return json.loads(done.assert_done())


@pytest.mark.slow
def test_a_planted_chain_is_told_in_order_with_its_sizes(recorded):
    """Sizes .05, .001, .01 (of the attention); the second unrounded though half was lost."""
    (chain,) = recorded["chains"]
    assert chain["stages"] == ["base", "sft", "dpo", "rl"]
    assert [one["pair"] for one in chain["whole"]] == ["base..rl"]
    sizes = [one["relative_norm_unrounded"] for one in chain["steps"]]
    for found, planned, rel in zip(sizes, (0.05, 0.001, 0.01), (0.02, 0.05, 0.02), strict=True):
        assert found == pytest.approx(planned, rel=rel)
    kept = [one["kept"] for one in chain["steps"]]
    assert kept[0] > 0.98
    assert 0.3 < kept[1] < 0.5
    assert kept[2] > 0.95
    assert chain["steps"][1]["ratio_of"] == "unrounded"
    assert chain["steps"][1]["ratio"] == pytest.approx(0.001 / 0.05, rel=0.05)
    groups = [
        {one["name"]: one["energy_share"] for one in step["groups"]} for step in chain["steps"]
    ]
    assert groups[2] == {"attention": pytest.approx(1.0)}
    assert set(groups[0]) == {"attention", "MLP", "embedding"}
    assert not recorded["notes"]


@pytest.mark.parametrize("to", [".", "file://"])
def test_a_family_that_no_registry_has_is_found_in_the_output(stages, recorded, to, inside):
    """As one of a list or of `--name`: the steps are those of the same reports; also at a URL."""
    top, _ = stages
    output = f"file://{top}/reports" if to == "file://" else "reports"
    done = inside("lineage", "toy", "-o", output, "--format", "json", cwd=top)
    (chain,) = json.loads(done.assert_done())["chains"]
    pairs = [step["pair"] for step in recorded["chains"][0]["steps"]]
    assert [step["pair"] for step in chain["steps"]] == pairs


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("toy",), 1), (("demo",), 1), (("demo:base..narrow",), 1), (("empty",), 1), ((), 2)],
)
def test_what_cannot_be_told_is_one_line(tmp_path, inside, arguments, code):
    """Exit 1 with a hint for what is not there, 2 for wrong usage; never a traceback."""
    (tmp_path / "empty").mkdir()
    refused = inside("lineage", *arguments, cwd=tmp_path).assert_refused(code)
    assert not arguments or arguments[0].partition(":")[0] in refused


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


@pytest.mark.parametrize("key", ["fingerprint", "commit", "content"])
@pytest.mark.parametrize("value", [[], {}, 0])
def test_a_forged_identity_is_one_line(tmp_path, inside, key, value):
    """Of another type, an empty one too: `lineage` refuses the report like one that is none."""
    folder = write(tmp_path / "out" / "toy" / "a..b", [delta(0.3, place(0, "mlp.up"))])
    rewrite(folder, base=finished_metadata(folder)["base"] | {key: value})
    assert "not a report of shadow" in inside("lineage", "out").assert_refused()
