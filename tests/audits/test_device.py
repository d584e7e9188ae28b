"""Gram matrices on a device: a report has the CPU's numbers and says where they were made."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import models
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from devices import CHOICE, WRONG, FakeDevice
from measuring import measure
from runs import pair_of
from view import drawn

import shadow
from shadow.audits import pair as audit_module
from shadow.audits import pair_plan
from shadow.audits.devices import CPU, DeviceChoice, choose
from shadow.audits.document import plan_document
from shadow.audits.merging import merge
from shadow.audits.pair import Runtime, Settings, run_pair
from shadow.audits.pair_plan import plan_pair
from shadow.audits.workers import pace
from shadow.checkpoints.pairing import Filter
from shadow.comparing.comparison import compare
from shadow.errors import KeptError, ShadowError, UsageError
from shadow.reports.provenance import finished_metadata
from shadow.spectra import device as product_module
from shadow.spectra import self_test, spectrum
from shadow.spectra.delta import Method
from shadow.spectra.device import (
    DEPTH,
    SAME_GRAM,
    Offload,
    Offloaded,
    TorchDevice,
    device_memory,
    full_products,
)
from shadow.spectra.spectrum import BLOCK, UNIT, Workspace, scaled_blocks

UP, DOWN = "model.layers.{}.mlp.up_proj.weight", "model.layers.{}.mlp.down_proj.weight"
ON_CPU = Settings(Method(subspaces=False), Filter())
ON_DEVICE = replace(ON_CPU, device=CHOICE)
GRAMS = 12  # of base, tuned and delta of four matrices
ONE_WORKER = Runtime(jobs=1)


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
    for name in ("matrices", "tensors", "spectra", "residual"):
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


class StoppedError(Exception):
    pass


def stopping(progress):
    if progress.done == 2:
        raise StoppedError


def test_an_unfinished_audit_continues_on_its_device_alone(on, pair, by_cpu, tmp_path):
    """There the report counts both runs' Grams; on another device it starts afresh."""
    on(FakeDevice("memory", at=(1,)))
    with pytest.raises(StoppedError):
        audited(pair, tmp_path, Runtime(jobs=1, show=stopping))
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
        audited(pair, tmp_path / "other", Runtime(jobs=1, show=stopping), ON_CPU)
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


def test_reports_of_two_devices_are_not_merged(on, pair, toys, tmp_path):
    """They do not stand in one index: the fault names the setting."""
    on(FakeDevice())
    audited(pair, tmp_path / "device")
    run_pair(pair, ON_CPU, tmp_path / "cpu")
    with pytest.raises(ShadowError, match=r'differ in settings\.device: .*"fake"'):
        merge(tmp_path / "all", [tmp_path / "device", tmp_path / "cpu"])


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


# The settings of the process

SET = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "of products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "of everything": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "both": lambda: (SET["high"](), setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee")),
}


def precisions():
    """Every setting of float32 that can be read, or that it cannot."""
    matmul = torch.backends.cuda.matmul
    found = {}
    for name, read in {
        "older": torch.get_float32_matmul_precision,
        "allow_tf32": lambda: matmul.allow_tf32,
        "products": lambda: matmul.fp32_precision,
        "products of the CPU": lambda: torch.backends.mkldnn.matmul.fp32_precision,
        "everything": lambda: torch.backends.fp32_precision,
    }.items():
        try:
            found[name] = read()
        except (RuntimeError, AttributeError) as error:
            found[name] = type(error).__name__
    return found


def in_a_child(check):
    """Settings are of the process: check runs in a fork of it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("setting", SET)
@pytest.mark.filterwarnings("ignore")
def test_products_are_in_float32_whatever_the_process_had_set_and_as_before_afterwards(setting):
    """Also nested, after a fault, and where torch's older and newer settings disagree."""
    if "of" in setting.split() and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has the older setting only")

    def check():
        SET[setting]()
        before = precisions()
        with contextlib.suppress(StoppedError), full_products():
            with full_products():
                pass  # the inner one does not end the outer one
            assert precisions()["older"] == "highest"
            assert precisions()["allow_tf32"] is False
            assert precisions()["products"] in ("ieee", "AttributeError")
            raise StoppedError
        assert precisions() == before

    in_a_child(check)


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


