"""Exact relations of two tensors: planted with NumPy or torch, each beside a near miss."""

import planted
import pytest
import torch

import shadow
from shadow.checks.same import ORDERS, RELATIONS
from shadow.relations import exact
from shadow.relations.exact import Differing, relation_of
from shadow.spectra.spectrum import Sides, Workspace, working_dtype

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
W = planted.normal(0, 192, 64)
SQUARE = W[:64]
CUT = (W.view(torch.int32) & -(1 << 16)).view(torch.float32)
TINY = W * 2.0**-14 * torch.tensor([1.0, 2.0**-113]).repeat(32)  # half of it subnormal in F32
NUMBERS = torch.arange(192)
ORDER = {  # the rows of A that B has, and figures of their order
    "halves": (NUMBERS.roll(96), {}),
    "interleaved": (NUMBERS.view(6, 2, 16).mT.reshape(-1), {"size": 32, "where": "B"}),
    "as in transformers": (NUMBERS.view(6, 16, 2).mT.reshape(-1), {"size": 32, "where": "A"}),
    "grouped": (NUMBERS.view(3, 8, 8).transpose(0, 1).reshape(-1), {"size": 8, "where": "B"}),
    "apart": (NUMBERS.view(8, 3, 8).transpose(0, 1).reshape(-1), {"size": 8, "where": "A"}),
    "blocks": (NUMBERS.view(4, 48)[[0, 3, 1, 2]].reshape(-1), {"size": 48}),
    "any": (torch.randperm(192, generator=torch.Generator().manual_seed(1)), None),
}


def found(a, b, *formats):
    """The relation of two tensors as they are stored in these formats."""
    a, b = (one.to(DTYPES[name]) for one, name in zip((a, b), formats, strict=True))
    sides = Sides(a, b, working_dtype(*formats), Workspace())
    return relation_of(Differing(sides, formats, sides))


def one_off(tensor):
    """A copy with another entry in the last row."""
    return tensor.index_put((torch.tensor(-1), torch.tensor(3)), 2 * tensor[-1, 3] + 1)


def two_ulps(tensor):
    """A copy, some columns of which are two units in the last place off."""
    bits = torch.int16 if tensor.itemsize == 2 else torch.int32
    return (tensor.view(bits) + 2 * (torch.arange(64) % 7 == 0)).to(bits).view(tensor.dtype)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("code", "change", "number"), [
    ("is_multiple", lambda w: w * 1.07, 1.07), ("is_multiple", lambda w: w * 64**0.5, 8.0),
    ("is_multiple", lambda w: -w, -1.0), ("is_shifted", lambda w: w + 1, 1.0),
])  # fmt: skip
def test_a_number_is_found_from_either_side_and_no_noise_is_one(name, code, change, number):
    a = W.to(DTYPES[name])
    b = change(a)
    which, value = found(a, b, name, name).figures.values()
    assert (which, value) == ("B is A", pytest.approx(number, rel=1e-7))
    assert found(b, a, name, name).code == code
    for other in (one_off(b), two_ulps(b), two_ulps(a)):
        near = found(a, other, name, name)
        assert near is None or near.code == "upper_bits_equal"
    few = [found(a[:1, :size], b[:1, :size], name, name) is not None for size in (15, 16)]
    assert few == [False, True]


@pytest.mark.parametrize(("low", "high", "number"), [
    (0.9961, 1.0, 1.0), (0.9961, 0.9999, 0.998), (1.0694, 1.0709, 1.07), (-1.2, -0.9, -1.0),
    (1.9e-7, 2.2e-7, 2e-7), (3940.0, 4180.0, 4000.0), (0.3, 0.3, 0.3),
])  # fmt: skip
def test_of_the_numbers_that_fit_the_roundest_is_said(low, high, number):
    assert exact.roundest(low, high) == number


@pytest.mark.parametrize("name", ["F32", "BF16"])
@pytest.mark.parametrize("order", ORDER)
def test_rows_in_another_order_are_named_and_one_other_row_is_not(name, order):
    rows, figures = ORDER[order]
    named = found(W, W[rows], name, name).figures["order"]
    assert (named and named.figures) == figures
    assert order not in ORDERS or named.code == order
    assert found(W, one_off(W[rows]), name, name) is None
    columns = found(W.T, W[rows].T, name, name)
    assert (columns.code, columns.figures) == ("columns_reordered", {"order": named, "rows": 64})
    assert found(W.T, one_off(W)[rows].T, name, name) is None
    for vector in (W[:, 0], W[:, 0].round()):  # of which many entries are equal
        entries = found(vector[None], vector[None, rows], name, name)
        assert (entries.code, entries.figures["rows"]) == ("columns_reordered", 1)
        assert found(vector[None], vector[None, rows] + 2 * (NUMBERS == 7), name, name) is None
    assert found(SQUARE, SQUARE.T, name, name).code == "is_transposed"
    assert found(SQUARE, one_off(SQUARE.T), name, name) is None


