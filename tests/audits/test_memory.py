"""What a matrix costs and takes at most, in operations and bytes that are counted by hand."""

from dataclasses import replace

import pytest

from shadow.checkpoints.pairing import Factor, MatrixPair, Operand
from shadow.checkpoints.safetensors_files import Packing, TensorInfo
from shadow.errors import ShadowError
from shadow.places.architecture import Part, Place
from shadow.run import machine
from shadow.run.machine import MachineLimits, matrix_memory, worker_memory
from shadow.spectra.costs import cost_of
from shadow.spectra.measurement import Method

MIB = 1 << 20
WHOLE, STRIPE = 136 * MIB, 32 * MIB
BLOCK = 64 * 2 * MIB  # of the most entries that are worked on together
# by level and shape: operations, bytes of buffers and solving, bytes of a delta that stays
COSTS = [
    ("norms", (1000, 2000), 2 * 10**6, 64 << 16, 0),
    ("full", (1000, 2000), 2 * 10**9 + 2 * 10**9 + 4000 * 10**6,
     128 * 10**6 + 24 * 10**6 + 88 * 3000, 0),
    ("exact", (3000, 1000), 3 * 10**9 + 2 * 10**9 + 4000 * 10**6,
     BLOCK + 24 * 10**6 + 88 * 4000, 0),
    ("sketch", (434, 434), 3 * 434**3 + 4000 * 434**2, 64 * 434**2 + 24 * 434**2 + 88 * 868, 0),
    ("sketch", (435, 435), 800 * 435**2 + 85 * 10**7,
     64 * 435**2 + 96 * 24 * 4 * 435 + 88 * 870, 4 * 435**2),
    ("sketch", (10_000, 10_000), 8 * 10**10 + 85 * 10**7,
     BLOCK + 96 * 24 * 4 * 10**4 + 88 * 20_000, 4 * 10**8),
    ("sketch", (10_000, 10_001), 8 * 10**10 + 8 * 10**6 + 85 * 10**7,
     BLOCK + 96 * 24 * 4 * 10**4 + 88 * 20_001, 0),
]  # fmt: skip


@pytest.mark.parametrize(("level", "shape", "operations", "memory", "held"), COSTS)
def test_what_a_solver_takes(level, shape, operations, memory, held):
    """Blocks, the Gram matrix or the bases, and lines; an update's factors instead of blocks, if
    they are larger.
    """
    cost = cost_of(Method(level)).on(shape)
    assert (cost.operations(shape), cost.memory(shape, 0)) == (operations, memory)
    assert (cost.held(shape, "delta"), cost.held(shape, "all")) == (held, 0)
    blocks = 64 << 16 if level == "norms" else 64 * min(2 * MIB, shape[0] * shape[1])
    assert cost.memory(shape, blocks + 8) == memory + 8


def side(shape, dtype="BF16", packed=0, rank=None):
    """An operand of a matrix; packed: the bytes of a quantised one."""
    rows, cols = shape
    raw = TensorInfo("w", "I32", shape, "s", 0, packed)
    packing = Packing("gptq", raw) if packed else None
    part = Part(Place("language", 0, "mlp.up"))
    if rank is None:
        return Operand(TensorInfo("w", dtype, shape, "s", 0, packed or 1, packing=packing), part)
    left, right = (TensorInfo("w", dtype, of, "s", 0, 1) for of in ((rows, rank), (rank, cols)))
    return Operand(left, part, Factor(right, 1.0, transposed=False))


def matrices(base, tuned, *, is_matrix=True):
    return MatrixPair(tuned.part.place, base, tuned, *tuned.shape, is_matrix)


SHAPE = (1000, 2000)
FULL = COSTS[1][3]
KEPT = [  # of two sides: what their numbers take while they are read, each like the larger
    (side(SHAPE), side(SHAPE), 4 * 10**6), (side(SHAPE), side(SHAPE, "F32"), 8 * 10**6),
    (None, side(SHAPE, "F32"), 8 * 10**6), (side(SHAPE, "F32"), side(SHAPE), 8 * 10**6),
    (side(SHAPE, packed=10**6), side(SHAPE), 5 * 10**6),
    (side(SHAPE), side(SHAPE, packed=10**6), 5 * 10**6),
]  # fmt: skip


