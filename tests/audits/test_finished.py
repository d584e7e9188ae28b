"""A finished report and another audit of the pair: what differs is named, nothing is lost."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import planted
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from effort import every
from measuring import StoppedError, pair_of, report_contents, stopped_after
from planted import UP, matrices

from shadow.checkpoints.pairing import Filter
from shadow.engines import finished
from shadow.engines import pair as shadow_run
from shadow.engines.pair import run_pair
from shadow.errors import KeptError, ShadowError, UsageError
from shadow.lists.index import read_index
from shadow.reports import parquet as report_module
from shadow.reports.folders import READY, finished_metadata, found_below
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.lists import select
from shadow.targets.references import parse_reference
from shadow.telling.reading import read_summary

EVERYTHING = Settings(Method(), Filter())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pair, and its report."""
    folder = tmp_path_factory.mktemp("made")
    pair = pair_of(planted.toy(folder / "base", 0), planted.toy(folder / "one", 1))
    return pair, run_pair(pair, EVERYTHING, folder / "out")


@pytest.fixture
def pair(made):
    return made[0]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def first(made, out):
    """The report of the pair, in the folder of a test."""
    return copied_to(out, made[1])


def copied_to(out, result):
    folder = out / result.folder.relative_to(result.folder.parents[1])
    return replace(result, folder=shutil.copytree(result.folder, folder))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def stored_metadata(folder):
    """The metadata of each table, which must be one and the same."""
    found = [
        json.loads(pq.read_schema(path).metadata[b"shadow"])
        for path in sorted(folder.glob("*.parquet"))
    ]
    assert len(found) == 4
    assert all(one == found[0] for one in found)
    return found[0]


@pytest.mark.parametrize("is_cut", [False, True], ids=["lost", "cut"])
@pytest.mark.parametrize("name", ["matrices", "tensors", "files", "spectra", "summary"])
def test_a_report_that_lacks_a_file_is_whole_again(pair, first, out, name, is_cut):
    """A lost table is measured again, and one that was cut; the summary follows from the tables."""
    before, there = files(first.folder), read_summary(first.folder)[0]
    path = next(first.folder.glob(f"{name}.*"))
    if is_cut:
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    if name == "summary":
        assert read_summary(first.folder)[0] == there
    lines, again = [], "measuring again; the old report stays until that is done: "
    measured = run_pair(pair, EVERYTHING, out, Runtime(say=lines.append)).measured
    assert (measured > 0, lines[0].startswith(again)) == (name != "summary",) * 2
    assert measured or lines == [
        f"{first.folder}: summary.json was missing or damaged, and is made again",
        "nothing to measure: the report is already there",
    ]
    stored_metadata(first.folder)
    assert name != "summary" or files(first.folder) == before


def test_a_report_without_the_file_by_which_it_is_found_is_damaged(first, out):
    """It is found nevertheless, so that nothing below a folder is passed over in silence."""
    folder = first.folder
    (folder / "matrices.parquet").unlink()
    (out / "mine").mkdir()
    (out / "mine" / "summary.json").write_text('{"schema": 1}')
    pq.write_table(pa.table({"x": [1]}), out / "mine" / "tensors.parquet")
    assert found_below(out) == [folder]
    with pytest.raises(ShadowError, match=r"matrices\.parquet"):
        read_summary(folder)
    for path in folder.glob("*.parquet"):
        path.unlink()
    assert found_below(out) == [folder]  # summary.json says whose it is


def test_an_audit_that_was_stopped_is_no_damaged_report(pair, first, tmp_path, out):
    """Nothing but its work is there; a damaged report that is being audited is not finished."""
    folder = first.folder
    kept = shutil.move(folder, tmp_path / "kept")
    with pytest.raises(StoppedError):
        run_pair(pair, EVERYTHING, out, Runtime(show=stopped_after(1), jobs=1))
    assert (folder / ".partial").is_dir()
    assert found_below(out) == []
    for above in (out, folder.parent):
        with pytest.raises(ShadowError) as refused:
            read_summary(above)
        assert "shadow clean" in refused.value.hint
    shutil.copy(kept / "tensors.parquet", folder)
    assert found_below(out) == [folder]
    with pytest.raises(ShadowError) as refused:
        read_summary(folder)
    assert "run the same command again" in refused.value.hint


# an option, as a report has it and as it is asked for, and the settings with it
OTHER = {
    "--level full, now exact": {"method": Method("exact")},
    "--subjects all, now delta": {"method": Method(subjects="delta")},
    "--spectra yes, now no": {"spectra": False},
    "--layer all, now 0-1": {"chosen": Filter(layers=(0, 1))},
    "--component all, now language": {"chosen": Filter(components=("language",))},
    "--module all, now mlp.up": {"chosen": Filter(modules=("mlp.up",))},
}
OTHER = {recorded: replace(EVERYTHING, **more) for recorded, more in OTHER.items()}
EXACT, DELTAS = (OTHER[recorded] for recorded in list(OTHER)[:2])


