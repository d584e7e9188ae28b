"""What `merged` answers of planted fits, and of tensors beside the adapter."""

from dataclasses import replace

import pytest

from shadow.checks.merged import CHECK, Beside, Merge, Module, judge, verdict
from shadow.run.scanned import Scanned, Unmatched
from shadow.spectra.relations.merging import MergeFit
from shadow.templates import said

EVERY = dict.fromkeys((0.0, 0.5, 1.0, 2.0), 4)  # of 4 entries, those beyond the bound, by scale
BEYOND = MergeFit(
    entries=4, wide=EVERY, narrow=EVERY, update=1.0, residual=4.0, inner=1.0, rounding=0.0,
    visible=4, finite=True, onto_rounded=False,
)  # fmt: skip
LONE = Unmatched("alone", "adapter", said("-"))


def fits(*scales, **changes):
    bounds = EVERY | dict.fromkeys(scales, 0)
    return replace(BEYOND, wide=bounds, narrow=bounds, residual=0.0, **changes)


def module(fit, name="up"):
    return Module(name, "p", "BF16", fit)


def scaled(scale, residual=0.0):
    return replace(BEYOND, residual=(1 - scale) ** 2 + residual, inner=scale)


GOOD, NO_UPDATE, FEW = module(fits(1.0)), fits(0.0), Scanned("p", "b", "b", ("F32", "F32"), 4, 0)


@pytest.mark.parametrize(("fit", "code", "figures"), [
    (fits(1.0), None, {}), (replace(BEYOND, wide=fits(1.0).wide), None, {}),
    (replace(fits(1.0), finite=False), "not_finite", {}), (NO_UPDATE, "not_applied", {}),
    (fits(0.5), "half", {}), (fits(2.0), "twice", {}),
    (replace(BEYOND, quantised=("NF4", 1.9)), "onto_copy", {"copy": "NF4"}),
    (replace(BEYOND, quantised=("NF4", 2.1)), "beyond", {"beyond": 4, "entries": 4}),
    (scaled(0.7), "rescaled", {"scale": 0.7}), (scaled(0.51), "half", {}),
    (scaled(0.7, residual=0.01), "beyond", {"beyond": 4, "entries": 4}),
    (replace(BEYOND, update=0.0), "beyond", {"beyond": 4, "entries": 4}),
])  # fmt: skip
def test_what_is_wrong_with_a_matrix(fit, code, figures):
    why = verdict(fit)
    assert (why and why.code, why.figures if why else {}) == (code, figures)


@pytest.mark.parametrize(("found", "outcome", "codes", "notes"), [
    (Merge([GOOD]), "holds", ["base_plus_update"], []),
    (Merge([module(replace(BEYOND, narrow=fits(1.0).narrow))]),
     "holds", ["base_plus_update"], []),
    (Merge([GOOD, module(fits(1.0, visible=0))]),
     "holds", ["base_plus_update"], ["unseen"]),
    (Merge([module(fits(1.0, onto_rounded=True))]),
     "holds", ["base_plus_update"], ["base_rounded"]),
    (Merge([], [Beside(FEW, whole=True)]), "holds", ["whole"], []),
    (Merge([], [Beside(FEW, whole=False)]), "inconclusive", ["whole_is_base"], []),
    (Merge([]), "inconclusive", ["no_update"], []),
    (Merge([GOOD], unread=[LONE]), "inconclusive", ["not_compared"], []),
    (Merge([GOOD], absent=["up"]), "inconclusive", ["absent"], []),
    (Merge([module(fits(1.0, visible=0))]), "inconclusive", ["hidden"], ["unseen"]),
    (Merge([GOOD, module(fits(1.0, 0.0))]), "inconclusive", ["ambiguous"], []),
    (Merge([GOOD], unmatched=[LONE], unread=[LONE]), "does_not_hold", ["apart"], []),
    (Merge([GOOD, *map(module, (fits(2.0), NO_UPDATE, NO_UPDATE))]),
     "does_not_hold", ["not_applied", "twice"], []),
])  # fmt: skip
def test_a_merge_is_judged(found, outcome, codes, notes):
    answer = judge(found)
    assert (answer.outcome, [one.code for one in answer.reasons]) == (outcome, codes)
    assert [one.code for one in answer.notes] == notes
    said = [*answer.reasons, *answer.notes, *(one.why for one in answer.against)]
    assert all(CHECK.say(one) for one in said)


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
