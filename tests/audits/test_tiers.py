"""What an audit measures where norms alone, or the deltas alone, are asked for."""

import json

import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import readme
import torch
from command import run_shadow
from measuring import StoppedError, contents, pair_of, planted_pair, stopped_after
from safetensors.torch import load_file

import shadow
from shadow.checkpoints.pairing import Filter
from shadow.engines.engine import InProcess
from shadow.engines.pair import Parts, run_pair
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.spectra import solvers
from shadow.spectra.measurement import Method

DEMO = readme.ROOT / "registry" / "demo"
BASE, TUNED = DEMO / "base", DEMO / "narrow"
NORMS = Settings(Method("norms"), Filter(), spectra=False)
DELTAS = Settings(Method(subjects="delta"), Filter())
ALL = Settings(Method(), Filter())
ESTIMATES = Settings(Method("sketch"), Filter())
OF_WEIGHTS = {  # columns of deltas that rest on a spectrum of base or tuned
    *("sigma_scale", "sigma_scale_iqr", "effective_rank_shift"),
    *("overlap_left", "overlap_right", "intruders"),
    *("alignment_left", "alignment_right", "alignment_left_null", "alignment_right_null"),
    *("subspace_gap_base", "subspace_gap_tuned"),
}


def audited(folder, settings, jobs=None, base=BASE, tuned=TUNED):
    return run_pair(pair_of(base, tuned), settings, folder, Runtime(jobs=jobs)).folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The reports of the demo by what was measured."""
    folder = tmp_path_factory.mktemp("tiers")
    return {
        name: audited(folder / name, settings)
        for name, settings in (("norms", NORMS), ("delta", DELTAS), ("all", ALL))
    }


def rows(folder, subject):
    table = pq.read_table(folder / "matrices.parquet").to_pylist()
    return [row for row in table if row["subject"] == subject]


def test_norms_are_those_of_numpy_and_nothing_else_is_told(reports):
    base, tuned = (load_file(side / "model.safetensors") for side in (BASE, TUNED))
    known = {"relative_norm", "cosine", "decay_cosine", "zero_share", "energy_share", "zeroed"}
    deltas = rows(reports["norms"], "delta")
    assert len(deltas) == 30
    for row in deltas:
        b, t = (side[row["tensor"]].double().numpy() for side in (base, tuned))
        norms = np.linalg.norm(b), np.linalg.norm(t), np.linalg.norm(t - b)
        assert row["frobenius_norm"] == pytest.approx(norms[2], rel=1e-6)
        assert row["relative_norm"] == pytest.approx(norms[2] / norms[0], rel=1e-6)
        assert 1 - row["cosine"] == pytest.approx(1 - (b * t).sum() / norms[0] / norms[1], rel=1e-4)
        assert row["zero_share"] == (b == t).mean()
        first = list(row).index("frobenius_norm") + 1
        assert {name for name, value in list(row.items())[first:] if value is not None} == known
        assert row["precision"] is None
    for subject in ("base", "tuned"):
        of_full = [row["frobenius_norm"] for row in rows(reports["all"], subject)]
        of_norms = [row["frobenius_norm"] for row in rows(reports["norms"], subject)]
        assert of_norms == pytest.approx(of_full, rel=1e-6)
    assert not (reports["norms"] / "spectra.parquet").exists()


def test_tensors_are_those_of_a_whole_audit_but_for_checksums(reports):
    here, whole = (pq.read_table(reports[name] / "tensors.parquet") for name in ("norms", "all"))
    exact = ["tensor", "side", "status", "reason", "compared", "cast"]
    assert here.select(exact).equals(whole.select(exact))
    norms = [table["relative_norm"].to_pylist() for table in (here, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_deltas_alone_are_those_of_a_whole_audit(reports):
    for here, whole in zip(
        *(rows(reports[name], "delta") for name in ("delta", "all")), strict=True
    ):
        differing = {name for name in whole if here[name] != whole[name]}
        assert differing <= OF_WEIGHTS
        assert all(here[name] is None for name in OF_WEIGHTS)
    assert all(row["effective_rank"] is None for row in rows(reports["delta"], "base"))
    spectra = pq.read_table(reports["delta"] / "spectra.parquet")
    assert set(spectra["subject"].to_pylist()) == {"delta"}


def test_deltas_alone_solve_no_spectrum_of_base_or_tuned(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a spectrum of a side was asked for")

    monkeypatch.setattr(solvers.Gram, "_of_weights", refuse)
    monkeypatch.setattr(solvers, "subspace_values", refuse)
    audited(tmp_path, DELTAS)


@pytest.mark.parametrize("settings", [NORMS, DELTAS], ids=["norms", "delta"])
def test_the_bytes_do_not_depend_on_workers(settings, tmp_path):
    made = [audited(tmp_path / str(jobs), settings, jobs) for jobs in (1, 3)]
    assert contents(made[0].parents[1]) == contents(made[1].parents[1])


def test_parts_give_the_bytes_of_a_whole_audit(reports, tmp_path):
    runtime = Runtime(elsewhere=Parts(InProcess(), 3).measure)
    folder = run_pair(pair_of(BASE, TUNED), NORMS, tmp_path / "parts", runtime).folder
    for name, apart in (("matrices", ["family", "pair"]), ("tensors", [])):
        here, there = (pq.read_table(one / f"{name}.parquet") for one in (folder, reports["norms"]))
        assert here.drop_columns(apart).equals(there.drop_columns(apart))


def test_a_report_says_what_was_measured_and_an_older_one_is_full(reports):
    recorded = {name: shadow.read(folder).summary for name, folder in reports.items()}
    tiers = {name: summary.tier for name, summary in recorded.items()}
    assert tiers == {"norms": "norms", "delta": "delta", "all": "full"}
    for name in ("norms", "delta"):
        assert "level" in [sentence.code for sentence in recorded[name].finding.sentences]
    assert recorded["norms"].stopped is None
    assert recorded["delta"].figures.concentration == recorded["all"].figures.concentration
    assert "subjects" not in shadow.read(reports["all"]).provenance.recorded["settings"]["method"]
    older = json.loads((reports["all"] / "summary.json").read_text())
    del older["tier"]
    (reports["all"] / "summary.json").write_text(json.dumps(older))
    assert shadow.read(reports["all"]).summary.tier == "full"


def test_a_rule_on_what_was_not_measured_never_passes(reports, tmp_path):
    for rule in ("concentration > 0.9", "not gate.rank"):
        done = run_shadow("gate", reports["norms"], "--fail-on", rule, cwd=tmp_path)
        assert (done.code, "not judged" in done.out) == (1, True)


def test_another_tier_is_another_setting(tmp_path):
    where = ("audit", "demo:base..narrow", "-o", "out")
    for more, code in (
        (("--level", "norms"), 0),
        (("--subjects", "delta"), 1),  # a finished report of other settings is there
        (("--level", "norms", "--subjects", "delta"), 2),
        (("--norms",), 2),
        (("--subjects", "delta", "--overwrite"), 0),
    ):
        done = run_shadow(*where, *more, cwd=tmp_path)
        assert done.code == code, done.err
        assert code != 1 or "--level" in done.err


def test_what_is_not_finite_equal_or_moved_is_told_as_in_a_whole_audit(tmp_path):
    torch.manual_seed(0)
    names = [planted.UP.format(layer) for layer in range(4)]
    base = {name: torch.randn(24, 16).bfloat16() for name in names}
    tuned = {name: (tensor * 1.01).bfloat16() for name, tensor in base.items()}
    tuned[names[0]][3, 3] = float("nan")
    tuned[names[1]] = base[names[1]].clone()
    tuned[names[2]] = base[names[2]].flip(0).contiguous()
    pair, found = planted_pair(tmp_path, base, tuned), []
    for name, settings in (("norms", NORMS), ("all", ALL)):
        folder = run_pair(pair, settings, tmp_path / name).folder
        table = pq.read_table(folder / "tensors.parquet")
        found.append(table.select(["tensor", "side", "status", "reason", "detail"]))
    assert found[0].equals(found[1])


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Reports of a pair of 560 x 600 with a spike: all spectra, estimates, norms."""
    folder = tmp_path_factory.mktemp("larger")
    torch.manual_seed(0)
    names = [planted.UP.format(layer) for layer in range(3)]
    base = {name: torch.randn(560, 600).bfloat16() for name in names}
    spike = 0.4 * torch.randn(560, 1) @ torch.randn(1, 600)
    moved = {
        name: (one.float() + 0.1 * (spike + torch.randn(560, 600))).bfloat16()
        for name, one in base.items()
    }
    sides = planted.write(folder / "base", base), planted.write(folder / "tuned", moved)
    return {
        name: shadow.audit(*map(str, sides), output=folder / name, **options)
        for name, options in (
            ("full", {}), ("sketch", {"level": "sketch"}), ("norms", {"level": "norms"}),
        )
    }  # fmt: skip


