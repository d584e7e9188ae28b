"""Gram matrices on a device: a report has the CPU's numbers and says where they were made."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import models
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from devices import CHOICE, WRONG, FakeDevice, in_a_child
from runs import StoppedError, pair_of, stopped_after
from view import drawn

import shadow
from shadow.audits import pair as audit_module
from shadow.audits import pair_plan
from shadow.audits.devices import CPU, DeviceChoice, choose
from shadow.audits.document import plan_document
from shadow.audits.pair import Runtime, Settings, run_pair
from shadow.audits.pair_plan import plan_pair
from shadow.audits.workers import pace
from shadow.checkpoints.pairing import Filter
from shadow.comparing.comparison import compare
from shadow.errors import KeptError, UsageError
from shadow.reports.provenance import finished_metadata
from shadow.spectra import spectrum
from shadow.spectra.delta import Method
from shadow.spectra.device import Offload, Offloaded, TorchDevice, device_memory
from shadow.spectra.spectrum import Workspace, scaled_blocks

UP, DOWN = "model.layers.{}.mlp.up_proj.weight", "model.layers.{}.mlp.down_proj.weight"
ON_CPU = Settings(Method(subspaces=False), Filter())
ON_DEVICE = replace(ON_CPU, device=CHOICE)
GRAMS = 12  # of base, tuned and delta of four matrices
ONE_WORKER = Runtime(jobs=1)
NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Two layers, with matrices above the side up to which Gram matrices are in float64."""
    folder = tmp_path_factory.mktemp("toys")
    generator = torch.Generator().manual_seed(0)
    base = {UP.format(layer): torch.randn(560, 280, generator=generator) for layer in (0, 1)}
    base |= {DOWN.format(layer): torch.randn(280, 560, generator=generator) for layer in (0, 1)}
    tuned = {
        name: (one + 0.1 * torch.randn(one.shape, generator=generator)).bfloat16()
        for name, one in base.items()
    }
    models.write(
        folder / "base", {name: one.bfloat16() for name, one in base.items()}, models.LLAMA
    )
    models.write(folder / "tuned", tuned, models.LLAMA)
    return folder


@pytest.fixture(scope="module")
def pair(toys):
    return pair_of(toys / "base", toys / "tuned")


@pytest.fixture(scope="module")
def by_cpu(toys, pair):
    return run_pair(pair, ON_CPU, toys / "cpu").folder


@pytest.fixture
def on(monkeypatch):
    """Makes a device the one that audits open."""

    def use(device):
        for module in (audit_module, pair_plan):
            monkeypatch.setattr(
                module, "open_device", lambda choice: None if choice == CPU else device
            )
        return device

    return use


def audited(pair, folder, runtime=ONE_WORKER, settings=ON_DEVICE):
    """The report of an audit, what its provenance says of the device, and the lines for people."""
    said = []
    done = run_pair(pair, settings, folder, replace(runtime, say=said.append))
    return done.folder, done.provenance, said


def same_tables(first, second):
    for name in ("matrices", "tensors", "spectra"):
        assert pq.read_table(first / f"{name}.parquet").equals(
            pq.read_table(second / f"{name}.parquet")
        ), name


def test_a_device_that_is_right_makes_every_gram_matrix(on, pair, by_cpu, tmp_path):
    """All twelve come from it, with two workers too; it is tested once, before the first."""
    device = on(FakeDevice())
    folder, told, said = audited(pair, tmp_path, Runtime(jobs=2))
    same_tables(folder, by_cpu)
    assert (device.calls, device.tests) == (GRAMS, 1)
    assert told["device"] == "fake"
    assert told["settings"]["device"] == "fake"
    use = {"asked": "fake:0", "name": CHOICE.name, "on_device": GRAMS, "on_cpu": 0, "reasons": {}}
    assert told["device_use"] == use
    assert said == [f"Gram matrices: 12 on {CHOICE.name}, 0 on the CPU"]
    assert finished_metadata(folder)["device_use"] == use


REASONS = {
    "memory": "out of memory",
    "launch": "error",
    "NaN": "not finite",
    "infinite": "not finite",
}