# Products


def summed_one_by_one(depth):
    """A device that adds products of `depth` lines one after another: the worst order."""

    class OneByOne(FakeDevice):
        def gram(self, matrix_blocks, side, wide):
            total = np.zeros((side, side), np.float32)
            for block in matrix_blocks:
                x = block.numpy() if wide else block.numpy().T
                for start in range(0, x.shape[1], depth):
                    part = np.zeros_like(total)
                    for line in x[:, start : start + depth].T:
                        part += np.multiply.outer(line, line)
                    total += part
            return torch.from_numpy(total)

    return OneByOne()


class WithTF32(FakeDevice):
    """Operands are rounded to 11 bits, as tensor cores do."""

    def gram(self, matrix_blocks, side, wide):
        def rounded(block):
            bits = (block.numpy().view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
            return torch.from_numpy(bits.view(np.float32))

        return super().gram((rounded(block) for block in matrix_blocks), side, wide)


@pytest.mark.slow
def test_the_self_test_passes_what_is_right_and_names_what_is_not():
    """The CPU, torch and sums of DEPTH lines pass in any order; TF32 and longer sums do not."""
    assert self_test.fault_of(FakeDevice()) is None
    assert self_test.fault_of(TorchDevice("cpu")) is None
    assert self_test.fault_of(WithTF32()).startswith(
        "noise, 320 x 1100: its Gram matrix is off by 9e-06"
    )
    for fault in WRONG:
        assert "its Gram matrix is off by" in self_test.fault_of(FakeDevice(fault)), fault


@pytest.mark.slow
def test_sums_of_depth_lines_in_any_order_keep_the_accuracy_and_longer_ones_do_not():
    """One by one, 256 lines are as good as the CPU's library; those of a whole block are not."""
    assert self_test.fault_of(summed_one_by_one(DEPTH)) is None
    assert "times the rounding of float32" in self_test.fault_of(summed_one_by_one(BLOCK))


@pytest.mark.parametrize("kind", self_test.SPECTRA)
@pytest.mark.parametrize("shape", [(300, 1200), (1200, 300)])
def test_the_check_believes_what_is_right_with_a_margin_and_refuses_tf32(kind, shape):
    """A right Gram is within a third of the bound, TF32 four times above it."""
    matrix = self_test.matrix_of(kind, *shape)
    wide = shape[0] < shape[1]
    energy = float(matrix.double().square().sum())
    for device, bounds in (
        (TorchDevice("cpu"), (0, SAME_GRAM / 3)),
        (WithTF32(), (4 * SAME_GRAM, 1)),
    ):
        probe = product_module.Probe(300, wide)
        found = device.gram(
            probe.seen(scaled_blocks(matrix, 1.0, torch.float32, Workspace())), 300, wide
        )
        assert bounds[0] <= probe.residual(found) / energy < bounds[1]


@pytest.mark.parametrize(
    "shape", [(300, 700), (700, 300), (300, 300), (1, 9), (9, 1), (4, 100, 90), (5, 8, 300)]
)
@pytest.mark.parametrize("block", [64, 5_000, BLOCK])
def test_torch_multiplies_any_shape_in_parts_that_fit_its_buffers(shape, block, monkeypatch):
    """Blocks of any size, also of a grouped view, pass in parts of at most a block."""
    monkeypatch.setattr(spectrum, "BLOCK", block)
    monkeypatch.setattr(product_module, "BLOCK", block)
    sizes = []
    copied = product_module.Way.copied
    monkeypatch.setattr(
        product_module.Way,
        "copied",
        lambda way, part: (sizes.append(part.numel()), copied(way, part))[1],
    )
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    flat = matrix.reshape(-1, shape[-1]).double()
    side, wide = min(flat.shape), flat.shape[0] <= flat.shape[1]
    found = TorchDevice("cpu").gram(
        scaled_blocks(matrix, 0.5, torch.float32, Workspace()), side, wide
    )
    expected = (flat @ flat.T if wide else flat.T @ flat) / 4
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=float(SAME_GRAM * expected.trace())
    )
    assert max(sizes) <= max(block, side)


