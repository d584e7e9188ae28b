"""What `merged` answers of planted fits, and of tensors beside the adapter."""

from dataclasses import replace

import pytest

from shadow.checks import merged
from shadow.checks.merged import CHECK, Beside, Merge, Module, judge, verdict
from shadow.run.scanned import Scanned, Unmatched
from shadow.spectra.relations.merging import ORDERS, MergeFit, Rest
from shadow.templates import Reason, said

EVERY = {(code, rounded): Rest(4) for code in ORDERS for rounded in (False, True)}
BEYOND = MergeFit(
    entries=4, beyond=4, update=1.0, residual=4.0, inner=1.0, rounding=0.0, visible=4, moved=4,
    finite=True, rests=EVERY, slope=1.0,
)  # fmt: skip
LONE = Unmatched("alone", "adapter", said("-"))


def fits(rest=None, way=("in_float32", False), **changes):
    """A fit that a way of merging leaves this rest of: of scale 1.0 and to the bit by default."""
    return replace(
        BEYOND, **{"beyond": 0, "residual": 0.0, "rests": EVERY | {way: rest or Rest()}} | changes
    )


def at(scale, error, entries=2):
    """A rest that estimates this scale with this standard error."""
    return Rest(entries, scale - 1, error**2)


def module(fit, name="up"):
    return Module(name, "p", "BF16", fit)


def scaled(scale, residual=0.0):
    return replace(BEYOND, residual=(1 - scale) ** 2 + residual, inner=scale)


GOOD, NO_UPDATE, FEW = (
    module(fits()), replace(BEYOND, moved=0), Scanned("p", "b", "b", ("F32", "F32"), 4, 0),
)  # fmt: skip


@pytest.mark.parametrize(("fit", "code", "figures"), [
    (fits(), None, {}), (fits(finite=False), "not_finite", {}),
    (NO_UPDATE, "not_applied", {}), (scaled(2.01), "twice", {}),
    (replace(BEYOND, quantised=("NF4", 1.9)), "onto_copy", {"copy": "NF4"}),
    (replace(BEYOND, quantised=("NF4", 2.0)), "beyond", {"beyond": 4, "entries": 4}),
    (scaled(0.7), "rescaled", {"scale": 0.7}), (scaled(0.51), "half", {}),
    (scaled(0.47), "rescaled", {"scale": 0.47}), (scaled(2.03), "rescaled", {"scale": 2.03}),
    (scaled(0.019), "not_applied", {}), (scaled(0.02), "rescaled", {"scale": 0.02}),
    (scaled(0.7, residual=0.0055), "rescaled", {"scale": 0.7}),
    (scaled(0.7, residual=0.0059), "beyond", {"beyond": 4, "entries": 4}),
    # a scale is one that is seen, and leaves the rounding of base, update and sum at most
    *(
        (replace(BEYOND, inner=0.0, residual=residual, rounding=rounding, entries=entries),
         code, {} if code == "not_applied" else {"beyond": 4, "entries": entries})
        for residual, rounding, entries, code in (
            (1.0, 0.15, 4, "not_applied"), (1.0, 0.16, 4, "beyond"), (2.0, 0.3, 99, "not_applied"),
            (2.0, 0.29, 99, "beyond"), (3.0, 1.1, 99, "not_applied"), (3.0, 1.0, 99, "beyond"),
        )
    ),
    (scaled(0.7, residual=0.01), "beyond", {"beyond": 4, "entries": 4}),
    (replace(BEYOND, update=0.0), "beyond", {"beyond": 4, "entries": 4}),
])  # fmt: skip
def test_what_is_wrong_with_a_matrix(fit, code, figures):
    why = verdict(fit)
    assert (why and why.code, why.figures if why else {}) == (code, figures)


@pytest.mark.parametrize(("found", "outcome", "codes", "notes"), [
    (Merge([GOOD]), "holds", ["base_plus_update"], []),
    (Merge([GOOD, module(fits(visible=0))]), "holds", ["base_plus_update"], ["unseen"]),
    (Merge([module(fits(way=("in_16_bits", True)))]),
     "holds", ["base_plus_update"], ["base_rounded"]),
    (Merge([], [Beside(FEW, whole=True)]), "holds", ["whole"], []),
    (Merge([], [Beside(FEW, whole=False)]), "inconclusive", ["whole_is_base"], []),
    (Merge([]), "inconclusive", ["no_update"], []),
    (Merge([GOOD], unread=[LONE]), "inconclusive", ["not_compared"], []),
    (Merge([GOOD], absent=["up"]), "inconclusive", ["absent"], []),
    (Merge([module(fits(visible=0))]), "inconclusive", ["hidden"], ["unseen"]),
    (Merge([GOOD], unmatched=[LONE], unread=[LONE]), "does_not_hold", ["apart"], []),
    (Merge([GOOD, *map(module, (scaled(2.0), NO_UPDATE, NO_UPDATE))]),
     "does_not_hold", ["not_applied", "twice"], []),
])  # fmt: skip
def test_a_merge_is_judged(found, outcome, codes, notes):
    answer = judge(found)
    assert (answer.outcome, [one.code for one in answer.reasons]) == (outcome, codes)
    assert [one.code for one in answer.notes] == notes
    said = [*answer.reasons, *answer.notes, *(one.why for one in answer.against)]
    assert all(CHECK.say(one) for one in said)


