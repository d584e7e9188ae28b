"""Two checkpoints -> pairs and reasons: nothing is lost, nothing wrong is paired."""

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.checkpoints import pairing
from shadow.checkpoints.formats import packed_modules
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, Operand, Partner, pair_checkpoints
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.errors import ShadowError
from shadow.places.architecture import Part, Place


def checkpoint(tensors, config=None):
    """A checkpoint of {name: (dtype, shape)} without files: pairing reads headers only."""
    infos = {
        name: TensorInfo(name, dtype, shape, "s", 0, 0) for name, (dtype, shape) in tensors.items()
    }
    refused = packed_modules(infos, config or {})
    return Checkpoint("x", None, "f", config or {}, infos, {}, refused=refused)


def line_up(base, tuned, chosen=None, **configs):
    pairs, skipped = pair_checkpoints(
        checkpoint(base, configs.get("base_config")),
        checkpoint(tuned, configs.get("tuned_config")),
        chosen or Filter(),
    )
    reasons = {(skip.side, skip.info.name): skip.reason for skip in skipped}
    return {pair.tuned.info.name: pair for pair in pairs}, reasons


Q = "model.layers.0.self_attn.q_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BF, F8 = "BF16", "F8_E4M3"


def test_tensors_on_one_side_only_are_said():
    """A missing layer, on either side, is skipped with its side."""
    other = Q.replace(".0.", ".1.")
    pairs, reasons = line_up(
        {Q: (BF, (8, 8)), other: (BF, (8, 8))}, {Q: (BF, (8, 8)), "new.weight": (BF, (8, 8))}
    )
    assert set(pairs) == {Q, "new.weight"}, "a component without any base is measured alone"
    assert pairs["new.weight"].base is None
    assert reasons == {("base", other): "only_in_base"}
    _, reasons = line_up({Q: (BF, (8, 8))}, {Q: (BF, (8, 8)), other: (BF, (8, 8))})
    assert reasons == {("tuned", other): "only_in_tuned"}
    # nothing says that the other side ties it
    _, reasons = line_up({EMBED: (BF, (9, 8))}, {EMBED: (BF, (9, 8)), HEAD: (BF, (9, 8))})
    assert reasons == {("tuned", HEAD): "only_in_tuned"}


@pytest.mark.parametrize(("rows", "side"), [((100, 103), "tuned"), ((103, 100), "base")])
def test_grown_vocabulary_compares_the_common_rows(rows, side):
    """Rows added to an embedding or head are counted; other modules of two shapes are skipped."""
    base, tuned = ({EMBED: (BF, (count, 8)), Q: (BF, (count, 7))} for count in rows)
    pairs, skipped = pair_checkpoints(checkpoint(base), checkpoint(tuned), Filter())
    why = f"3 rows only in {side}; the 100 common rows are compared"
    assert [(pair.place.module, pair.shape, pair.detail) for pair in pairs] == [
        ("embed", (100, 8), why)
    ]
    apart = ("shape_differs", f"base ({rows[0]}, 7), tuned ({rows[1]}, 7)")
    assert [(skip.side, skip.info.name, (skip.reason, skip.detail)) for skip in skipped] == [
        ("base", Q, apart), ("tuned", Q, apart),
    ]  # fmt: skip


@pytest.mark.parametrize("common", [1, 2])
def test_rows_that_correspond_are_compared_where_two_or_more_do(common):
    """Of a module that need not be a vocabulary; the detail says how many. 8-bit floats without
    scales are numbers like any others.
    """
    place = Place("language", 0, "attn.q")
    rows = (np.arange(5, 5 + common), np.arange(common))
    pairs, skipped = pair_checkpoints(
        checkpoint({Q: (F8, (9, 4))}), checkpoint({Q: (F8, (8, 4))}), Filter(), may_differ=True,
        partners={place: Partner(place, "token", rows)},
    )  # fmt: skip
    found = [(pair.shape, pair.detail, pair.matched_by, pair.chosen) for pair in pairs]
    assert found == [((2, 4), "2 of 8 rows are rows of the base", "token", rows)] * (common - 1)
    assert [skip.reason for skip in skipped] == ["shape_differs"] * 2 * (2 - common)