@pytest.mark.parametrize("fault", [*WRONG, "memory", "launch"])
def test_a_device_that_is_always_wrong_is_left_after_three(fault, on, pair, by_cpu, tmp_path):
    """Every number is the CPU's; three moves are told one by one, the rest together."""
    device = on(FakeDevice(fault))
    folder, told, said = audited(pair, tmp_path)
    same_tables(folder, by_cpu)
    assert device.calls == 3
    assert told["device"] == "cpu"
    reasons = {"given up": 9, REASONS.get(fault, "mismatch"): 3}
    assert told["device_use"]["reasons"] == reasons
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    assert (told["device_use"]["on_device"], told["device_use"]["on_cpu"]) == (0, GRAMS)
    named = f"fake ({CHOICE.name})"
    tensor = r"model\.layers\.\d\.mlp\.(up|down)_proj\.weight"
    for line in said[:3]:
        assert line.endswith("made on the CPU")
        assert re.match(rf"{tensor}: the Gram matrix of fake ", line)
    assert said[3] == f"{named} failed 3 times in a row: the rest is made on the CPU"
    assert said[4:] == [f"Gram matrices: 0 on {CHOICE.name}, 12 on the CPU ({counts})"]


@pytest.mark.parametrize("fault", ["another order", "NaN", "memory", "launch"])
def test_a_matrix_that_fails_moves_alone(fault, on, pair, by_cpu, tmp_path):
    """Two in a row, one that is right, and two again: four moved, and the device is still used."""
    device = on(FakeDevice(fault, at=(2, 3, 5, 6)))
    folder, told, said = audited(pair, tmp_path)
    same_tables(folder, by_cpu)
    assert device.calls == GRAMS
    assert told["device"] == "fake"
    assert told["device_use"]["on_device"] == GRAMS - 4
    assert told["device_use"]["reasons"] == {REASONS.get(fault, "mismatch"): 4}
    assert len(said) == 5


def test_a_device_that_fails_its_self_test_is_not_used(on, pair, by_cpu, tmp_path):
    """Nothing is asked of it, and it is said once what was wrong."""
    device = on(FakeDevice(test="noise, 320 x 1100: its Gram matrix is off by 1e-01 of the energy"))
    folder, told, said = audited(pair, tmp_path)
    same_tables(folder, by_cpu)
    assert (device.calls, device.tests) == (0, 1)
    assert told["device"] == "cpu"
    assert told["device_use"]["reasons"] == {"self-test": GRAMS}
    failed = (
        "failed its self-test (noise, 320 x 1100: its Gram matrix is off by 1e-01 of the energy)"
    )
    assert said[0] == f"fake ({CHOICE.name}) {failed}: all Gram matrices are made on the CPU"
    assert len(said) == 2


def test_what_takes_float64_stays_on_the_cpu(on, pair, toys, tmp_path):
    """The tier `exact` never asks the device, a run of it is the CPU's; it is not even tested."""
    exact = replace(ON_CPU, method=Method("exact", subspaces=False))
    device = on(FakeDevice("the diagonal"))
    folder, told, said = audited(pair, tmp_path / "device", settings=replace(exact, device=CHOICE))
    same_tables(folder, run_pair(pair, exact, tmp_path / "cpu").folder)
    assert (device.calls, device.tests) == (0, 0)
    assert told["device"] == "cpu"
    assert told["device_use"]["reasons"] == {"float64": GRAMS}
    assert said == [f"Gram matrices: 0 on {CHOICE.name}, 12 on the CPU (float64 12)"]


def test_the_pace_of_a_device_is_measured_with_it():
    """Two synthetic pairs a worker, of three Grams each; the small one is in float64."""
    device = FakeDevice()
    assert pace(Method(subspaces=False), 1, Offload(device, lambda line: None)) > 0
    assert (device.calls, device.tests) == (3, 1)


def test_draws_of_the_null_and_subspaces_are_the_cpus(on, pair, tmp_path):
    """With singular vectors and sampled nulls, all numbers are the same."""
    full = Settings(Method(nulls=2), Filter())
    device = on(FakeDevice())
    folder, told, _ = audited(pair, tmp_path / "device", settings=replace(full, device=CHOICE))
    same_tables(folder, run_pair(pair, full, tmp_path / "cpu").folder)
    assert device.calls == told["device_use"]["on_device"] == GRAMS + 2 * 4


