"""The words of findings: what a sentence says of which report. All else is asserted by codes."""

import math

import pytest
import reports
from finding_cases import (
    BEYOND,
    BROKEN,
    LEVELS,
    MIXED,
    MUST,
    PRUNED,
    RANK_8,
    ROUNDED,
    ROWS,
    SCALED,
    SETTINGS,
    SIBLINGS,
    UNKNOWN,
    UNREAD,
    WIDE,
    alone,
    elsewhere,
    grown,
    model,
    report,
    row,
    same,
    skipped,
    summary_of,
    vectors,
    with_head,
    with_swapped,
)

from shadow.telling.wording import layers_text

# biases, one of which changed by more than rounding
MOVED = tuple(
    {**one, "cast": "neither" if one["relative_norm"] else None} for one in vectors([0.1])
)
EXACT = {"kept": None, "kept_reason": "nothing_rounded", "floor_ratio": None}
ADAPTER = {**RANK_8, **EXACT, "rank_ceiling": 8}
ONLY = {**SETTINGS, "chosen": {"modules": ["mlp.up"]}}
UPS = [row(layer, "mlp.up") for layer in range(4)]
ONLY_TOWER = report(model(cosine=0.01), extra_tensors=same(component="vision"))
FILTERED = skipped("filtered", "attn.v", 3)
ABOVE = {"equivalent_directions": None, "excess_purity": 0.01, "excess_purity_unrounded": 0.01}


def some(module, figures, **others):
    """A model, some figures of one module of which are others."""
    return [{**one, **(figures if one["module"] == module else others)} for one in model()]


def with_rows(count, of):
    """A vocabulary that is not in the order of the base's 256 rows, in which some were found."""
    return elsewhere("rows", **{**ROWS, "rows": count, "tuned_rows": of, "in_front": None})


def layers(count, norm, first):
    """A matrix in each layer, those from one on with another norm."""
    return [row(at, "mlp.up", frobenius_norm=norm if at >= first else 0.05) for at in range(count)]


def still(deltas, count=12):
    """The tensors of a model of so many layers that no delta is of."""
    changed = {(one["layer"], one["module"]) for one in deltas}
    found = [(layer, name) for layer in range(count) for name in reports.MODULES]
    return [at for place in found if place not in changed for at in same(place[1], place[0])]


def of_twelve(*deltas):
    return report(list(deltas), extra_tensors=still(deltas))


def with_embeddings(times):
    norm = math.sqrt(times * 12 * 0.05**2)
    return report([*model(), row(None, "embed", parameters=12 * 64 * 96, frobenius_norm=norm)])


SEVEN = [
    *(one for name in ("attn.k", "attn.v", "mlp.gate", "mlp.down") for one in same(name, 0)),
    *(one for name in ("embed", "position", "head") for one in same(name, None)),
]
EXPERTS = [
    {**one, "tensor": f"experts.{layer}.{at}", "expert": at}
    for layer in (0, 9) for at in range(3) for one in same("experts.up", layer)
]  # fmt: skip
FROZEN = [one for at in range(4) for one in same("mlp.up", at)]
TOWER = [one for at in range(3) for one in same(layer=at, component="vision")]
GROUPED = [("attn.q", 96, 128), ("attn.v", 64, 96)]  # grouped-query attention


def grouped(**figures):
    return [
        row(layer, module, rows=rows, cols=cols, parameters=rows * cols, **figures)
        for layer in range(4) for module, rows, cols in GROUPED
    ]  # fmt: skip