@pytest.mark.parametrize(
    ("tied_base", "tied_tuned"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_heads_that_config_ties_are_their_embedding(tied_base, tied_tuned):
    """Tied heads are not measured twice; one tied head is compared as its embedding."""
    tensors = {EMBED: (BF, (100, 8)), HEAD: (BF, (100, 8)), Q: (BF, (8, 8))}
    base, tuned = (
        checkpoint(tensors, {"tie_word_embeddings": tied}) for tied in (tied_base, tied_tuned)
    )
    pairs, skipped = pair_checkpoints(base, tuned, Filter())
    heads = [
        (pair.base.info.name, pair.tuned.info.name) for pair in pairs if pair.place.module == "head"
    ]
    assert (
        heads
        == {
            (True, True): [], (True, False): [(EMBED, HEAD)], (False, True): [(HEAD, EMBED)],
            (False, False): [(HEAD, HEAD)],
        }[tied_base, tied_tuned]
    )  # fmt: skip
    assert len(pairs) == len(heads) + 2
    assert [(skip.side, skip.info.name, skip.reason) for skip in skipped] == [
        (side, HEAD, "tied") for side, tied in (("base", tied_base), ("tuned", tied_tuned)) if tied
    ]


@pytest.mark.parametrize(("dtype", "shape", "extra", "reason"), [
    ("I64", (4, 4), {}, "not_float"),
    ("F4", (4, 4), {}, "unknown_dtype"),
    ("I32", (4, 4), {"name": "x.qweight"}, "quantized"),
    ("U8", (16, 1), {"name": "x.weight"}, "quantized"),
    ("F16", (4, 4), {"name": "x.scales", "beside": ("x.qweight", "I32")}, "quantized"),
    ("F8_E4M3", (4, 4), {"name": "x.w", "beside": ("x.w_scale_inv", "F32")}, "quantized"),
    ("F8_E4M3", (4, 4), {"name": "x.weight", "beside": ("x.scale_weight", "F32")}, "quantized"),
    ("F32", (4, 4), {"name": "x.w_scale_inv", "beside": ("x.w", "F8_E4M3")}, "quantized"),
    ("I64", (), {"name": "steps"}, "not_float"),
])  # fmt: skip
def test_what_cannot_be_measured_has_a_reason(dtype, shape, extra, reason):
    """Integers, unknown dtypes and packed weights are refused by name on both sides."""
    name = extra.get("name", "x.buffer")
    tensors = {Q: (BF, (8, 8)), name: (dtype, shape)}
    if "beside" in extra:
        tensors[extra["beside"][0]] = (extra["beside"][1], (4, 4))
    _, reasons = line_up(tensors, tensors)
    assert reasons["base", name] == reasons["tuned", name] == reason


@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (5, 1), (0, 4), (1, 1)])
def test_vectors_are_pairs_without_spectra(shape):
    """Fewer than two dimensions, or a short side of 1 or 0: no matrix, yet it has a partner."""
    pairs, _ = line_up({Q: (BF, shape)}, {Q: (BF, shape)})
    assert not pairs[Q].is_matrix


def test_filters_keep_the_reason_of_what_they_leave_out():
    """--layer means layers of every component and none outside layers; the rest is `filtered`."""
    tensors = {
        Q: (BF, (8, 8)), Q.replace(".0.", ".1."): (BF, (8, 8)), EMBED: (BF, (9, 8)),
        "odd": ("I64", (4, 4)),
    }  # fmt: skip
    pairs, reasons = line_up(tensors, tensors, Filter(layers=(1,)))
    assert set(pairs) == {Q.replace(".0.", ".1.")}
    assert reasons["tuned", Q] == reasons["base", EMBED] == "filtered"
    assert reasons["tuned", "odd"] == "not_float"
    pairs, _ = line_up(tensors, tensors, Filter(modules=("embed",)))
    assert set(pairs) == {EMBED}


def test_two_checkpoints_that_share_nothing_are_an_error():
    """They are not base and tuned. Where no name is shared, a prefix shows at once."""
    with pytest.raises(ShadowError) as fault:
        line_up({Q: (BF, (4, 4))}, {f"student.{Q}": (BF, (4, 4))})
    assert fault.value.message == "x and x share no tensor of the same place and shape"
    hint = "check that these are a base and a model tuned from it; the first tensors are "
    assert fault.value.hint == f"{hint}'{Q}' and 'student.{Q}'"
    with pytest.raises(ShadowError, match="share no tensor"):
        line_up({Q: (BF, (4, 4))}, {Q: (BF, (5, 4))})