def test_an_unfinished_audit_continues_on_its_device_alone(on, pair, by_cpu, tmp_path):
    """There the report counts both runs' Grams; on another device it starts afresh."""
    on(FakeDevice("memory", at=(1,)))
    with pytest.raises(StoppedError):
        audited(pair, tmp_path, Runtime(jobs=1, show=stopped_after(2)))
    device = on(FakeDevice())
    folder, told, said = audited(pair, tmp_path)
    assert said[0] == "resuming: 2 of 4 matrices already measured"
    assert device.calls == GRAMS // 2
    assert (told["device_use"]["on_device"], told["device_use"]["reasons"]) == (
        GRAMS - 1,
        {"out of memory": 1},
    )
    same_tables(folder, by_cpu)
    with pytest.raises(StoppedError):
        audited(pair, tmp_path / "other", Runtime(jobs=1, show=stopped_after(2)), ON_CPU)
    _, _, said = audited(pair, tmp_path / "other")
    assert said[0] == "starting again: the unfinished audit there differs: --device cpu, now fake"


def test_a_finished_report_of_another_device_stays(on, pair, tmp_path):
    """--device is told as a setting. `auto` that took the CPU is the CPU: nothing is measured."""
    on(FakeDevice())
    audited(pair, tmp_path, settings=ON_CPU)
    with pytest.raises(KeptError, match=r"(?m)differs: --device cpu, now fake$"):
        audited(pair, tmp_path)
    auto = replace(ON_CPU, device=DeviceChoice(asked="auto", note="torch finds no CUDA card"))
    _, told, said = audited(pair, tmp_path, settings=auto)
    assert said == ["nothing to measure: the report is already there"]
    assert "device_use" not in told
    folder, told, _ = audited(pair, tmp_path, replace(ONE_WORKER, overwrite=True))
    assert told["device"] == "fake"
    with pytest.raises(KeptError, match=r"(?m)differs: --device fake, now cpu$"):
        audited(pair, tmp_path, settings=ON_CPU)
    assert finished_metadata(folder)["settings"]["device"] == "fake"


def test_auto_without_a_card_is_the_cpu_and_the_report_says_why(pair, by_cpu, tmp_path):
    """Nothing is said on stderr; the provenance has what was asked for and the reason."""
    auto = DeviceChoice(asked="auto", note="torch finds no CUDA card")
    folder, told, said = audited(pair, tmp_path, settings=replace(ON_CPU, device=auto))
    same_tables(folder, by_cpu)
    assert said == []
    assert told["device"] == "cpu"
    assert told["device_use"] == {"asked": "auto", "note": "torch finds no CUDA card"}
    assert "device" not in told["settings"], "it is a report like any of the CPU"


def test_reports_of_two_devices_are_compared_with_a_warning(on, pair, by_cpu, tmp_path):
    """`compare` says what differs."""
    on(FakeDevice())
    folder, _, _ = audited(pair, tmp_path)
    told = json.dumps(compare([by_cpu, folder]).as_json())
    assert "measured with different settings: --device cpu in A, fake in B" in told
    assert "--device" not in json.dumps(compare([by_cpu, by_cpu]).as_json())


def test_spectra_are_kept_for_the_device_that_solved_them(on, pair, by_cpu, tmp_path):
    """The CPU takes none of a device's; what it makes for a device is kept for neither."""
    cache = tmp_path / "spectra"
    runtime = replace(ONE_WORKER, cache=cache)
    device = on(FakeDevice("the diagonal", at=(1,)))
    audited(pair, tmp_path / "first", runtime)
    assert len(list(cache.glob("*/*.safetensors"))) == 7, "of eight sides one was moved"
    again, told, said = audited(pair, tmp_path / "second", runtime)
    assert said[0].startswith("7 of 8 spectra came from the cache")
    assert told["device_use"]["on_device"] == 5, "four deltas and the side that was moved"
    assert device.calls == GRAMS + 5
    same_tables(again, by_cpu)
    here, _, said = audited(pair, tmp_path / "third", runtime, ON_CPU)
    assert said == []
    same_tables(here, by_cpu)


def test_a_spectrum_that_a_failure_decided_about_is_moved():
    """The device fails in `default`, and the CPU's Gram says that the matrix is redone in `exact`:
    what the device would have said is not known, so the spectrum is not to be kept.
    """
    generator = torch.Generator().manual_seed(1)
    low_rank = torch.randn(300, 5, generator=generator) @ torch.randn(5, 320, generator=generator)

    def found(device):
        return spectrum.spectrum(
            lambda dtype: scaled_blocks(low_rank, 1.0, dtype, Workspace()),
            (300, 320), float(low_rank.norm()), 1.0, "default", wide_format=False,
            grams=Offloaded(Offload(device, lambda line: None), "x"),
        )  # fmt: skip

    right, failed = found(FakeDevice()), found(FakeDevice("memory"))
    assert right.precision == failed.precision == "exact"
    assert (right.moved, failed.moved) == (False, True)


