"""What findings are told of, row by row; the report that each sentence needs; and the check that
every number of a finding is one of its tables.
"""

import math

import reports

from shadow.gates.document import gate_document
from shadow.outputs.markdown import markdown
from shadow.summary.layer_medians import TOPS
from shadow.telling.reading import read_summary
from shadow.telling.report import report_document

SETTINGS = {
    "method": {"level": "full"}, "chosen": {}, "relation": "tuned",
}  # fmt: skip
LEVELS = {"bf16": 0.70, "int8": 0.14}
WIDE = {"rows": 1024, "cols": 1024}


def row(layer, module, /, **figures):
    """A fine-tune's delta, far above its rounding, with structure, but for what is told."""
    usual = {
        "frobenius_norm": 0.05, "kept": 0.999, "kept_history": "far_above", "purity_z": 300.0,
        "numerical_rank": 64, "equivalent_directions": 12.0, "relative_norm_unrounded": 0.0499,
        "rank_90": 30, "rank_95": 40, "rank_99": 55, "alignment_left": 1.0,
        "alignment_left_null": 1.0, "alignment_right": 1.0, "alignment_right_null": 1.0,
        "decay_cosine": 0.0, "levels_base": 0.7, "levels_tuned": 0.7, "spikes": 0,
        **{f"top{k}_energy": k / 64 for k in TOPS},
    }  # fmt: skip
    return reports.delta(
        0.3, reports.place(layer, module), **{"parameters": 64 * 96, **usual, **figures}
    )


def model(layers=4, **figures):
    return [row(layer, module, **figures) for layer in range(layers) for module in reports.MODULES]


MADE = {}


def summary_of(folder, deltas, **more):
    """Of equal reports one is written and summarised."""
    key = repr((deltas, more))
    if key not in MADE:
        MADE[key] = read_summary(reports.write(folder / "base..tuned", deltas, **more))[0]
    return MADE[key]


def recorded(folder, deltas, **more):
    return summary_of(folder, deltas, **more).finding


def same(module="mlp.up", layer=9, component="language"):
    """The two sides of a tensor that is identical."""
    where = {
        "component": component, "layer": layer, "module": module, "status": "identical",
        "shape": [64, 96],
    }  # fmt: skip
    return tuple(
        {**where, "tensor": f"{component}.{layer}.{module}", "side": side}
        for side in ("base", "tuned")
    )


def alone(count):
    """Tensors of the base that have no partner."""
    return tuple(
        {
            "component": "language", "layer": 20 + at, "module": "mlp.up", "tensor": f"more.{at}",
            "status": "skipped", "reason": "only_in_base",
        }
        for at in range(count)
    )  # fmt: skip


def skipped(reason, module, layer, detail=None, shape=(64, 96), sides=("base", "tuned")):
    """A tensor that was not measured, as the two sides have it."""
    where = {"component": "language", "layer": layer, "module": module, "reason": reason}
    return tuple(
        {
            **where, "tensor": f"skipped.{layer}.{module}", "side": side, "status": "skipped",
            "detail": detail, "shape": list(shape), "compared": 0,
        }
        for side in sides
    )  # fmt: skip


def vectors(norms, count=4):
    """Biases that were compared, of these relative norms; the others did not move."""
    recorded = [*norms, *[0.0] * (count - len(norms))]
    return tuple(
        {**one, "relative_norm": norm, "compared": 64}
        for layer, norm in enumerate(recorded)
        for one in skipped("not_a_matrix", "bias", layer, shape=[64])
    )


def grown(base_rows, tuned_rows, module="embed"):
    """A vocabulary of two sizes, the common rows of which are identical."""
    common = min(base_rows, tuned_rows) * 64
    return tuple(
        {
            **one, "tensor": module, "shape": [rows, 64], "compared": common, "relative_norm": 0.0,
            "status": "identical",
        }
        for one, rows in zip(same(module, None), (base_rows, tuned_rows), strict=True)
    )  # fmt: skip


def with_swapped(cosine=0.02):
    """Twelve matrices, two of which are others."""
    return [*model(), *[row(at, "attn.v", cosine=cosine) for at in (2, 3)]]


def with_tower(cosine):
    """Twelve matrices of a language model, and two of a vision tower."""
    names = ("attn.q", "mlp.up")
    of = {"component": "vision", "cosine": cosine, "relative_norm": 1.4}
    return [*model(), *[row(0, name, tensor=f"v.{name}", **of) for name in names]]


def report(deltas, **more):
    """What a report is of."""
    return deltas, more