@pytest.mark.slow
def test_a_pair_by_torch_is_that_of_the_cpu_to_the_rounding_of_a_gram(tmp_path):
    """Columns within 1e-5, subspaces and nulls too; sigma² within four roundings of the Gram."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(400, 500, generator=generator).bfloat16()
    tuned = (base.float() + 0.1 * torch.randn(400, 500, generator=generator)).bfloat16()
    said = []
    offloaded = Offloaded(Offload(TorchDevice("cpu"), said.append), "one")
    by_device = measure(base, tuned, method=Method(nulls=1), grams=offloaded)
    by_cpu = measure(base, tuned, method=Method(nulls=1))
    assert (offloaded.made, said) == ({"cpu": 4}, []), (
        "torch calls the device cpu: three sides and a draw"
    )
    for one, other in zip(by_device, by_cpu, strict=True):
        assert one.precision == other.precision == "default"
        energy = float((other.sigma**2).sum())
        np.testing.assert_allclose(
            one.sigma**2, other.sigma**2, rtol=0, atol=4 * UNIT["default"] * energy / np.sqrt(400)
        )
        for name, value in other.values.items():
            if isinstance(value, float) and name not in (
                "condition_number",
                "effective_rank_shift",
            ):
                assert one.values[name] == pytest.approx(value, rel=2e-5, abs=1e-7), name


def test_workers_share_a_device(monkeypatch):
    """Gram matrices that four threads make at a time are those of one, to the last bit."""
    device = TorchDevice("cpu")
    matrices = [
        torch.randn(300, 900, generator=torch.Generator().manual_seed(seed)) for seed in range(8)
    ]

    def made(matrix):
        return device.gram(scaled_blocks(matrix, 1.0, torch.float32, Workspace()), 300, True)

    alone = [made(matrix) for matrix in matrices]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, alone, pool.map(made, matrices)))


def test_what_reading_raises_is_not_the_devices_fault():
    """The CPU raises a fault of the blocks too; what is no RuntimeError is not tried again."""
    offloaded = Offloaded(Offload(FakeDevice(), lambda line: None), "one")

    def read(error, dtype):
        raise error
        yield

    for error in (
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        OSError(5, "Input/output error"),
    ):
        with pytest.raises(type(error), match=r"allocate|output"):
            offloaded.solved(
                partial(read, error), (300, 400), 1.0, torch.float32, lambda lower: None
            )


@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_a_matrix_of_zeros_and_a_wrong_norm(norm):
    """Zeros have a Gram matrix of zeros; a trace that is not the entries' energy is a mismatch."""
    said = []
    offloaded = Offloaded(Offload(FakeDevice(), said.append), "one")
    read = partial(scaled_blocks, torch.zeros(300, 400), 1.0, space=Workspace())
    (values, _), moved = offloaded.solved(
        lambda dtype: read(dtype=dtype),
        (300, 400),
        norm,
        torch.float32,
        lambda lower: (spectrum.eigenvalues(lower), None),
    )
    assert not values.any()
    assert moved == (norm > 0)
    assert offloaded.made == ({"cpu: mismatch": 1} if norm else {"fake": 1})


# The child process of the self-test


@pytest.mark.slow
def test_the_self_test_runs_in_a_child_and_finds_the_cpu_right():
    """The whole way: a fresh interpreter, every spectrum of both sides, and no answer is good."""
    assert TorchDevice("cpu").self_test() is None


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.abort()", "it died (-6)"),
        (
            "raise RuntimeError('no kernel image is available')",
            "RuntimeError: no kernel image is available",
        ),
        ("print('noise: wrong')", "noise: wrong"),
        ("import sys; sys.exit(3)", "it died (3)"),
        ("import time; time.sleep(60)", "it did not end within 1 seconds"),
    ],
)
def test_a_child_that_crashes_hangs_or_raises_is_a_fault(code, told, monkeypatch):
    """Whatever a driver does to the child, the audit goes on on the CPU."""
    monkeypatch.setattr(product_module, "SECONDS", 1 if "sleep" in code else 60)
    assert product_module.tested_in_child([sys.executable, "-c", code]) == told