def test_a_check_that_is_not_a_number_is_failed():
    """Blocks whose product with the signs is NaN beside a Gram that looks right: not believed."""

    class Smooth(FakeDevice):
        def gram(self, matrix_blocks, side, wide):
            list(matrix_blocks)
            return torch.eye(side)

    said = []
    offloaded = Offloaded(Offload(Smooth(), said.append), "x")
    block = torch.full((300, 300), torch.nan)
    offloaded.solved(
        lambda dtype: iter([block]), (300, 300), 300**0.5, torch.float32,
        lambda lower: (np.ones(300), None),
    )  # fmt: skip
    assert offloaded.made == {"cpu: mismatch": 1}
    assert "off by nan of the energy" in said[0]


def test_a_card_that_does_not_tell_its_memory_is_planned_for(on, pair, tmp_path, monkeypatch):
    """Without memory left CUDA answers with an error: the plan has null there."""

    class Full(FakeDevice):
        place = torch.device("cuda:0")
        free_memory = TorchDevice.free_memory

    def full(place):
        raise RuntimeError("CUDA error: out of memory")

    on(Full())
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    monkeypatch.setattr(pair_plan, "pace", lambda *_: 1e9)
    planned = plan_pair(pair, ON_DEVICE, tmp_path, ONE_WORKER)
    assert (planned.device, planned.device_memory_free) == ("fake", None)


def test_a_plan_tells_the_memory_of_the_device(on, pair, tmp_path, monkeypatch):
    """A Gram, two blocks and the library's own each: 4 (280² + 2 · 2²¹) bytes and 32 MiB, twice."""
    on(FakeDevice())
    paces = []
    monkeypatch.setattr(
        pair_plan, "pace", lambda method, jobs, offload: paces.append(offload) or 1e9
    )
    planned = plan_pair(pair, ON_DEVICE, tmp_path, Runtime(jobs=2))
    assert paces[0].device.name == CHOICE.name, "the time is that of the device"
    assert planned.device_memory == device_memory(280, 2) == 2 * (4 * (280**2 + 2 * 2**21) + 2**25)
    assert (planned.device, planned.device_name, planned.device_memory_free) == (
        "fake",
        CHOICE.name,
        2**33,
    )
    assert (
        f"device  fake ({CHOICE.name}): at most 101.3 MB of its memory; 8.6 GB are free"
        in drawn(plan_document(planned), 120)
    )
    here = plan_pair(pair, ON_CPU, tmp_path, Runtime(jobs=2))
    assert (here.device, here.device_name, here.device_memory, here.device_memory_free) == (
        "cpu",
        None,
        None,
        None,
    )
    assert "device" not in drawn(plan_document(here), 120)


# Which device


class Card:
    """What torch says where there are so many cards."""

    def __init__(self, monkeypatch, count, built=True):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: f"card {place}")


def test_words_name_the_cpu_or_a_card(monkeypatch):
    """cuda and auto are the first card; the CPU is asked of nobody."""
    Card(monkeypatch, 2)
    assert choose("cpu") == CPU == DeviceChoice("cpu", "cpu", "cpu")
    assert choose("cuda") == DeviceChoice("cuda", "cuda", "cuda:0", name="card cuda:0")
    assert choose("cuda:1") == DeviceChoice("cuda", "cuda:1", "cuda:1", name="card cuda:1")
    assert choose("auto") == DeviceChoice("cuda", "auto", "cuda:0", name="card cuda:0")


@pytest.mark.parametrize(
    "word", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "cuda:1\n", "cuda:٣", "mps"]
)
def test_another_word_is_wrong_usage(word):
    """The hint has the words that are known."""
    with pytest.raises(UsageError, match="no device") as caught:
        choose(word)
    assert caught.value.hint == "one of cpu, auto, cuda, or one card such as cuda:1"


def broken(place):
    raise RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.\nmore")


