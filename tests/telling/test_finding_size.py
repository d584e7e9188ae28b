"""How far and where: the size of the change, the parts that hold it, and what is frozen."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import reports
import torch
from finding_cases import (
    codes,
    grown,
    model,
    row,
    same,
    says,
    sentence,
    summary_of,
    told,
    with_head,
)
from safetensors.torch import load_file, save_file

import shadow
from shadow.quantities import text_of
from shadow.telling.reading import read_summary

# size and place


def test_a_head_of_more_than_its_share_is_named_with_both_shares(tmp_path):
    """46 % of the energy with a thirteenth of the parameters; 12 %, where the layers have 88 %; of
    its share alone nothing is said.
    """
    most = "the head (46 %, with 7.7 % of the parameters)"
    says(tmp_path, "size", with_head(0.46), most)
    says(tmp_path, "size", with_head(0.12), "The head holds 12 %, with 7.7 % of the parameters.")
    says(tmp_path, "size", with_head(1 / 13), without=["head"])


def test_a_pooler_is_not_called_the_head(tmp_path):
    """Its module is head, and it predicts nothing; beside a head that predicts, it is the head."""
    body, (head,) = with_head(0.46)[:-1], with_head(0.46)[-1:]
    pooler = {**head, "tensor": "bert.pooler.dense.weight"}
    share = "the pooling head (46 %, with 7.7 % of the parameters)"
    says(tmp_path, "size", [*body, pooler], share)
    both = [*body, pooler, {**head, "tensor": "cls.predictions.decoder.weight"}]
    says(tmp_path, "size", both, without=["pooling"])


def test_a_change_in_proportion_to_the_parameters_names_no_place(tmp_path):
    """Embeddings of twelve parts of 24 in both; and with 3 of 5 of the energy, they are named."""
    energy, size = 12 * 0.05**2, 12 * 64 * 96

    def with_embeddings(times):
        norm = math.sqrt(times * energy)
        return [*model(), row(None, "embed", parameters=size, frobenius_norm=norm)]

    even = (
        "spread over the modules in proportion to their size (the embeddings: 50 % of the"
        " parameters, 50 % of the change)."
    )
    more = "most of it in the embeddings (60 %, with 50 % of the parameters)."
    says(tmp_path, "size", with_embeddings(1), even, without=["most of it"])
    says(tmp_path, "size", with_embeddings(1.5), more)


def still(layers=4):
    """The tensors of what did not change in such a model, for what did not change of `model`."""
    return [
        at for layer in range(layers) for module in reports.MODULES for at in same(module, layer)
    ]


def frozen(deltas, tensors):
    """Of these tensors, those that no delta is of."""
    changed = {(one["layer"], one["module"]) for one in deltas}
    return tuple(one for one in tensors if (one["layer"], one["module"]) not in changed)


def test_the_layers_that_hold_nearly_all_are_named_instead_of_a_quarter(tmp_path):
    """One matrix, two of a layer, and one layer of eight with 92 % of the energy."""

    def of_twelve_layers(deltas, *texts, without=()):
        unchanged = frozen(deltas, still(12))
        says(tmp_path, "size", deltas, *texts, without=without, extra_tensors=unchanged)

    one, two = [row(5, "mlp.down")], [row(3, "attn.q"), row(3, "mlp.up")]
    of_one = "all of it in one matrix, mlp.down of layer 5."
    of_two = "all of it in attn.q (50 %) and mlp.up (50 %). Only matrices of layer 3"
    with_the_head = "Inside the layers, only matrices of layer 3 changed."
    of_twelve_layers(one, of_one, without=["quarter"])
    of_twelve_layers(two, of_two, without=["proportion", "quarter"])
    of_twelve_layers([*two, row(None, "head")], with_the_head)
    norm = 0.05 * math.sqrt(7 * 0.92 / 0.08)
    most = [{**one, **({"frobenius_norm": norm} if one["layer"] == 6 else {})} for one in model(8)]
    says(tmp_path, "size", most, "Inside the layers, nearly all of it is in layer 6 (92 %).")


def test_a_single_matrix_is_no_median(tmp_path):
    """One of a layer, with two directions that stand out."""
    one = [row(5, "mlp.down", spikes=2, spike_energy=0.3)]
    found = told(tmp_path, one, extra_tensors=frozen(one, still(12)))
    assert (
        "In the only matrix inside the layers, the change has more structure than noise, as along"
        in (sentence(found, "coherent"))
    )
    assert sentence(found, "standing_out").startswith("In the only matrix, 2 of 64 directions")
    assert "median matrix" not in found.text


def test_the_quarter_of_the_depth_that_holds_most_is_named(tmp_path):
    """Of eight layers the last two have four times the norm; none is named where all are alike. Of
    nine, which are no four quarters, the layers alone are named.
    """
    deltas = [row(layer, "mlp.up", frobenius_norm=0.2 if layer > 5 else 0.05) for layer in range(8)]
    last = (
        "Inside the layers, the last quarter (layers 6 to 7) holds most of it, 84 %, with 25 % of"
        " the parameters."
    )
    says(tmp_path, "size", deltas, last)
    nine = [row(layer, "mlp.up", frobenius_norm=0.2 if layer > 6 else 0.05) for layer in range(9)]
    says(tmp_path, "size", nine, "Inside the layers, layers 6 to 8 hold", without=["quarter"])
    says(tmp_path, "size", model(8), "spread evenly over all 8")


def test_shares_of_parameters_and_the_furthest_module_are_those_of_the_weights(demo):
    """Of the demo, by NumPy from its files: sizes of each quarter of the layers and of the head,
    and relative norms.
    """
    told = demo["base..narrow"].as_json()
    folder = Path(__file__).parents[2] / "registry" / "demo"
    base, tuned = (load_file(folder / side / "model.safetensors") for side in ("base", "narrow"))
    matrices = {name: one.double().numpy() for name, one in base.items() if one.ndim == 2}
    layer = {name: int(name.split(".")[2]) for name in matrices if ".layers." in name}
    total = sum(matrices[name].size for name in layer)
    assert len(told["quarters"]) == 4
    for quarter in told["quarters"]:
        own = [
            name
            for name, at in layer.items()
            if quarter["first_layer"] <= at <= quarter["last_layer"]
        ]
        assert quarter["parameter_share"] == pytest.approx(
            sum(matrices[name].size for name in own) / total
        )
    norms = {}
    for name, one in matrices.items():
        far = np.linalg.norm(tuned[name].double().numpy() - one) / np.linalg.norm(one)
        norms.setdefault(name.removesuffix(".weight").split(".")[-1], []).append(far)
    medians = {name: np.median(values) for name, values in norms.items()}
    assert max(medians, key=medians.get) == "lm_head"
    size = next(one for one in told["finding"]["sentences"] if one["code"] == "size")
    (head,) = (one for one in told["modules"] if one["module"] == "head")
    assert head["relative_norm"] == pytest.approx(medians["lm_head"], rel=1e-6)
    share = matrices["lm_head.weight"].size / sum(one.size for one in matrices.values())
    assert size["figures"]["modules.language.head.parameter_share"] == pytest.approx(share)


def test_what_is_frozen_is_named(tmp_path):
    """The embeddings, a layer; and the norm is said to be that of what changed. Of a tower every
    matrix of which is identical, the tower and not its modules and layers.
    """
    some = (*same("embed", None), *same(layer=9))
    unchanged = "Unchanged: the embeddings and layer 9."
    norm = "of the norm of the weights that changed"
    says(tmp_path, "size", model(), unchanged, norm, extra_tensors=some)
    tower = tuple(one for at in range(3) for one in same(layer=at, component="vision"))
    says(tmp_path, "size", model(), "Unchanged: the vision tower.", extra_tensors=tower)
    says(tmp_path, "size", model(), without=["Unchanged"])


def test_the_last_of_seven_unchanged_modules_is_named(tmp_path):
    """A name takes no more room than `1 more modules`; of eight, two are counted."""
    inside = [same(name, 0) for name in ("attn.k", "attn.v", "mlp.gate", "mlp.down")]
    outside = [same(name, None) for name in ("embed", "position", "head")]
    seven = (*chain(*inside, *outside),)
    says(tmp_path, "size", model(), "the head", without=["more modules"], extra_tensors=seven)
    eight = (*seven, *same("patch_embed", None))
    says(tmp_path, "size", model(), "and 2 more modules", extra_tensors=eight)


def test_a_frozen_head_is_named_before_modules_that_are_counted(tmp_path):
    """Nine modules of four layers are frozen beside a layer that changed: the head is not one of
    those that are only counted.
    """
    names = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.down", "shared.up")
    inside = [one for name in names for one in same(name, 0)]
    frozen = (*inside, *same("head", None))
    changed = [row(layer, "mlp.up") for layer in range(4)]
    says(tmp_path, "size", changed, "Unchanged: the head, ", extra_tensors=frozen)


def test_where_all_layers_are_frozen_their_modules_are_not_named_too(tmp_path):
    """Only the head changed: layers 0 to 3, and not mlp.up as well."""
    frozen = tuple(one for layer in range(4) for one in same("mlp.up", layer))
    says(
        tmp_path, "size", [row(None, "head")], "Unchanged: layers 0 to 3.", extra_tensors=frozen
    )  # fmt: skip


def test_of_a_grown_vocabulary_the_common_rows_are_unchanged(tmp_path):
    """The embeddings have more rows, so that they are not unchanged as a whole."""
    text = "Unchanged: the common rows of the embeddings"
    says(tmp_path, "size", model(), text, extra_tensors=grown(591, 551))


def test_experts_of_which_some_are_frozen_are_counted(tmp_path):
    """Three of four tensors of experts in the layer that changed; those of a layer that is frozen
    as a whole do not count.
    """
    experts = tuple(
        {**one, "tensor": f"experts.{layer}.{at}", "expert": at}
        for layer in (0, 9)
        for at in range(3)
        for one in same("experts.up", layer)
    )
    changed = [row(0, "experts.up")]
    text = "Unchanged: 3 of 4 tensors of the experts and layer 9."
    says(tmp_path, "size", changed, text, extra_tensors=experts)
    whole = [row(0, "mlp.up")]
    says(tmp_path, "size", whole, "Unchanged: experts.up", extra_tensors=experts)


def test_matrices_too_small_for_a_concentration_are_not_called_noise(tmp_path):
    """Of 3 x 3 matrices random signs leave as few directions as there are: nothing is told."""
    tiny = model(purity_z=0.5, concentration=None)
    found = told(tmp_path, tiny)
    assert "noise" not in codes(found)
    assert "noise" not in found.headline


def test_a_single_entry_is_not_called_low_rank(tmp_path):
    """One entry of a real file, and three in two matrices: they are counted, and nothing is said
    of rank or adapters.
    """
    base = {
        f"model.layers.{layer}.mlp.{name}_proj.weight": torch.randn(
            shape, generator=torch.Generator().manual_seed(layer)
        )
        for layer in range(2)
        for name, shape in (("up", (96, 64)), ("down", (64, 96)))
    }
    up, down = (f"model.layers.{at}_proj.weight" for at in ("0.mlp.up", "1.mlp.down"))
    for places, text in (
        ([(up, 5, 7)], "Only 1 of 6,144 entries changed, in mlp.up of layer 0."),
        (
            [(up, 5, 7), (up, 6, 7), (down, 1, 1)],
            "Only 3 of 12,288 entries changed, in mlp.up of layer 0 and mlp.down of layer 1.",
        ),
    ):
        tuned = {name: weight.clone() for name, weight in base.items()}
        for name, at, column in places:
            tuned[name][at, column] += 1
        for side, weights in (("base", base), ("tuned", tuned)):
            (tmp_path / side).mkdir(exist_ok=True)
            save_file(weights, tmp_path / side / "model.safetensors")
        shadow.audit(
            tmp_path / "base", tmp_path / "tuned", output=tmp_path / "out", overwrite=True
        )  # fmt: skip
        report = shadow.read(tmp_path / "out")
        found = read_summary(report.folder)[0].finding
        assert sentence(found, "few_entries") == text
        assert not {"low_rank", "coherent", "noise", "concentration"} & set(codes(found))
        assert found.other_explanations == []


def test_identical_models_have_the_tensors_of_one_side(tmp_path):
    """Two tensors on each side are two."""
    one = told(tmp_path / "one", [], extra_tensors=(*same(), *same(layer=3)))
    assert sentence(one, "identical").endswith(
        "The weights are the same: 2 weight tensors are identical."
    )
    towers = (*same(), *same(layer=3), *same(component="vision"))
    two = told(tmp_path / "two", [], extra_tensors=towers)
    assert "2 weight tensors of the language model and 1 of the vision tower are" in two.text


def test_the_norm_before_storage_is_told_where_it_differs(tmp_path):
    """0.2 % as stored and 0.14 % before; once where rounding changed it by under a twentieth."""
    sizes = {"frobenius_norm": 0.002, "relative_norm": 0.002}
    deltas = [{**one, **sizes, "relative_norm_unrounded": 0.001} for one in model(kept=0.5)]
    summary = summary_of(tmp_path, deltas)
    before = text_of(summary.figures["relative_norm_overall_unrounded"], "share")
    stored = text_of(summary.figures["relative_norm_overall"], "share")
    assert before != stored
    text = sentence(summary.finding, "size")
    assert text.startswith(
        f"Before storage, the change was {before} of the base matrices' norm ({stored} as stored)"
    )
    one = told(tmp_path / "not", model(relative_norm_unrounded=None))
    assert sentence(one, "size").startswith("The change is ")


def test_the_norm_before_storage_is_that_of_all_matrices_as_one_vector(tmp_path):
    """sqrt(sum (r W)²) / sqrt(sum W²) by plain Python; from the others where it is unknown of one
    matrix, null where it is unknown of most.
    """
    deltas = [
        {**one, "relative_norm_unrounded": 0.01 * (at + 1)} for at, one in enumerate(model(1))
    ]
    sizes = [1 + (at % 17) / 7 for at in range(len(deltas))]
    expected = math.hypot(*(0.01 * (at + 1) * size for at, size in enumerate(sizes))) / math.hypot(
        *sizes
    )
    figures = summary_of(tmp_path / "a", deltas).figures
    assert figures["relative_norm_overall_unrounded"] == pytest.approx(expected)
    assert figures["unrounded_share"] == 1.0
    deltas[0] |= {"relative_norm_unrounded": None, "frobenius_norm": 0.01}
    figures = summary_of(tmp_path / "b", deltas).figures
    stored = [one["frobenius_norm"] for one in deltas]
    of_known = math.hypot(*(0.01 * (at + 1) * size for at, size in enumerate(sizes) if at))
    known = of_known / math.hypot(*stored[1:]) * math.hypot(*stored) / math.hypot(*sizes)
    assert figures["relative_norm_overall_unrounded"] == pytest.approx(known)
    share = math.hypot(*stored[1:]) ** 2 / math.hypot(*stored) ** 2
    assert figures["unrounded_share"] == pytest.approx(share)
    most = [{**one, "relative_norm_unrounded": None} for one in deltas[:2]]
    unknown = summary_of(tmp_path / "d", [*most, *deltas[2:]]).figures
    assert unknown["relative_norm_overall_unrounded"] is None
    deltas[0]["kept_reason"] = "nothing_rounded"
    deltas[0]["relative_norm"] = 0.01
    assert summary_of(tmp_path / "c", deltas).figures[
        "relative_norm_overall_unrounded"
    ] == pytest.approx(expected)
