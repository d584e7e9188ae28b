"""A base in F16 whose adapter was merged and saved in BF16: every tensor is rounded, and a few also
changed. Figures are those of the few.
"""

import json
import math
import re
import statistics

import planted
import pytest
import reports
import torch
from finding_cases import ROUNDED, model, row, summary_of, vectors
from measuring import frame, planted_pair
from reports import delta, place

from shadow.checkpoints.pairing import Filter
from shadow.comparing.matching import ComparedReport
from shadow.engines.pair import run_pair
from shadow.gates.measured import read_measured
from shadow.gates.rules import parse_rule
from shadow.gates.verdicts import judge
from shadow.reports.report import Report
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.telling.reading import read_summary

LAYERS, WIDTH, RANK = 6, 64, 4
SIZE = 0.05  # of the adapter's change, over the norm of each matrix
ADAPTED = re.compile(r"layers\.[24]\..*(q|v)_proj")


def sides():
    """The two sides: of the tuned one, q and v of layers 2 and 4 have a product of rank 4 more."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    base = planted.gaussian(0, layers=LAYERS, width=WIDTH)
    base |= {f"model.layers.{at}.input_layernorm.weight": torch.ones(WIDTH) for at in range(LAYERS)}
    base = {name: (one * (1 + 1e-3 * noise(*one.shape))).half() for name, one in base.items()}
    tuned = {}
    for name, weight in base.items():
        merged = weight.float()
        if ADAPTED.search(name):
            update = noise(weight.shape[0], RANK) @ noise(RANK, weight.shape[1])
            merged += update * (SIZE * merged.norm() / update.norm())
        tuned[name] = merged.bfloat16()
    return base, tuned


@pytest.fixture(scope="module")
def pair():
    return sides()


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    where = tmp_path_factory.mktemp("rounded")
    done = run_pair(planted_pair(where, *pair), Settings(Method(), Filter()), where / "out")
    return done.folder


def changed_names(base, tuned):
    """The matrices that are not the base's rounded to BF16, by their entries."""
    return [
        name
        for name, one in base.items()
        if one.ndim == 2 and not torch.equal(one.bfloat16(), tuned[name])
    ]


def test_figures_are_those_of_what_changed_beyond_rounding(pair, folder):
    """By the names of tensors that are not round(base), and norms of the checkpoints themselves."""
    base, tuned = pair
    names = changed_names(base, tuned)
    assert [name for name in base if ADAPTED.search(name)] == names
    summary, _ = read_summary(folder)
    figures = summary.figures
    rows = frame(folder, subject="delta")
    rows = rows[rows["tensor"].isin(names)]
    matrices = [name for name, one in base.items() if one.ndim == 2]
    assert (figures.matrices, figures.matrices_rounded) == (len(names), len(matrices) - len(names))
    assert figures.parameters_rounded == sum(
        base[name].numel() for name in matrices if name not in names
    )
    for column in ("concentration", "relative_norm", "floor_ratio", "participation_ratio"):
        assert figures[column] == pytest.approx(statistics.median(rows[column]))
    assert figures.concentration > 0.3
    change = math.hypot(*(float((tuned[at].double() - base[at].double()).norm()) for at in names))
    whole = change / math.hypot(*(float(base[at].double().norm()) for at in names))
    assert figures.relative_norm_overall == pytest.approx(whole, rel=1e-6)
    assert {row.module: row.matrices for row in summary.modules} == {"attn.q": 2, "attn.v": 2}
    assert [(row.matrices, row.matrices_rounded) for row in summary.depth] == [
        (2, 5) if layer in (2, 4) else (0, 7) for layer in range(LAYERS)
    ]
    assert sum(row.energy_share for row in summary.depth) == pytest.approx(1.0)