@pytest.fixture(scope="module")
def estimates(larger, tmp_path_factory):
    """The sides, and the report of one worker in one go."""
    sides = [larger["sketch"].folder.parents[2] / side for side in ("base", "tuned")]
    return sides, audited(tmp_path_factory.mktemp("whole"), ESTIMATES, 1, *sides)


@pytest.mark.parametrize("how", ["three workers", "parts", "stopped"])
def test_estimates_do_not_depend_on_workers_parts_or_a_stop(estimates, tmp_path, how):
    sides, whole = estimates
    runtime = Runtime(jobs=3)
    if how == "parts":
        runtime = Runtime(jobs=1, elsewhere=Parts(InProcess(), 3).measure)
    if how == "stopped":
        stopping = Runtime(jobs=1, show=stopped_after(2))
        with pytest.raises(StoppedError):
            run_pair(pair_of(*sides), ESTIMATES, tmp_path, stopping)
        (journal,) = tmp_path.glob("*/*/.partial/journal.jsonl")
        assert journal.read_bytes().count(b"\n") > 1
    made = run_pair(pair_of(*sides), ESTIMATES, tmp_path, runtime).folder
    assert {row["precision"] for row in rows(made, "delta")} == {"sketch"}
    assert contents(made.parents[1]) == contents(whole.parents[1])