NAMES = st.sampled_from(
    [
        Q, EMBED, HEAD, "model.norm.weight", "transformer.h.0.attn.c_attn.weight",
        "bert.pooler.dense.weight", "odd", "lm_head.bias", "visual.blocks.0.attn.qkv.weight",
        "mm_projector.0.weight", "model.layers.0.mlp.experts.w1",
    ]
)  # fmt: skip
DTYPES = st.sampled_from(["BF16", "F32", "I64", "F8_E4M3", "X9"])
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)
TENSORS = st.dictionaries(NAMES, st.tuples(DTYPES, SHAPES), max_size=9)


@settings(max_examples=examples(300))
@given(TENSORS, TENSORS, st.booleans(), st.booleans())
def test_every_tensor_of_both_sides_is_in_a_pair_or_skipped(base, tuned, tie_base, tie_tuned):
    """Whatever two checkpoints hold, no tensor of either side is without an outcome."""
    sides = (
        checkpoint(base, {"tie_word_embeddings": tie_base}),
        checkpoint(tuned, {"tie_word_embeddings": tie_tuned}),
    )
    try:
        pairs, skipped = pair_checkpoints(*sides, Filter())
    except ShadowError:
        return
    seen = {("tuned", pair.tuned.info.name) for pair in pairs}
    seen |= {("base", pair.base.info.name) for pair in pairs if pair.base}
    seen |= {(skip.side, skip.info.name) for skip in skipped}
    assert seen == {("base", name) for name in base} | {("tuned", name) for name in tuned}
    assert len({pair.key for pair in pairs}) == len(pairs)
    assert all(
        pair.base is None or pair.base.shape[1] == pair.tuned.shape[1]
        for pair in pairs
        if pair.is_matrix
    )


@pytest.mark.parametrize("said", [False, None, "no", 1])
def test_a_head_is_tied_by_true_alone(said):
    """What else a config says ties nothing: the head of its own is compared."""
    both = {EMBED: (BF, (16, 8)), HEAD: (BF, (16, 8))}
    own = {"model_type": "llama", "tie_word_embeddings": said}
    tied = own | {"tie_word_embeddings": True}
    pairs, reasons = line_up(both, both, base_config=own, tuned_config=own)
    assert (set(pairs), reasons) == ({EMBED, HEAD}, {})
    pairs, reasons = line_up(both, both, base_config=tied, tuned_config=tied)
    assert (set(pairs), set(reasons.values())) == ({EMBED}, {"tied"})


@pytest.mark.parametrize(("module", "shape", "experts", "is_matrix"), [
    ("mlp.up", (2, 2), 0, True), ("mlp.up", (1, 8), 0, False), ("mlp.up", (8, 1), 0, False),
    ("mlp.up", (8,), 0, False), ("mlp.up", (), 0, False), ("norm", (4, 4), 0, False),
    ("bias", (4, 4), 0, False), ("experts.up", (3, 2, 2), 3, True),
    ("experts.up", (3, 1, 8), 3, False), ("conv", (2, 1, 4), 0, True),
])  # fmt: skip
def test_a_matrix_has_two_sides_above_one(module, shape, experts, is_matrix):
    """Those of its expert, where it is one of a stack."""
    part = Part(Place("language", 0, module, 0 if experts else None), experts=experts)
    operand = Operand(TensorInfo("x", "F32", shape, "s", 0, 0), part)
    assert pairing._is_matrix(operand) is is_matrix


@pytest.mark.parametrize(("place", "is_grown"), [
    (Place("language", None, "embed"), True), (Place("language", None, "head"), True),
    (Place("language", None, "head", slot="x"), False), (Place("language", 0, "mlp.up"), False),
    (Place("vision", None, "embed"), False), (Place("language", None, "embed", slot="x"), True),
])  # fmt: skip
def test_rows_of_embeddings_and_heads_are_a_vocabulary(place, is_grown):
    assert pairing.grows(place) is is_grown