def elsewhere(kind, **figures):
    """Twelve matrices, and what an audit found to have other numbers; of no figures, nothing."""
    found = {"layers": [], "matrices": [], "experts": [], "rows": []}
    return report(model(), correspondence={**found, kind: [figures] if figures else []})


UNITS = {"component": "language", "layers": [], "missing": [1], "new": [], "runs": [], "by": []}
ROWS = {"component": "language", "module": "embed", "rows": 256, "base_rows": 256,
        "tuned_rows": 264, "in_front": 8, "by": "content"}  # fmt: skip
OTHERS = {"component": "language", "modules": ["attn.q"], "layer": 1, "base_layer": 0,
          "by": "likeness"}  # fmt: skip


def turned(scale=1.0, spread=0.0):
    """Twelve matrices, one of them far from the base's with nearly its singular values."""
    return [*model(), row(2, "mlp.gate", cosine=0.01, sigma_scale=scale, sigma_scale_iqr=spread)]


BROKEN = tuple(
    {**tensor, "nonfinite": int(tensor["side"] == "tuned")}
    for tensor in skipped("nonfinite", "mlp.up", 2)
)
SCALED = {"decay_cosine": 1.0, "relative_norm": 0.01}
PRUNED = {"relative_norm": 0.12, "zero_share": 0.7, "zeroed": 1}


def with_head(share):
    """A model, and a head of a share of the energy with the parameters of one matrix of twelve."""
    energy = 12 * 0.05**2
    return [*model(), row(None, "head", frobenius_norm=math.sqrt(energy * share / (1 - share)))]


ROUNDED = {
    "kept": 0.1, "kept_reason": "rounded_away", "kept_history": "stored_base", "floor_ratio": 0.05,
}  # fmt: skip
ROUNDED |= {"relative_norm_unrounded": None, "equivalent_directions": None, "purity_z": 1.0}
UNKNOWN = {
    "kept": None, "kept_reason": "rounding_unexplained", "kept_history": None, "floor_ratio": 1.5,
}  # fmt: skip
UNKNOWN |= {"relative_norm_unrounded": None, "equivalent_directions": None}
RANK_8 = {"rank_90": 8, "rank_95": 8, "rank_99": 8, "numerical_rank": 64}
RANK_8 |= {"rest_rank": 8, "rest_energy": 0.001, "rest_over_rounding": 1.0}
RANK_8 |= {f"top{k}_energy": min(1.0, k / 8) * 0.9995 for k in TOPS}


