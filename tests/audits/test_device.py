"""Products and eigenvalues by other libraries or a device: the same numbers, or one fault."""

import json
from dataclasses import replace

import planted
import pyarrow.parquet as pq
import pytest
import torch
from effort import chosen
from measuring import planted_pair

from shadow.checkpoints.pairing import Filter
from shadow.engines import pair as audit_module
from shadow.engines.pair import run_pair
from shadow.errors import ShadowError, UsageError
from shadow.run.runtime import Runtime
from shadow.run.settings import DeviceChoice, Settings, choose
from shadow.spectra import spectrum
from shadow.spectra.device import OnDevice
from shadow.spectra.measurement import Method

UP, DOWN, GATE = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down", "gate"))
Q = "model.layers.0.self_attn.q_proj.weight"
ON_CPU = Settings(Method(), Filter())
CHOICE = DeviceChoice("fake", "fake:0", "a card of cardboard")
ON_DEVICE = replace(ON_CPU, device=CHOICE)
ONE_WORKER = Runtime(jobs=1)
FLOAT32 = 2.6e-4
OF_RANKS = {"abs": 2e-3}  # a small difference of two ranks of some hundred
NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Matrices above the side up to which Gram matrices are in float64, and below."""
    generator = torch.Generator().manual_seed(0)
    shapes = {UP: (600, 280), DOWN: (280, 560), Q: (400, 400), GATE: (90, 280)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    noise = {name: 0.1 * torch.randn(one.shape, generator=generator) for name, one in base.items()}
    moved = {name: one + noise[name] for name, one in base.items()}
    sides = ({name: one.bfloat16() for name, one in side.items()} for side in (base, moved))
    return planted_pair(tmp_path_factory.mktemp("toys"), *sides, planted.LLAMA)


@pytest.fixture
def on_torch(monkeypatch):
    """The path of a device, with torch's own products on the CPU."""
    monkeypatch.setattr(audit_module, "OnDevice", lambda _, name: OnDevice("cpu", name))


def rows(folder):
    return pq.read_table(folder / "matrices.parquet").to_pylist()


def assert_alike(ours, theirs, **tolerance):
    """Every number within what two orders of sums differ by."""
    for one, other in zip(ours, theirs, strict=True):
        for name, value in one.items():
            within = (OF_RANKS if name == "effective_rank_shift" else {}) | tolerance
            close = pytest.approx(value, **within) if isinstance(value, float) else value
            assert other[name] == close, name