def test_a_report_of_estimates_says_so(larger, tmp_path):
    """Not one of small matrices, which have all their singular values."""
    small = shadow.audit("demo:base..narrow", output=tmp_path, level="sketch").summary
    assert small.figures == shadow.audit("demo:base..narrow", output=tmp_path / "x").summary.figures
    for summary, is_estimated in (
        (larger["sketch"].summary, True),
        *((one, False) for one in (small, larger["full"].summary, larger["norms"].summary)),
    ):
        assert summary.estimated == is_estimated
        codes = {sentence.code for sentence in summary.finding.sentences}
        assert ("level" in codes) == (is_estimated or not summary.has_spectra)


def test_what_is_unknown_is_null_and_no_rule_on_it_passes(larger, tmp_path):
    """Shares of matrices among them, and gates are unknown instead of failed."""
    assert larger["full"].summary.figures.spiked == 1
    assert larger["norms"].summary.figures.spiked is None
    assert larger["norms"].summary.figures.unrounded_share is None
    for rule in ("spiked > 0.5", "spiked < 0.5", "unrounded_share < 0.5"):
        done = run_shadow("gate", larger["norms"].folder, "--fail-on", rule, cwd=tmp_path)
        assert (done.code, "not judged" in done.out) == (1, True)
    unknown = {
        name: {gate.name for gate in one.summary.gates_that("unknown")}
        for name, one in larger.items()
    }
    assert unknown["full"] == set()
    assert "rank" in unknown["norms"] & unknown["sketch"]


def test_a_threshold_within_an_error_is_not_judged(larger, tmp_path):
    """Of figures that are made of estimates too; purity_z is its formula's in both tiers."""
    share = larger["sketch"].summary.figures.participation_share
    for factor in (1 - 1e-6, 1 + 1e-6):
        rule = f"participation_share > {share * factor:.12g}"
        done = run_shadow("gate", larger["sketch"].folder, "--fail-on", rule, cwd=tmp_path)
        assert done.code == 1, done.out
    both = [one.matrices.query("subject == 'delta'") for one in (larger["full"], larger["sketch"])]
    for rows in both:
        made = rows.excess_purity * rows.row_participation_ratio * rows.col_participation_ratio / 2
        np.testing.assert_allclose(rows.purity_z, made, rtol=1e-9)
    away = np.abs(both[0].purity_z.to_numpy() - both[1].purity_z.to_numpy())
    assert (away <= both[1].purity_z_error.to_numpy()).all()