@pytest.mark.parametrize(("rests", "outcome", "code"), [
    ([at(1 + 2.9e-4, 0.0)], "holds", "base_plus_update"),  # a scale in bfloat16
    ([at(1 + 3.1e-4, 0.0)], "does_not_hold", "rescaled"),
    ([at(1.0, 1.9e-4)], "holds", "base_plus_update"),  # five errors exclude 1.001
    ([at(1.0, 2.1e-4)], "inconclusive", "ambiguous"),
    ([at(1.001, 1.3e-4)], "does_not_hold", "rescaled"),  # and 1
    ([at(1.001, 1.5e-4)], "inconclusive", "ambiguous"),
    ([at(1.0, 1.0), None], "inconclusive", "ambiguous"),
    # of two together the error is smaller: one that is off is not hidden by one that is not
    ([at(1.001, 1.5e-4)] * 2, "does_not_hold", "rescaled"),
    ([at(1.001, 1.3e-4), None, None], "does_not_hold", "rescaled"),
])  # fmt: skip
def test_the_interval_of_the_scale_decides_where_no_order_gives_all_bits(rests, outcome, code):
    """Shares of entries decide nothing: a right merge in another order may leave more."""
    answer = judge(Merge([module(fits(rest)) for rest in rests]))
    assert (answer.outcome, answer.reasons[0].code) == (outcome, code)
    assert all(CHECK.say(one) for one in answer.reasons)


@pytest.mark.parametrize(("scales", "figures"), [
    ((0.7,), {"scale": 0.7, "error": pytest.approx(0.3)}),
    ((0.68, 0.7, 0.71), {"scale": 0.7}),
    ((1.5, 0.7), {"least": 0.7, "scale": 1.5}),
])  # fmt: skip
def test_matrices_at_other_scales_are_one_fault(scales, figures):
    answer = judge(Merge([module(scaled(scale)) for scale in scales]))
    (fault,) = answer.reasons
    assert (fault.code, fault.figures | figures) == ("rescaled", fault.figures)
    assert answer.figures["scale_found"] == pytest.approx(sum(scales) / len(scales))


@pytest.mark.parametrize(("changed", "rounded", "outcome"), [
    (0, None, "holds"),
    (2, ("tuned", "BF16"), "holds"),  # the base's, cast to the format of the merged model
    (2, ("tuned", "F16"), "does_not_hold"),
    (2, ("base", "BF16"), "does_not_hold"),
    (2, None, "does_not_hold"),
])  # fmt: skip
def test_a_tensor_beside_the_adapter_is_the_bases_or_its_cast(changed, rounded, outcome):
    beside = Scanned("p", "norm", "norm", ("F32", "BF16"), 4, changed, rounded=rounded)
    answer = judge(Merge([GOOD], [Beside(beside)]))
    assert answer.outcome == outcome
    against = [(one.name, one.why.code) for one in answer.against]
    assert against == [("norm", "changed")] * (outcome != "holds")
    assert answer.figures["tensors_beside_changed"] == len(against)


@pytest.mark.parametrize(("beyond", "beside", "unmatched", "is_other"), [
    (1, "", 3, True), (1, "", 2, False), (0, "", 9, False),  # of two modules
    (2, "5! 4", 0, True), (2, "4! 4", 0, False), (2, "5! 4 9w", 0, True), (2, "9w 4", 0, False),
    (2, "4", 3, False), (2, "4", 4, True), (2, "", 0, False),
])  # fmt: skip
def test_another_base_is_unlike_in_most(beyond, beside, unmatched, is_other):
    """Matrices, and what the adapter leaves alone: by its entries, or without a partner."""
    why = [Reason("beyond")] * beyond + [Reason("twice")]
    rows = [
        Beside(
            Scanned("p", "b", "b", ("F32", "F32"), int(word[0]), int(word[0]) * ("!" in word)),
            whole=True if "w" in word else None,
        )
        for word in beside.split()
    ]
    merge = Merge([GOOD, GOOD], rows, unmatched=[replace(LONE, side="base")] * unmatched)
    assert merged._is_other_base(merge, [(GOOD, reason) for reason in why]) is is_other