def test_the_picture_has_what_is_only_rounded_too(folder):
    """It says how far each moved, in entries: rounding is not shown as unchanged."""
    summary, _ = read_summary(folder)
    cells = {row.module: row.relative_norm for row in summary.grid}
    assert all(0 < norm < 0.01 for norm in cells["mlp.up"])
    assert [norm > 0.04 for norm in cells["attn.q"]] == [
        False, False, True, False, True, False,
    ]  # fmt: skip


def test_what_is_only_rounded_is_said_apart(folder):
    """The headline has the change, its rank and place; nothing is called unchanged."""
    summary, _ = read_summary(folder)
    assert summary.finding.headline == (
        "Changed by 5.0 %, of rank 4 or less, all of it in attn.q and attn.v; 39 matrices only"
        " rounded."
    )
    codes = [sentence.code for sentence in summary.finding.sentences]
    assert codes[:3] == ["mostly_copy", "size", "low_rank"]
    assert "Unchanged" not in summary.finding.text
    assert "only matrices of layers 2 and 4 changed by more than rounding" in summary.finding.text
    gates = {gate.name: gate for gate in summary.gates}
    assert gates["rounding"].passed
    assert gates["changed"].reason == "4 matrices changed, and 39 more matrices are only rounded"
    assert not gates["rank"].passed
    assert gates["rank"].figure == RANK / WIDTH
    assert gates["lineage"].figure > 0.99


@pytest.mark.parametrize(("rule", "outcome", "value"), [
    ("concentration > 0.3", "met", None), ("language.attn.q.concentration > 0.3", "met", None),
    ("language.mlp.up.relative_norm > 0.001", "passed", 0.0),
    ("language.mlp.up.concentration < 0.3", "missing", None),
    ("not gate.rank", "met", "does not hold"), ("language.mlp.up changed", "met", "changed"),
])  # fmt: skip
def test_rules_are_judged_of_what_changed_beyond_rounding(folder, rule, outcome, value):
    """The norm of what is only rounded is 0, and it has no other figure; its entries changed."""
    (found,) = judge([parse_rule(rule)], read_measured(folder))
    assert found.outcome == outcome, found.detail
    if value is not None:
        assert found.findings[0].value == value


def test_the_error_of_what_is_only_rounded_leaves_no_rule_open(tmp_path):
    """A median rests on the rest alone, and so does its error: the largest of these."""
    sketch = {"precision": "sketch", "concentration": 0.4}
    rows = model(cast="tuned", **ROUNDED, **sketch, concentration_error=0.3)
    rows.append(row(4, "mlp.up", **sketch, concentration_error=0.01))
    method = {"precision": "sketch", "nulls": 0, "seed": 0}
    settings = {"method": method, "chosen": {}, "relation": "tuned"}
    folder = reports.write(tmp_path / "a", rows, settings=settings)
    for limit, outcome in ((0.395, "missing"), (0.38, "met"), (0.42, "passed")):
        (found,) = judge([parse_rule(f"concentration > {limit}")], read_measured(folder))
        assert (limit, found.outcome) == (limit, outcome), found.detail


# biases, one of which changed by more than rounding
MOVED = tuple(
    {**one, "cast": "neither" if one["relative_norm"] else None} for one in vectors([0.1])
)
COPIES = model(cast="tuned", **ROUNDED)


@pytest.mark.parametrize(("rows", "more", "rounded"), [
    (COPIES, {}, 0),  # all is
    (COPIES, {"extra_tensors": MOVED}, 0),  # all matrices are
    (model(), {}, 0),  # nothing is
    ([*COPIES, row(4, "mlp.up")], {}, 12),
    ([*model(cast="base", **ROUNDED), row(4, "mlp.up")], {}, 12),
    ([*COPIES, *[row(layer, "mlp.up") for layer in range(4, 20)]], {}, 12),  # fewer than others
    ([*COPIES, row(4, "mlp.up"), row(4, "attn.q", cast=None)], {}, 0),  # of one it is unknown
])  # fmt: skip
def test_nothing_is_left_out_unless_the_rest_is_known_to_change_more(tmp_path, rows, more, rounded):
    """Where all or none are only rounded, or where that is unknown, figures are those of all."""
    found = summary_of(tmp_path, rows, **more)
    assert (found.figures.matrices_rounded, found.figures.matrices) == (
        rounded,
        len(rows) - rounded,
    )
    assert (f"; {rounded} matrices only rounded." in found.finding.headline) == bool(rounded)