def test_a_child_that_cannot_be_started_is_a_fault():
    assert (
        product_module.tested_in_child(["/nonexistent/python"])
        == "it could not be started: No such file or directory"
    )


# With a card: `pytest -m cuda`


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
class TestCard:
    def test_it_passes_the_self_test_in_a_child(self):
        """Noise, rank 8, clustered and decaying spectra, two sides."""
        assert TorchDevice("cuda:0").self_test() is None

    @pytest.mark.parametrize("shape", [(300, 700), (5000, 896), (896, 4864), (8, 600, 900)])
    @pytest.mark.parametrize("setting", ["highest", "high"])
    def test_its_gram_matrices_are_those_of_float64_to_the_rounding_of_float32(
        self, shape, setting
    ):
        """Whatever the process has set, within `full_products`; twice the same to the last bit."""
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        flat = matrix.reshape(-1, shape[-1]).double()
        side, wide = min(flat.shape), flat.shape[0] <= flat.shape[1]
        expected = flat @ flat.T if wide else flat.T @ flat
        device = TorchDevice("cuda:0")
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(setting)
        try:
            with full_products():
                found = [
                    device.gram(scaled_blocks(matrix, 1.0, torch.float32, Workspace()), side, wide)
                    for _ in range(2)
                ]
        finally:
            torch.set_float32_matmul_precision(before)
        assert torch.equal(*found)
        assert torch.linalg.norm(found[0].double() - expected) <= SAME_GRAM * expected.trace()

    def test_tf32_is_refused(self):
        """With TF32 on, what it makes of noise in float32 is not believed."""
        matrix = torch.randn(896, 4864, generator=torch.Generator().manual_seed(5))
        said = []
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            offloaded = Offloaded(Offload(TorchDevice("cuda:0"), said.append), "noise")
            read = partial(scaled_blocks, matrix, 1.0, space=Workspace())
            norm = float(torch.linalg.norm(matrix.double()))
            offloaded.solved(
                lambda dtype: read(dtype=dtype), (896, 4864), norm, torch.float32,
                lambda lower: (spectrum.eigenvalues(lower.double()), None),
            )  # fmt: skip
        finally:
            torch.set_float32_matmul_precision(before)
        assert offloaded.made == {"cpu: mismatch": 1}, said

    def test_a_report_is_that_of_the_cpu_to_its_accuracy(self, pair, by_cpu, tmp_path):
        """Effective ranks within 2.6e-4, energies within 1e-6; the provenance names the card."""
        folder, told, _ = audited(pair, tmp_path, settings=replace(ON_CPU, device=choose("cuda")))
        assert told["device"] == "cuda"
        assert told["device_use"]["name"] == torch.cuda.get_device_name(0)
        assert told["device_use"]["on_device"] == GRAMS
        ours, theirs = (
            pq.read_table(one / "matrices.parquet").to_pandas() for one in (folder, by_cpu)
        )
        np.testing.assert_allclose(ours["effective_rank"], theirs["effective_rank"], rtol=2.6e-4)
        np.testing.assert_allclose(ours["top16_energy"], theirs["top16_energy"], rtol=1e-6)

    def test_a_matrix_that_does_not_fit_moves_to_the_cpu(self, pair, by_cpu, tmp_path):
        """With less memory than a Gram takes every matrix moves, and the numbers are the CPU's."""
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-9)
        try:
            folder, told, _ = audited(
                pair, tmp_path, settings=replace(ON_CPU, device=choose("cuda"))
            )
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        same_tables(folder, by_cpu)
        assert told["device_use"]["reasons"] == {"given up": 9, "out of memory": 3}

    def test_its_memory_is_what_the_plan_says(self):
        """The most that torch took for a Gram of one worker is below what is planned for it."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        device = TorchDevice("cuda:0")
        matrix = torch.randn(2048, 8192, generator=torch.Generator().manual_seed(5))
        with full_products():
            device.gram(scaled_blocks(matrix, 1.0, torch.float32, Workspace()), 2048, True)
        assert torch.cuda.max_memory_allocated() <= device_memory(2048, 1)
