"""What `stored` answers of planted sums over entries."""

from dataclasses import replace

import pytest

from shadow.checks.stored import CHECK, Copy, StoredPart, judge
from shadow.places.architecture import Place
from shadow.run.scanned import Unmatched
from shadow.spectra.copies import Kept
from shadow.templates import said

LONE = Unmatched("norm", "base", said("-"))


def copied(module="mlp.up", **sums):
    every = {"grid": "BF16", "entries": 4, "off": 0, "full": 4.0, "error": 0.01} | sums
    return StoredPart(Place("language", 0, module), f"{module}.weight", Kept(**every))


def merged(values, module="bias"):
    return replace(copied(module), full=f"full.{module}", values=values)


FEW = Copy([copied(), merged((64, 8)), merged((4096, 143), "norm"), merged((64, 32), "other")])


@pytest.mark.parametrize(("in_f32", "outcome", "codes", "against"), [
    ((), "holds", ["rounded", "error"], []),
    (["full.other", "full.mlp.up"], "holds", ["rounded", "error"], []),
    (["full.bias"], "does_not_hold", ["crushed", "error"], [("bias.weight", "values")]),
])  # fmt: skip
def test_a_vector_whose_values_merge_is_a_note_and_in_f32_a_fault(in_f32, outcome, codes, against):
    """More than half of them; the fewest that are left stand first."""
    answer = judge(replace(FEW, in_f32=in_f32))
    assert (answer.outcome, [one.code for one in answer.reasons]) == (outcome, codes)
    assert [(one.name, one.why.code) for one in answer.against] == against
    (note,) = answer.notes
    assert CHECK.say(note).endswith(
        "64 values become 8 in bias.weight, 4,096 values become 143 in norm.weight"
    )
    assert answer.figures["vectors_merged"] == 2
    assert answer.figures["tensors_crushed"] == len(against)
    assert all(CHECK.say(one.why) for one in answer.against)


def of_update(inner, *others):
    mine = copied(update=1.0, stored_update=1.0, inner=inner)
    return Copy([mine, *others], has_base=True)


LOST, BROKEN = ("language.mlp.up", 0.1), copied("attn.q", off=1, finite=False)


@pytest.mark.parametrize(("found", "outcome", "codes", "against"), [
    (Copy([copied()]), "holds", ["rounded", "error"], []),
    (Copy([copied(off=2)]), "does_not_hold", ["off", "error"], [("mlp.up.weight", 0.05)]),
    (Copy([copied()], unmatched=[LONE]), "does_not_hold", ["apart", "error"], [("norm", None)]),
    (Copy([copied()], unread=[LONE]), "inconclusive", ["not_compared"], [("norm", None)]),
    (Copy([copied(update=0.0)], has_base=True), "inconclusive", ["no_update"], []),
    (of_update(0.949), "holds", ["rounded", "kept"], []),
    (of_update(0.948), "does_not_hold", ["kept"], [LOST]),
    (Copy([copied(update=1.0, stored_update=0.0, inner=0.0)], has_base=True),
     "does_not_hold", ["kept"], [LOST]),
    (of_update(-1.0), "does_not_hold", ["kept"], [LOST]),
    (of_update(0.9, BROKEN), "does_not_hold", ["off", "kept"], [("attn.q.weight", None), LOST]),
])  # fmt: skip
def test_what_is_found_is_judged(found, outcome, codes, against):
    answer = judge(found)
    assert (answer.outcome, [one.code for one in answer.reasons]) == (outcome, codes)
    assert [(one.name, pytest.approx(one.size)) for one in answer.against] == against
    reasons = [*answer.reasons, *answer.notes, *(one.why for one in answer.against)]
    assert all(CHECK.say(one) for one in reasons)


@pytest.mark.parametrize(("inner", "kept", "cosine"), [(-0.5, -0.25, 0.0), (1 + 1e-15, 1.0, 1.0)])
def test_a_share_is_negative_against_the_update_and_1_at_most(inner, kept, cosine):
    figures = judge(of_update(inner, BROKEN)).figures
    assert (figures["update_kept"], figures["update_cosine"]) == (kept, cosine)


@pytest.mark.parametrize(("sums", "stands"), [
    ({"copy": 0.0, "error": 4.0}, True), ({"copy": 1e-9, "error": 4.0}, False),
    ({"full": 0.0, "copy": 0.0, "error": 0.0}, False),
])  # fmt: skip
def test_a_tensor_that_rounding_left_empty_is_named(sums, stands):
    """It is the full model's rounded, and no model works with it; zeros stay zeros."""
    answer = judge(Copy([copied("attn.q"), copied(copy=4.0), copied("mlp.down", **sums)]))
    assert answer.outcome == "holds"
    texts = [CHECK.say(note) for note in answer.notes]
    assert texts == ["rounding left only zeros in 1 tensor: mlp.down.weight"] * stands