TEXTS = [  # a report, the code of a sentence or `headline`, what it says, and what not (after -)
    # what was done to the weights
    (report(with_swapped(0.37)), "replaced", "2 matrices have little or nothing in common"),
    (report(model(**SCALED)), "scaled", "Every matrix that changed is the base's times 1.010;"),
    (report(model(**PRUNED)), "zeroed", "Entries were set to 0, as by pruning, and no other"),
    (report(model(cast="base", **ROUNDED)), "rounding", "12 tensors that changed are the"),
    (report([*model(cast="tuned", **ROUNDED), row(4, "mlp.up"), row(None, "head")]), "mostly_copy",
     "2 tensors changed by more than rounding. 12 more are the other side's in another"),
    (report(model(zero_share_excess=0.5)), "masked", "(by 50 % of those counted, in the median)"),
    # rows of a vocabulary: a side that has them all says what the other lacks
    (with_rows(255, 264), "rows_moved", "at least 255 of 264 rows are of the base's 256, some at"),
    (with_rows(255, 256), "rows_moved", "at other numbers, by equal entries."),
    (with_rows(255, 255), "rows_moved", "by equal entries; 1 row of the base is gone."),
    (with_rows(256, 264), "rows_moved", "by equal entries; 8 rows are new."),
    # what was not compared
    (report([], extra_tensors=(*same(), *BROKEN)), "nonfinite", "The tuned model is broken"),
    (report([], extra_tensors=(*same(), *grown(591, 551))), "left_out",
     "The vocabulary lost 40 rows (the embeddings: 551, in the base 591)."),
    (report([], extra_tensors=(*same(), *grown(591, 608))), "left_out", "grew by 17 rows"),
    (report([], extra_tensors=(*same(), *skipped("only_in_base", "mlp.up", 4, sides=["base"]))),
     "left_out", "Not compared: layer 4 (only in the base)."),
    (UNREAD, "left_out", "7.7 % of the parameters are left out: `shadow` cannot read"),
    (report([], extra_tensors=grown(100_000, 99_800)), "part_shared", "share only 99.8 % of"),
    (report([], extra_tensors=(*same(), *vectors([0.1, 0.2, 0.4]))), "only_vectors",
     "3 of 4 biases and norms changed, by 20 % of their norm in the median."),
    (report([], extra_tensors=(*same(), *same(layer=3))), "identical", "2 weight tensors are"),
    # size and place
    (report(with_head(0.46)), "size", "the head (46 %, with 7.7 % of the parameters)"),
    (report(with_head(0.12)), "size", "The head holds 12 %, with 7.7 % of the parameters."),
    (report(with_head(1 / 13)), "size", "-head"),
    (with_embeddings(1), "size", "in proportion to their size (the embeddings: 50 %"),
    (with_embeddings(1.5), "size", "most of it in the embeddings (60 %, with 50 % of the"),
    (of_twelve(row(5, "mlp.down")), "size", "all of it in mlp.down. Inside the layers, only"),
    (of_twelve(row(3, "attn.q"), row(3, "mlp.up")), "size", "only matrices of layer 3"),
    (report(layers(8, 0.2, 6)), "size", "layers 6 and 7 hold 84 % of it"),
    (report(layers(9, 0.2, 7)), "size", "Inside the layers, layers 6 to 8 hold"),
    (report(model(8)), "size", "-Inside the layers"),
    (report(model(), extra_tensors=(*same("embed", None), *same(layer=9))), "size",
     "Unchanged: the embeddings and layer 9."),
    (report(model(), extra_tensors=TOWER), "size", "Unchanged: the vision tower."),
    (report(model()), "size", "-Unchanged"),
    (report(model(), extra_tensors=SEVEN), "size", "-more modules"),
    (report(model(), extra_tensors=[*SEVEN, *same("patch_embed", None)]), "size", "2 more modules"),
    (report([row(None, "head")], extra_tensors=FROZEN), "size", "Unchanged: layers 0 to 3."),
    (report(model(), extra_tensors=grown(591, 551)), "size", "-embeddings"),
    (report([row(0, "experts.up")], extra_tensors=EXPERTS), "size",
     "Unchanged: layer 9."),
    (report(model(kept=0.5, frobenius_norm=0.002, relative_norm_unrounded=0.001)), "size",
     "Before storage, the change was 0.10 % of the base matrices' norm ("),
    # directions
    (report(model()), "coherent", "in the median as along 12 equally strong directions of 64."),
    (report([row(0, "mlp.up")]), "coherent", "-in the median"),
    (report(some("mlp.up", {}, **ABOVE)), "coherent", "but less than 64 equally strong directions"),
    (report(model(**UNKNOWN)), "coherent", "before storage is unknown."),
    (MUST["few_values"], "coherent", "the update was before storage is unknown."),
    (MUST["few_values"], "few_values", "part or all of the change"),
    (of_twelve(row(5, "mlp.down", spikes=2, spike_energy=0.3)), "coherent", "In the only matrix"),
    (report(model(**ADAPTER)), "low_rank", "It is an adapter: no matrix changed along"),
    (report(grouped(**ADAPTER)), "low_rank", "more than 8 of 64 to 96 directions."),
    (report(grouped(**RANK_8)), "low_rank", "8 of 64 to 96 directions hold all of it"),
    (report(model(purity_z=-20.0)), "noise", "flatter than noise: it is spread over more"),
    (MIXED, "noise", "In 3 of 12 matrices inside the layers, the change has more structure"),
    (report(model(levels_base=LEVELS["int8"], **WIDE)), "few_values", "The base looks dequantised"),
    (report(model(**UNKNOWN)), "kept", "one rounding fits too poorly"),
    (BEYOND, "rounded_away", "In 1 of 13 matrices inside the layers, the change is more than"),
    # headlines
    (MUST["only_vectors"], "headline", "Only biases and norms changed."),
    (MUST["scaled"], "headline", "The base's matrices times 1.010."),
    (MUST["zeroed"], "headline", "Changed by 5.0 %, by setting entries to 0, in all modules"),
    (MUST["few_entries"], "headline", "in 63 entries, all of it in mlp.up."),
    (MUST["replaced"], "headline", "with 2 matrices unlike the base's, in all modules alike."),
    (MUST["rounding"], "headline", "A copy of the base, only rounded."),
    (report(model(cast="tuned", **ROUNDED), extra_tensors=grown(300, 308)), "headline",
     "What was compared is a copy, only rounded."),
    (MUST["mostly_copy"], "headline", "64, all of it in mlp.up; 12 matrices only rounded."),
    (report([*model(cast="tuned", **ROUNDED)], extra_tensors=MOVED), "headline",
     "A rounded copy of the base, but for 1 tensor."),
    (BEYOND, "headline", "more than rounding in 1 of 13 matrices"),
    (MUST["identical"], "headline", "The weights are the same."),
    (MUST["unrelated"], "headline", "Nothing in common entry by entry."),
    (MUST["components_apart"], "headline", "The vision tower shares nothing with the"
     " base's; the language model changed by 2.7 %."),
    (MUST["components_apart"], "size", "Unchanged: the projector."),
    (ONLY_TOWER, "headline", "The language model shares nothing with the base's; the vision tower"
     " is the same."),
    (ONLY_TOWER, "unrelated", "Entry by entry, the language model shares nothing with the base's"),
    (ONLY_TOWER, "size", "Unchanged: the vision tower."),
    (report(model(cosine=0.01), extra_tensors=same("head", None)), "size", "Unchanged: the head."),
    (MUST["coherent"], "headline", "Changed by 5.0 %, spread over 12 directions of 64, in all"),
    (MUST["low_rank"], "headline", "Changed by 5.0 %, of rank 8 or less, in all modules alike."),
    (report(model(purity_z=-20.0)), "headline", "Changed by 5.0 %, flatter than noise, in all"),
    (MUST["noise"], "headline", "Changed by 5.0 %, like noise, in all modules alike."),
    (MIXED, "headline", "partly with more structure than noise, in all modules alike."),
    (MUST["rounded_away"], "headline", "as stored, mostly rounded away by storage"),
    (SIBLINGS, "headline", "Different by 2.7 %, spread over 12 directions of 64"),
    (report(model(cast="tuned", dtype="BF16/F8_E4M3", **ROUNDED)), "headline", "A copy of the"),
    (report(model(cast="base", dtype="F8_E5M2/BF16", **ROUNDED)), "headline",
     "The base is a copy of the tuned model, only rounded."),
    (report(model(cast="tuned", dtype="F32/BF16", **ROUNDED)), "headline", "A copy of the"),
    (report(UPS), "headline", "all of it in mlp.up."),
    (report(with_head(0.6)), "headline", "most of it in the head."),
    (report(with_head(0.46)), "headline", "64, 46 % of it in the head."),  # before several equals
    (report(UPS, settings=ONLY, extra_tensors=FILTERED), "headline", "-all of it"),
    (report(UPS, settings=ONLY, extra_tensors=(*FILTERED, *same("attn.q"))), "headline",
     "all of it in mlp.up."),
    (report([], settings=ONLY, extra_tensors=same()[:1]), "headline", "Every matrix that was"),
    (report(model(), extra_tensors=same()), "headline", "A part changed, by 5.0 %, spread over"),
    (report(model(**SCALED), extra_tensors=same()), "headline", "12 of the base's matrices times"),
    (report(with_swapped(0.3)), "headline", "-replaced"),
    (report(model(purity_z=0.5, concentration=None)), "headline", "-noise"),
    (report(model(**{**UNKNOWN, "floor_ratio": 8.0, "equivalent_directions": 40.0}, dtype="F16")),
     "headline", "as stored, with more structure than noise"),
    (report([], extra_tensors=(*same(), *vectors([0.1]), *alone(1))), "headline",
     "Of what was compared, only biases and norms changed."),
    (report(model(), extra_tensors=(
        *skipped("only_in_base", "mlp.down", 0, sides=["base"]),
        *skipped("only_in_base", "mlp.down", 2, sides=["base"]),
        *skipped("only_in_base", "mlp.up", 7, sides=["base"]),
        *skipped("only_in_base", "mlp.up", 9, sides=["base"]),
        *skipped("only_in_base", "norm", None, sides=["base"]),
    )), "headline", "Missing: layers 7 and 9; mlp.down of layers 0 and 2 and 1 norm. Changed by"),
    (report([], extra_tensors=(*same(), *alone(1))), "headline", "Every matrix that was compared"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "code", "text"), TEXTS, ids=[text for _, _, text in TEXTS])
def test_what_is_said(tmp_path, made, code, text):
    deltas, more = made
    found = summary_of(tmp_path, deltas, **more).finding
    said = [one.text for one in found.sentences if one.code == code]
    (said,) = [found.headline] if code == "headline" else said
    assert (text.removeprefix("-") in said) != text.startswith("-"), said


@pytest.mark.parametrize("code", MUST)
def test_a_headline_is_one_short_line(must, code):
    found = must(code).finding
    assert len(found.headline.splitlines()) == 1
    assert len(found.headline) < 100
    assert str(found) == f"{found.headline} {found.text}"


@pytest.mark.parametrize(("numbers", "text"), [
    ([7, 0, 3, 1, 2, 5], "layers 0 to 3, 5 and 7"),
    ([4], "layer 4"),
    ([1, 2], "layers 1 and 2"),  # two are as short as their span
    ([*range(0, 40, 2)], "layers 0, 2, 4, 6, 8, 10 and 14 more"),
    (range(1, 2_000_000_001), "layers 1 to 2000000000"),
], ids=str)  # fmt: skip
def test_layers_in_a_row_are_a_span(numbers, text):
    assert layers_text(numbers) == text