@pytest.mark.parametrize("level", chosen(("full", "exact", "sketch"), ("full",)))
@pytest.mark.parametrize("largest", [300, 2048], ids=["Lanczos too", "as it is"])
def test_both_choices_of_libraries_agree(pair, level, largest, tmp_path, monkeypatch):
    """Which follow from the CPU's vendor: within 1e-6, angles between subspaces within 1e-5."""
    monkeypatch.setattr(spectrum, "OPENBLAS_SIDE", largest)
    monkeypatch.setattr(spectrum, "OPENBLAS_SIDE_AT_HOME", largest)
    found = []
    for mkl in (True, False):
        monkeypatch.setattr(spectrum, "mkl_is_at_home", lambda mkl=mkl: mkl)
        settings = Settings(Method(level), Filter())
        found.append(rows(run_pair(pair, settings, tmp_path / str(mkl), ONE_WORKER).folder))
    assert len(found[0]) == 3 * 4
    assert_alike(*found, rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("method", [Method(), Method("exact")])
def test_numbers_are_those_of_the_cpu(method, pair, on_torch, tmp_path):
    """In each tier, with vectors; the report says what made them."""
    here = run_pair(pair, replace(ON_CPU, method=method), tmp_path / "cpu", ONE_WORKER)
    there = run_pair(pair, replace(ON_DEVICE, method=method), tmp_path / "fake", ONE_WORKER)
    assert_alike(rows(here.folder), rows(there.folder), rel=FLOAT32)
    assert there.provenance["device"] == "fake"
    assert there.provenance["device_use"] == {"name": CHOICE.name}
    assert "device_use" not in here.provenance


@pytest.mark.cuda
@NO_CARD
def test_numbers_of_a_card_are_those_of_the_cpu(pair, tmp_path):
    """With a card: `pytest -m cuda`."""
    here = run_pair(pair, ON_CPU, tmp_path / "cpu", ONE_WORKER)
    there = run_pair(pair, replace(ON_CPU, device=choose("cuda")), tmp_path / "card", ONE_WORKER)
    assert_alike(rows(here.folder), rows(there.folder), rel=FLOAT32)


FAULTS = {
    "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "launch": RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["addmm_", "eigvalsh"])
def test_a_fault_ends_the_audit_with_a_line(fault, where, pair, on_torch, tmp_path, monkeypatch):
    """It names the device and `--device cpu`; there is no report."""

    def fails(*arguments):
        raise FAULTS[fault]

    monkeypatch.setattr(torch.Tensor if where == "addmm_" else torch.linalg, where, fails)
    with pytest.raises(ShadowError) as caught:
        run_pair(pair, ON_DEVICE, tmp_path, ONE_WORKER)
    assert caught.value.message.startswith("cpu failed: CUDA ")
    assert "\n" not in caught.value.message
    assert caught.value.hint == "use --device cpu"
    assert not list(tmp_path.rglob("matrices.parquet"))


@pytest.mark.parametrize("factor", [0.0, 1.01, float("nan")])
def test_a_wrong_product_ends_the_audit(factor, pair, on_torch, tmp_path, monkeypatch):
    """Its trace is not the energy of the entries."""
    right = torch.Tensor.addmm_
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda total, x, y: right(total, x.mul(factor), y))
    with pytest.raises(ShadowError):
        run_pair(pair, ON_DEVICE, tmp_path, ONE_WORKER)


def test_a_report_of_another_device_is_another_report(pair, on_torch, tmp_path):
    """A finished one stays, and --device is named."""
    run_pair(pair, ON_DEVICE, tmp_path, ONE_WORKER)
    with pytest.raises(ShadowError, match="--device"):
        run_pair(pair, ON_CPU, tmp_path, ONE_WORKER)


# Which device


@pytest.mark.parametrize(
    "word", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "", "cuda:1\n", "cuda:٣", "mps"]
)
def test_another_word_is_wrong_usage(word):
    with pytest.raises(UsageError):
        choose(word)


@pytest.mark.parametrize("word", ["cuda", "cuda:3", "auto"])
@pytest.mark.parametrize(
    "fault",
    [AssertionError("Torch not compiled with CUDA"), RuntimeError("no NVIDIA driver\nmore")],
)
def test_a_card_that_is_not_there_is_wrong_usage_and_auto_takes_the_cpu(word, fault, monkeypatch):
    """One line, which says what torch says."""

    def broken(place):
        raise fault

    monkeypatch.setattr(torch.cuda, "get_device_name", broken)
    said = str(fault).partition("\n")[0]
    if word == "auto":
        assert choose("auto").kind == "cpu"
    else:
        with pytest.raises(UsageError) as caught:
            choose(word)
        assert caught.value.message == f"--device {word}: {said}"


def test_a_card_is_named():
    """As its maker calls it; without a number it is the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", "card {}".format)
        assert choose("cuda") == DeviceChoice("cuda", "cuda:0", "card cuda:0")
        assert choose("cuda:1").name == "card cuda:1"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_commands_say_that_there_is_no_card(shadow):
    """Exit 2, a line and a hint, nothing written; `auto` is the CPU then."""
    for command in ("audit", "plan"):
        for device in ("cuda", "tpu"):
            assert f"{device}" in shadow(command, "demo", "--device", device).assert_refused(2)
    planned = shadow("plan", "demo:base..narrow", "--device", "auto", "--format", "json")
    assert json.loads(planned.assert_done())[0]["device"] == "cpu"


def test_a_device_multiplies_in_whole_float32():
    """Whatever precision was chosen before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    OnDevice("cpu", None)
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision(before)