@pytest.mark.parametrize(("base", "tuned", "kept"), KEPT)
def test_a_worker_keeps_both_sides(base, tuned, kept):
    pair = matrices(base, tuned)
    assert matrix_memory(pair, Method()) == FULL + 2 * kept
    assert matrix_memory(replace(pair, is_matrix=False), Method()) == 128 * 10**6 + 2 * kept


@pytest.mark.parametrize(("rows", "packed", "kept"), [
    (68 * MIB // 1024, 0, WHOLE), (68 * MIB // 1024 + 1, 0, STRIPE),
    (60 * MIB // 1024, 16 * MIB, WHOLE), (60 * MIB // 1024, 16 * MIB + 1, 16 * MIB + 1 + STRIPE),
    (80 * MIB // 1024, WHOLE + 1, STRIPE + STRIPE),
])  # fmt: skip
def test_a_large_matrix_is_read_in_stripes(rows, packed, kept):
    """Of more than 136 MiB of numbers; a quantised one has its bytes beside them."""
    one = side((rows, 1024), packed=packed)
    vector = matrices(one, one, is_matrix=False)
    assert matrix_memory(vector, Method()) == BLOCK + 2 * kept


def test_what_workers_of_a_machine_need():
    """The largest matrix and the largest delta that stays, each once; kinds of matrices once."""
    wide, large = (matrices(side(shape), side(shape)) for shape in ((600, 4000), (9000, 9000)))
    method = Method("sketch", "delta")
    held = 4 * 9000 * 9000
    assert matrix_memory(large, method) - matrix_memory(large, Method("sketch")) == held
    assert matrix_memory(wide, method) - matrix_memory(wide, Method("sketch")) == 4 * 600 * 4000
    assert worker_memory([wide, large, wide], method) == matrix_memory(large, method)
    vector = matrices(side((20_000, 20_000)), side((20_000, 20_000)), is_matrix=False)
    assert worker_memory([vector, wide], method) == matrix_memory(vector, method) + 4 * 600 * 4000
    factors = [matrices(side((9000, 8000)), side((9000, 8000), rank=rank)) for rank in (400, 500)]
    norms = [matrix_memory(pair, Method("norms")) for pair in factors]
    assert norms == [24 * 400 * 9000 + 2 * STRIPE, 24 * 4 * MIB + 2 * STRIPE]
    every = [wide, large, vector, *factors]
    assert machine.kinds([*every, *every]) == every


@pytest.mark.parametrize(("cores", "times", "level", "jobs"), [
    (4, 2.0, "full", 2), (4, 1.99, "full", 1), (4, 0.5, "full", 1), (4, 9.0, "full", 4),
    (4, 9.0, "norms", 1),
])  # fmt: skip
def test_as_many_workers_as_cores_and_memory_allow(cores, times, level, jobs):
    """One for sums of stored floats, whatever there is, but not where a side, whichever it is, is
    quantised or an adapter's.
    """
    plain = side(SHAPE)
    pair = matrices(plain, plain)
    limits = MachineLimits(cores, "m", int(times * worker_memory([pair], Method())), "m")
    assert machine.default_jobs([pair], limits, Method(level)) == jobs
    roomy = replace(limits, memory=1 << 40)
    packed, factored = side(SHAPE, packed=8), side(SHAPE, rank=4)
    for sides, many in (
        ((None, plain), level != "norms"), ((plain, packed), True), ((packed, plain), True),
        ((plain, factored), True),
    ):  # fmt: skip
        found = machine.default_jobs([pair, matrices(*sides)], roomy, Method(level))
        assert found == (cores if many else 1)


def test_a_matrix_that_does_not_fit_is_an_error():
    pair = matrices(side(SHAPE), side(SHAPE))
    need = FULL + 8 * 10**6
    assert machine.lacking([pair], MachineLimits(1, "m", need, "the machine"), Method()) is None
    assert machine.lacking([], MachineLimits(1, "m", 0, "the machine"), Method()) is None
    error = machine.lacking([pair], MachineLimits(1, "m", need - 1, "the group /x"), Method())
    assert isinstance(error, ShadowError)
    assert error.message == (
        "w: 1,000 x 2,000 needs 160.3 MB of memory, 160.3 MB are free (the group /x)"
    )