@pytest.mark.parametrize(("a", "b", "code", "formats"), [
    (W, CUT, "is_cut", ("F32", "BF16")), (W, CUT, "is_cut", ("F32", "F32")),
    (TINY, torch.where(TINY.abs() < 2.0**-126, 0, TINY), "is_flushed", ("F32", "F32")),
    (TINY, torch.where(TINY.half().abs() < 2.0**-14, 0, TINY), "is_flushed", ("F32", "F16")),
])  # fmt: skip
def test_bits_that_were_lost(a, b, code, formats):
    assert found(a, b, *formats).code == code
    assert found(b, a, *reversed(formats)).figures["which"] == "A is B"
    assert found(a, one_off(b), *formats) is None


@pytest.mark.parametrize(("form", "bits", "lower"), [
    ("F32", torch.int32, 16), ("F16", torch.int16, 3),
])  # fmt: skip
def test_only_the_bits_that_bf16_lacks_differ(form, bits, lower):
    """One bit more is another number."""
    a = (W.abs() + 1).to(DTYPES[form])
    noise = torch.arange(W.numel()).view(W.shape) * 37 % (1 << lower)
    b = ((a.view(bits) & -(1 << lower)) | noise.to(bits)).view(a.dtype)
    beyond = b.view(bits).clone()
    beyond[-1, 5] ^= 1 << lower
    assert found(a, b, form, form).code == "upper_bits_equal"
    assert found(a, beyond.view(a.dtype), form, form) is None


def test_every_relation_has_words_and_answers_say_them(tmp_path):
    assert {*exact.RELATIONS} | {"is_rounded", "elsewhere"} == {*RELATIONS}
    tensors = planted.gaussian(0, 4)
    first, second, *_ = (name for name in tensors if "q_proj" in name)
    a = planted.sharded(tmp_path / "a", tensors, 2)
    key = first.replace("q_proj", "k_proj")
    for number, changed in enumerate((first, second.replace("layers.1", "layers.3"))):
        other = tensors | {key: 1.07 * tensors[key], changed: tensors[second].clone()}
        answer = shadow.verify("same", a, planted.sharded(tmp_path / f"b{number}", other, 2))
        assert {one.name: one.code for one in answer.against} == {
            key: "is_multiple", changed: "elsewhere"}  # fmt: skip
        assert f"A has these values in {second}" in {one.what for one in answer.against}
        assert ("in model-00001-of-00002.safetensors of B" in answer.reason) is (number == 0)
        assert f"{key}: B is A times 1.07" in answer.reason or number


NORMS = [f"model.layers.{at}.input_layernorm.weight" for at in range(3)]
NORM, OTHER = planted.normal(5, 2, 32) + 4
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "change", "code"), [
    (NORMS[0], lambda w: 2.5 * w, "is_multiple"), (NORMS[0], lambda w: w + 1, "is_shifted"),
    (NORMS[0], lambda w: w.flip(0), "columns_reordered"), (NORMS[0], lambda w: OTHER, "elsewhere"),
    (NORMS[0], torch.ones_like, "entries"),  # as another norm, which proves nothing
    (UP, lambda w: w.T, "is_transposed"), (UP, lambda w: one_off(w.T), "shapes"),
])  # fmt: skip
def test_vectors_and_other_shapes_are_related_too(tmp_path, stored, name, change, code):
    tensors = planted.gaussian(0, 4) | {NORMS[0]: NORM, NORMS[1]: OTHER, NORMS[2]: torch.ones(32)}
    tensors = {key: one.to(stored) for key, one in tensors.items()}
    other = tensors | {name: change(tensors[name]).to(stored, copy=True)}
    a = planted.write(tmp_path / "a", tensors, planted.LLAMA)
    answer = shadow.verify("same", a, planted.write(tmp_path / "b", other, planted.LLAMA))
    assert [(one.name, one.code) for one in answer.against] == [(name, code)]