MUST = {  # by code: what a report has to be of for the sentence to stand there
    "identical": report([], extra_tensors=same()),
    "nonfinite": report(model(), extra_tensors=BROKEN),
    "left_out": report(model(), extra_tensors=alone(1)),
    "only_vectors": report([], extra_tensors=(*same(), *vectors([0.1, 0.2]))),
    "vectors": report(model(), extra_tensors=vectors([0.9, 0.9, 0.9])),
    "mostly_copy": report([*model(cast="tuned", **ROUNDED), row(4, "mlp.up")]),
    "replaced": report(with_swapped()),
    "scaled": report(model(**SCALED)),
    "zeroed": report(model(**PRUNED)),
    "few_entries": report([row(1, "mlp.up", zero_share=1 - 63 / (64 * 96))]),
    "masked": report(model(zero_share_excess=0.3)),
    "unrelated": report(model(cosine=0.01, relative_norm=1.4)),
    "components_apart": report(with_tower(0.099), extra_tensors=same(component="projector")),
    "layers_moved": elsewhere("layers", **UNITS),
    "matrices_moved": elsewhere("matrices", **OTHERS),
    "experts_moved": elsewhere("experts", **{**UNITS, "layers": [0, 1]}),
    "rows_moved": elsewhere("rows", **ROWS),
    "not_comparable": report(turned()),
    "part_asked_for": report(
        model(), settings={**SETTINGS, "chosen": {"layers": [0]}}, extra_tensors=alone(12)
    ),
    "part_shared": report(model(), extra_tensors=alone(12)),
    "size": report(model()),
    "coherent": report(model()),
    "low_rank": report(model(**RANK_8)),
    "noise": report(model(purity_z=0.5)),
    "few_values": report(model(levels_tuned=LEVELS["int8"], **WIDE)),
    "rounded_away": report(model(**ROUNDED)),
    "rounding": report(model(cast="tuned", **ROUNDED)),
    "kept": report(model(kept=0.5, floor_ratio=0.8)),
}
UNREAD = report(model(), extra_tensors=tuple({**one, "reason": "quantized"} for one in alone(1)))
MIXED = report([*model(3, purity_z=0.5), *model(4)[9:]])
BEYOND = report([*model(**ROUNDED), row(4, "attn.q")])
SIBLINGS = report(model(), settings={**SETTINGS, "relation": "sibling"})
MUST_NOT = {  # a near miss of the same code
    "identical": report(model(1), extra_tensors=same()),
    "nonfinite": report(model(), extra_tensors=alone(1)),
    "left_out": report(model(), extra_tensors=BROKEN),
    "only_vectors": report([], extra_tensors=(*same(), *vectors([]))),
    "vectors": report(model(), extra_tensors=vectors([0.9, 0.1], 5)),
    "mostly_copy": report(model(cast="tuned", **ROUNDED)),
    "replaced": report(with_tower(0.099)),  # said of the component
    "scaled": report([*model(**SCALED), row(4, "mlp.up", decay_cosine=0.99)]),
    "zeroed": report(model(**{**PRUNED, "zero_share": 0.0})),
    "few_entries": report([row(1, "mlp.up", zero_share=1 - 64 / (64 * 96))]),
    "masked": report(model(zero_share_excess=0.29)),
    "unrelated": report(model(cosine=0.3)),
    "components_apart": report(with_tower(0.1), extra_tensors=same(component="projector")),
    "layers_moved": elsewhere("layers"),
    "matrices_moved": elsewhere("matrices", **{**OTHERS, "layer": "1"}),  # no audit writes that
    "experts_moved": elsewhere("layers", **UNITS),
    "rows_moved": elsewhere("rows"),
    "not_comparable": report(turned(spread=0.02)),
    "part_asked_for": report(model(), extra_tensors=alone(12)),
    "part_shared": report(model(), extra_tensors=alone(1)),
    "size": report([], extra_tensors=same()),
    "coherent": report(model(purity_z=4.9)),
    "low_rank": report(model(**{**RANK_8, "rest_over_rounding": 1.3})),
    "noise": report(model(purity_z=5.1)),
    "few_values": report(model(levels_tuned=LEVELS["bf16"], **WIDE)),
    "rounded_away": report(model(kept=0.3, floor_ratio=0.3)),
    "rounding": report(model(**{**ROUNDED, "floor_ratio": 1.0})),
    "kept": report(model(kept=0.95)),
}


def codes(found):
    return [one.code for one in found.sentences]


def answers(found):
    return {one.code: one for one in found.other_explanations}


# numbers of a finding


def tables(summary):
    """Every figure of a summary by its place, got from the JSON."""
    recorded = summary.as_json()
    found = {
        f"{key}.{name}": value
        for key in ("figures", "inside_layers", "counts")
        for name, value in recorded[key].items()
    }
    found |= {f"gates.{gate['name']}.figure": gate["figure"] for gate in recorded["gates"]}
    for key, names in (
        ("modules", ("component", "module")),
        ("coherence", ("component", "module")),
        ("components", ("component",)),
        ("quarters", ("component", "quarter")),
        ("depth", ("component", "layer")),
    ):
        for one in recorded[key]:
            place = ".".join(str(one[name]) for name in names)
            found |= {f"{key}.{place}.{name}": value for name, value in one.items()}
    found |= {f"vectors.{name}": value for name, value in recorded["vectors"].items()}
    for one in recorded["vocabulary"]:
        place = f"vocabulary.{one['component']}.{one['module']}"
        found |= {f"{place}.{name}": value for name, value in one.items()}
    named = ("rearranged.not_comparable", "casts")
    for key in ("replaced", "scaled", "zeroed", "few_entries", "masked", *named):
        of_key = recorded["recognised"]
        for name in key.split("."):
            of_key = of_key.get(name) or {}
        found |= {f"recognised.{key}.{name}": value for name, value in of_key.items()}
    for one in (recorded["correspondence"] or {"rows": []})["rows"]:
        place = f"correspondence.rows.{one['module']}"
        found |= {f"{place}.{name}": value for name, value in one.items()}
    found |= {f"published.{key}": value for key, value in (recorded["published"] or {}).items()}
    return found


def check(summary):
    """Every figure of a sentence or an explanation is the tables'."""
    known = tables(summary)
    for one in [*summary.finding.sentences, *summary.finding.other_explanations]:
        for place, value in one.figures.items():
            assert known[place] == value, place


def card(summary, metadata):
    """The Markdown of a report."""
    return markdown(report_document(summary, metadata).shown())


def step(judged):
    """The Markdown of a CI step."""
    return markdown(gate_document([judged]))
