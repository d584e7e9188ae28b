"""A report of a mere copy gets no verdict beside one of a training: it is called a copy."""

import planted
import pytest
import quantisers
import torch
from effort import every

import shadow

BASE = {name: (0.02 * one).bfloat16() for name, one in planted.gaussian(0, 2, 256).items()}
COPIES = {  # a matrix through few bits and back
    "FP8 by tensor": lambda weight: quantisers.fp8(weight)[1],
    "int8 by row": lambda weight: quantisers.int8_rows(weight)[1],
    "int4 in groups": lambda weight: quantisers.pack_quantized(weight, group=64)[1],
    "GPTQ": lambda weight: quantisers.gptq_copy(weight.float()).numbers,
    # FP8 in the file; and an F16 file of weights that lose bits there
    "FP8 as stored": lambda weight: weight.to(torch.float8_e4m3fn),
    "F16": lambda weight: (weight.float() * 2**-9).half() * 2**9,
}
STORED = {"FP8 as stored", "F16"}


def report(folder, name, tuned):
    for side, weights in (("base", BASE), (name, tuned)):
        planted.write(folder / side, weights, planted.LLAMA)
    return shadow.audit(folder / "base", folder / name, output=folder / f"of-{name}").folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A report of a model half of whose update lies in a few directions."""
    update = planted.tuned(BASE, 1, rank=4, size=0.01, noise=0.01)
    return report(tmp_path_factory.mktemp("trained"), "one", update)


@pytest.mark.parametrize("how", every(3, COPIES))
def test_a_copy_in_few_bits_gets_no_verdict(trained, tmp_path, how):
    """Nothing is consistent with narrower data where the other model is the base in few bits."""
    made = {name: COPIES[how](one) for name, one in BASE.items()}
    copy = {name: one if how in STORED else one.bfloat16() for name, one in made.items()}
    (found,) = shadow.compare(trained, report(tmp_path, "copy", copy)).contrasts
    assert found.verdict == "not comparable"
    assert "B (" in found.not_comparable[0]