@pytest.mark.parametrize(
    ("count", "built", "word", "message", "hint"),
    [
        (
            0,
            False,
            "cuda",
            f"torch {torch.__version__} is built without CUDA",
            "install a build of torch with CUDA",
        ),
        (0, True, "cuda:0", "torch finds no CUDA card", "use --device cpu, or auto"),
        (1, True, "cuda:1", "torch finds one CUDA card, cuda:0", "name another"),
        (4, True, "cuda:9", "torch finds 4 CUDA cards, cuda:0 to cuda:3", "name another"),
        (
            -1,
            True,
            "cuda",
            "the card cannot be used: CUDA driver initialization failed, you might",
            "use --device cpu",
        ),
    ],
)
def test_a_card_that_is_not_there_is_wrong_usage_and_auto_takes_the_cpu(
    count, built, word, message, hint, monkeypatch
):
    """One line and what to do instead."""
    Card(monkeypatch, abs(count), built)
    if count < 0:
        monkeypatch.setattr(torch.cuda, "get_device_name", broken)
    with pytest.raises(UsageError) as caught:
        choose(word)
    assert caught.value.message.startswith(f"--device {word}: {message}")
    assert "\n" not in caught.value.message
    assert caught.value.hint.startswith(hint)
    if word != "cuda:1" and word != "cuda:9":
        assert choose("auto").kind == "cpu"
        assert choose("auto").note.startswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_commands_say_that_there_is_no_card(shadow):
    """Exit 2, a line and a hint, nothing written; `auto` is the CPU then."""
    for command in ("audit", "plan"):
        refused = shadow(command, "demo", "--device", "cuda")
        assert refused.code == 2
        assert refused.err.startswith("error: --device cuda: torch")
        assert refused.err.count("\n") == 2
        assert shadow(command, "demo", "--device", "tpu").code == 2
    planned = shadow("plan", "demo:base..narrow", "--device", "auto", "--json")
    assert planned.err == ""
    assert json.loads(planned.out)[0]["device"] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_the_api_takes_a_device_and_refuses_one_that_is_not_there(pair, tmp_path, by_cpu):
    """The same words and faults as the command."""
    with pytest.raises(UsageError, match="--device cuda: torch"):
        shadow.audit(pair, output=tmp_path, device="cuda")
    with pytest.raises(UsageError, match="no device 'gpu'"):
        shadow.plan(pair, output=tmp_path, device="gpu")
    report = shadow.audit(
        pair, output=tmp_path, device="auto", subspaces=False, files=shadow.Files(cache=False)
    )
    same_tables(report.folder, by_cpu)
    assert report.provenance.as_json()["device_use"]["asked"] == "auto"


def test_an_audit_holds_the_precision_while_it_measures_and_the_cpu_touches_none(
    on, pair, tmp_path
):
    """What the device multiplies with is `highest`; an audit on the CPU changes nothing."""
    seen = []

    class Watching(FakeDevice):
        def gram(self, *arguments):
            seen.append(torch.get_float32_matmul_precision())
            return super().gram(*arguments)

    def check():
        torch.set_float32_matmul_precision("high")
        on(Watching())
        audited(pair, tmp_path / "device")
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "high"

    in_a_child(check)


# With a card: `pytest -m cuda`


@pytest.mark.cuda
@NO_CARD
def test_a_report_is_that_of_the_cpu_to_its_accuracy(pair, by_cpu, tmp_path):
    """Effective ranks within 2.6e-4, energies within 1e-6; the provenance names the card."""
    folder, told, _ = audited(pair, tmp_path, settings=replace(ON_CPU, device=choose("cuda")))
    assert told["device"] == "cuda"
    assert told["device_use"]["name"] == torch.cuda.get_device_name(0)
    assert told["device_use"]["on_device"] == GRAMS
    ours, theirs = (pq.read_table(one / "matrices.parquet").to_pandas() for one in (folder, by_cpu))
    np.testing.assert_allclose(ours["effective_rank"], theirs["effective_rank"], rtol=2.6e-4)
    np.testing.assert_allclose(ours["top16_energy"], theirs["top16_energy"], rtol=1e-6)


@pytest.mark.cuda
@NO_CARD
def test_a_matrix_that_does_not_fit_moves_to_the_cpu(pair, by_cpu, tmp_path):
    """With less memory than a Gram takes every matrix moves, and the numbers are the CPU's."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    try:
        folder, told, _ = audited(pair, tmp_path, settings=replace(ON_CPU, device=choose("cuda")))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    same_tables(folder, by_cpu)
    assert told["device_use"]["reasons"] == {"given up": 9, "out of memory": 3}