def test_a_minority_that_is_only_rounded_is_said_in_the_size(tmp_path):
    """No recognised change says it then."""
    rows = [*COPIES, *[row(layer, "mlp.up") for layer in range(4, 20)]]
    (size,) = [one for one in summary_of(tmp_path, rows).finding.sentences if one.code == "size"]
    assert "12 more matrices are only rounded." in size.text
    assert size.figures["figures.matrices_rounded"] == 12


def test_recognised_changes_are_those_of_what_changed_beyond_rounding(tmp_path):
    """Of 4 matrices all are masked; 12 others are only rounded, and do not outvote them."""
    rows = [*COPIES, *[row(4 + at, "mlp.up", zero_share_excess=0.5) for at in range(4)]]
    found = summary_of(tmp_path, rows)
    assert (found.recognised.masked.matrices, found.recognised.masked.of) == (4, 4)
    codes = [sentence.code for sentence in found.finding.sentences]
    assert codes[:2] == ["mostly_copy", "masked"]


def test_energy_of_rounding_is_no_part_of_the_change(tmp_path):
    """9 tenths of all energy is rounding; a figure of all that changed by more is judged."""
    rounded = [row(layer, "mlp.up", cast="tuned", frobenius_norm=3.0) for layer in range(4)]
    rows = [*rounded, *[row(layer, "attn.q", frobenius_norm=1.0) for layer in range(4)]]
    folder = reports.write(tmp_path / "base..tuned", rows)
    (found,) = judge([parse_rule("concentration > 0.2")], read_measured(folder))
    assert (found.outcome, found.findings[0].energy_share) == ("met", 1.0)


def test_json_has_the_same(folder):
    """What is stored is what is read."""
    stored = json.loads((folder / "summary.json").read_text())["figures"]
    assert (stored["matrices_rounded"], stored["matrices"]) == (39, 4)


def test_a_report_of_rows_without_a_tensor_leaves_nothing_out(tmp_path):
    """A forged table may name a matrix that no tensor has."""
    rows = [delta(0.3, place(layer, "mlp.up"), cast="tuned") for layer in range(3)]
    folder = reports.write(tmp_path / "base..tuned", [*rows, delta(0.3, place(3, "mlp.up"))])
    assert read_summary(folder)[0].figures.matrices_rounded == 3


def test_a_head_that_was_dropped_and_tied_is_no_copy(pair, tmp_path):
    """Its row of the tuned side is that of the embedding, which is only rounded. By the two
    tensors, of which one is no rounding of the other.
    """
    base, _ = pair
    tuned = {name: one.bfloat16() for name, one in base.items()}
    head = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1)).half()
    sides = planted_pair(
        tmp_path, base | {"lm_head.weight": head}, tuned, {"tie_word_embeddings": True}
    )
    done = run_pair(sides, Settings(Method(), Filter()), tmp_path / "out")
    embedding = tuned["model.embed_tokens.weight"].float()
    moved = float((embedding - head.float()).norm() / head.float().norm())
    summary, _ = read_summary(done.folder)
    (module,) = summary.modules
    assert (module.module, module.relative_norm) == ("head", pytest.approx(moved, rel=1e-5))
    assert summary.figures.matrices_rounded == LAYERS * 7 + 1
    assert summary.recognised.casts.beside == 1
    assert "all of it in the head" in summary.finding.headline
    assert list(ComparedReport("one", Report(done.folder)).deltas["module"]) == ["head"]
    now = read_measured(done.folder)
    assert judge([parse_rule(f"relative_norm_overall > {moved / 2}")], now)[0].outcome == "met"