@pytest.mark.parametrize("change", OTHER)
def test_other_settings_leave_a_finished_report(pair, first, out, change):
    """The fault names the option and both values; not a byte of the report changes."""
    before = files(first.folder)
    with pytest.raises(KeptError) as caught:
        run_pair(pair, OTHER[change], out)
    assert caught.value.message.endswith(change)
    assert "--overwrite" in caught.value.hint
    assert files(first.folder) == before
    assert [path.name for path in first.folder.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(("value", "shown"), [
    ("a" * 39, "a" * 39), ("a" * 40, "a" * 12), ("f" * 64, "f" * 12), ("f" * 65, "f" * 65),
    ("x" * 200, "x" * 200), ("y" + "x" * 200, "..." + "x" * 197), (None, "none"), (True, "yes"),
    (False, "no"), ([], "all"), ([1, 2, 4], "1-2, 4"), (["p", "q"], "p, q"),
], ids=str)  # fmt: skip
def test_a_difference_is_said_with_both_values(made, value, shown):
    """Digests by their start, long texts by their end."""
    metadata = made[1].provenance
    differing = finished.differences({**metadata, "family": value}, metadata)
    assert differing == [f"family {shown}, now {metadata['family']}"]


def test_five_differences_are_named_and_more_are_counted():
    assert finished.named([*"abcde"]) == "a; b; c; d; e"
    assert finished.named([*"abcdefg"]) == "a; b; c; d; e; and 2 more"


def test_an_unfinished_audit_is_continued_or_it_is_said_why_not(made, out):
    pair, metadata = made[0], made[1].provenance
    lines = []
    for settings in (EVERYTHING, EXACT):
        with pytest.raises(StoppedError):
            run_pair(pair, settings, out, Runtime(show=stopped_after(1), jobs=1, say=lines.append))
    run_pair(pair, EXACT, out, Runtime(say=lines.append))
    why = "starting again: the unfinished audit there differs: "
    assert lines == [
        f"{why}--level full, now exact", "resuming: 1 of 2 matrices already measured"
    ]  # fmt: skip
    for other in ({}, {**metadata, "version": "1", "pair": "p"}):
        finished.say_again(other, metadata, lines.append)
    more = f"pair p, now {metadata['pair']}; version 1, now {metadata['version']}"
    assert lines[2:] == [f"{why}in its first line", f"{why}{more}"]


@pytest.mark.parametrize("change", every(4, OTHER))
def test_overwrite_gives_the_report_of_a_fresh_folder(pair, first, tmp_path, out, change):
    """All is that of an audit that found nothing there, and is not measured again."""
    settings = OTHER[change]
    done = run_pair(pair, settings, out, Runtime(overwrite=True))
    fresh = run_pair(pair, settings, tmp_path / "fresh")
    assert done.measured == fresh.measured == 2
    assert report_contents(done.folder) == report_contents(fresh.folder)
    before = files(done.folder)
    assert run_pair(pair, settings, out, Runtime(overwrite=True)).measured == 0
    assert files(done.folder) == before


def test_changed_files_and_another_checkpoint_leave_a_finished_report(toys):
    """A tuned folder that was written again, and another folder behind the same family and pair."""
    pair = pair_of(toys / "base", toys / "one")
    first = run_pair(pair, EVERYTHING, toys / "out")
    before, had = files(first.folder), finished_metadata(first.folder)["tuned"]["fingerprint"]
    planted.toy(toys / "one", 8)
    other = replace(pair, base=parse_reference(str(toys / "one")))
    for one, named in ((pair, had[:12]), (other, f"base {toys / 'base'}, now {toys / 'one'}")):
        with pytest.raises(KeptError, match=f"{named}.*files of tuned|files of tuned.*{named}"):
            run_pair(one, EVERYTHING, toys / "out")
    assert files(first.folder) == before
    assert run_pair(pair, EVERYTHING, toys / "out", Runtime(overwrite=True)).measured == 2
    now = finished_metadata(first.folder)["tuned"]["fingerprint"]
    assert now != had
    assert stored_metadata(first.folder)["tuned"]["fingerprint"] == now


def with_metadata(folder, **recorded):
    """The report as if its metadata had said so."""
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        metadata = json.loads(table.schema.metadata[b"shadow"]) | recorded
        pq.write_table(table.replace_schema_metadata({b"shadow": json.dumps(metadata)}), path)


def test_another_version_alone_keeps_the_report_and_another_schema_is_not_read(pair, first, out):
    """Only --overwrite replaces either; one of another schema cannot be kept for the same."""
    with_metadata(first.folder, version="0.0.9")
    before, said = files(first.folder), []
    kept = run_pair(pair, EVERYTHING, out, Runtime(say=said.append))
    assert (kept.measured, "0.0.9" in said[0]) == (0, True)
    assert kept.summary == first.summary
    with pytest.raises(KeptError, match="--level"):
        run_pair(pair, EXACT, out)
    assert files(first.folder) == before
    assert run_pair(pair, EVERYTHING, out, Runtime(overwrite=True)).measured == 2
    with_metadata(first.folder, schema=3)
    before = files(first.folder)
    with pytest.raises(KeptError, match="schema"):
        run_pair(pair, EVERYTHING, out)
    assert files(first.folder) == before
    assert run_pair(pair, EVERYTHING, out, Runtime(overwrite=True)).measured == 2
    assert stored_metadata(first.folder)["version"] == first.provenance["version"]


def test_the_old_report_is_readable_until_the_new_one_is_complete(pair, first, out):
    """Stopped in the middle of --overwrite; the same command goes on and replaces it."""
    before = files(first.folder)
    with pytest.raises(StoppedError):
        run_pair(pair, DELTAS, out, Runtime(overwrite=True, show=stopped_after(1), jobs=1))
    assert files(first.folder) == before
    assert read_summary(first.folder)[0] == first.summary
    assert run_pair(pair, EVERYTHING, out).measured == 0  # and the unfinished work stays
    done = run_pair(pair, DELTAS, out, Runtime(overwrite=True, jobs=1))
    assert done.measured == 1
    assert finished_metadata(first.folder)["settings"]["method"]["subjects"] == "delta"


def killed_after(moves):
    """os.replace that interrupts the audit after so many moved files of a report."""
    left, move = moves, os.replace

    def killed(source, target, **rest):
        nonlocal left
        if Path(source).parent.name == READY:
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
        return move(source, target, **rest)

    return killed


@pytest.mark.parametrize("kills", every(3, range(7)))
def test_killed_while_files_move_nothing_is_lost(pair, first, tmp_path, out, monkeypatch, kills):
    """Before any move and between any two: who reads the report completes it."""
    settings = replace(DELTAS, spectra=False)
    fresh = run_pair(pair, settings, tmp_path / "fresh")
    move = os.replace
    monkeypatch.setattr(os, "replace", killed_after(kills))
    try:
        run_pair(pair, settings, out, Runtime(overwrite=True))
    except KeyboardInterrupt:
        assert kills < 4  # summary.json, tensors, files and matrices move
    else:
        assert kills >= 4
    monkeypatch.setattr(os, "replace", move)
    (folder,) = out.glob("*/*")
    summary, metadata = read_summary(folder)
    assert metadata["settings"]["method"]["subjects"] == "delta"
    assert summary.figures == fresh.summary.figures
    assert run_pair(pair, settings, out).measured == 0
    assert files(folder).keys() == files(fresh.folder).keys()
    assert not (folder / ".partial").exists()


def test_a_new_report_that_cannot_be_written_leaves_the_old_one(pair, first, out, monkeypatch):
    """A disk is full at the last file of a new report: the old one is whole, the work is kept."""
    before, finish = files(first.folder), report_module.TableFile.finish
    written = []

    def full(file, metadata):
        written.append(file)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        finish(file, metadata)

    monkeypatch.setattr(report_module.TableFile, "finish", full)
    with pytest.raises(ShadowError, match="No space left"):
        run_pair(pair, DELTAS, out, Runtime(overwrite=True))
    assert files(first.folder) == before
    monkeypatch.undo()
    done = run_pair(pair, DELTAS, out, Runtime(overwrite=True))
    assert done.measured == 0, "only written"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_report_that_may_not_be_read_is_not_replaced(pair, first, out):
    """It may be whole: what the system refuses is a fault, not a broken report."""
    (first.folder / "matrices.parquet").chmod(0)
    with pytest.raises(ShadowError):
        run_pair(pair, EVERYTHING, out)


def test_an_audit_that_ended_meanwhile_is_not_replaced(pair, out, monkeypatch):
    """Of two audits with other settings the second finds the report of the first."""
    line_up = shadow_run.line_up

    def slow(*arguments, **options):
        monkeypatch.setattr(shadow_run, "line_up", line_up)
        run_pair(pair, EVERYTHING, out)
        return line_up(*arguments, **options)

    monkeypatch.setattr(shadow_run, "line_up", slow)
    with pytest.raises(ShadowError):
        run_pair(pair, EXACT, out)
    (folder,) = out.glob("*/*")
    assert finished_metadata(folder)["settings"]["method"]["level"] == "full"


def test_a_list_goes_on_and_says_which_pairs_it_left(toys, shadow):
    """The pair of other settings is `kept`, with what differs and no figure; exit code 1."""
    (pair,) = select(["toy-a:base..one"], registry=toys).pairs
    folder = run_pair(pair, EXACT, toys / "out").folder
    before = files(folder)
    words = ("audit", "toy-a:*one", "toy-c", "--registry", ".", "-o", "out")
    done = shadow(*words)
    done.assert_done(1)
    (error,) = [line for line in done.err.splitlines() if line.startswith("error")]
    assert "toy-a:base..one" in error
    assert error.endswith("--level exact, now full")
    assert files(folder) == before
    kept, other = read_index(toys / "out").rows
    assert (kept.state, other.state) == ("kept", "done")
    assert "--level exact, now full" in kept.error
    assert "--overwrite" in kept.hint
    assert (kept.concentration, kept.matrices, kept.version) == (None, None, None)
    assert json.loads((toys / "out" / "index.json").read_text())["counts"]["kept"] == 1
    gated = shadow("gate", "out", "--fail-on", "language.mlp.up.concentration > 2")
    assert gated.code == 1, "what was asked for is not there"
    assert "kept" in shadow("show", "out").assert_done()
    shadow("report", "out", "-o", "page.html").assert_done()
    assert "now full" in (toys / "page.html").read_text()
    shadow(*words, "--overwrite").assert_done(3)  # random toys are unrelated
    assert {row.state for row in read_index(toys / "out").rows} == {"done"}


# chosen, what is not there, what there is
ABSENT = [
    (Filter(layers=(99,)), "99", "0-1"),
    (Filter(layers=(0, 1, 2, 3)), "2-3", "0-1"),
    (Filter(components=("vision",)), "vision", "language"),
    (Filter(modules=("mla.q_a",)), "mla.q_a", "mlp.up"),
    (Filter(components=("language",), layers=(7,)), "7", "0-1"),
]


@pytest.mark.parametrize(("chosen", "absent", "there"), ABSENT)
def test_what_the_model_does_not_have_is_wrong_usage(pair, first, tmp_path, chosen, absent, there):
    """Before anything is measured, with what there is; a report stays, also with --overwrite."""
    before = files(first.folder)
    for output, overwrite in (("out", False), ("out", True), ("new", False)):
        runtime = Runtime(overwrite=overwrite)
        with pytest.raises(UsageError) as caught:
            run_pair(pair, replace(EVERYTHING, chosen=chosen), tmp_path / output, runtime)
        assert pair.tuned.repo in caught.value.message
        assert absent in caught.value.message.removeprefix(pair.tuned.repo)
        assert there in caught.value.hint
    assert files(first.folder) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", every(2, ["audit", "plan"]))
def test_exit_2_comes_when_no_pair_has_it(toys, shadow, command):
    """Where one pair has it, the other is a failed pair, and the code is 1."""
    for seed, name in enumerate(("deep", "deeper"), 2):
        planted.toy(toys / name, seed, layers=4)
    (toys / "toys.yaml").write_text(
        "toy-a: {base: ./base, one: ./one}\ntoy-b: {base: ./deep, two: ./deeper}\n"
    )
    options = ("--registry", ".")
    shadow(command, "toy-a", "--layer", "99", *options).assert_refused(2)
    for targets in (("toy-a", "toy-b"), ("toy-*",)):
        for layer, code, pairs in (("99", 2, ["toy-a", "toy-b"]), ("3", 1, ["toy-a"])):
            done = shadow(command, *targets, "--layer", layer, *options)
            errors = [line for line in done.err.splitlines() if line.startswith("error: toy")]
            assert (done.code, [line.split(":")[1].strip() for line in errors]) == (code, pairs)
    if command == "audit":
        assert [row.state for row in read_index(toys / "reports").rows] == ["failed", "done"]


def test_where_nothing_was_compared_nothing_is_identical(tmp_path):
    """Two layers, of which the second has no numbers: an audit of it says so, and of no copy."""
    for name in ("base", "tuned"):
        more = {"model.layers.1.input_layernorm.weight": torch.ones(8)}
        more[UP.format(1)] = torch.ones(8, 8, dtype=torch.int32)
        planted.write(tmp_path / name, matrices(0) | more)
    pair, second = pair_of(tmp_path / "base", tmp_path / "tuned"), Filter(layers=(1,))
    summary = run_pair(pair, replace(EVERYTHING, chosen=second), tmp_path / "out").summary
    changed = next(gate for gate in summary.gates if gate.name == "changed")
    assert (changed.figure, changed.passed) == (None, False)
