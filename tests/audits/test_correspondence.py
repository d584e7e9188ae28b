"""Pairs whose numbers disagree with their content: what corresponds is found, said and measured."""

from __future__ import annotations

import json

import numpy as np
import planted
import pyarrow.parquet as pq
import pytest
import torch
from effort import every
from planted import OF_EXPERT, OF_LAYER, experts, layers

import shadow
from shadow.checkpoints.pairing import Filter
from shadow.engines import pair as engine
from shadow.engines.pair import run_pair
from shadow.relations.matching import choose
from shadow.relations.signature import Signature
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.families import Pair
from shadow.targets.references import Reference

LAYERS, EXPERTS, ROWS, WIDTH = 5, 4, 96, 48
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def model(kind, seed=7):
    """A decoder with norms, tied or not, or with experts and routers."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randn(*shape, generator=generator)

    tensors = {EMBED: some(ROWS, WIDTH), "model.norm.weight": 1 + 0.1 * some(WIDTH)}
    if kind != "tied":
        tensors[HEAD] = some(ROWS, WIDTH)
    shapes = {"gate_proj": (80, WIDTH), "up_proj": (80, WIDTH), "down_proj": (WIDTH, 80)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors[f"{at}.input_layernorm.weight"] = 1 + 0.1 * some(WIDTH)
        for one in "qkvo":
            tensors[f"{at}.self_attn.{one}_proj.weight"] = some(WIDTH, WIDTH)
        of_mlp = [f"{at}.mlp"]
        if kind == "experts":
            tensors[f"{at}.mlp.gate.weight"] = some(EXPERTS, WIDTH)
            of_mlp = [f"{at}.mlp.experts.{expert}" for expert in range(EXPERTS)]
        for mlp in of_mlp:
            tensors |= {f"{mlp}.{name}.weight": some(*shape) for name, shape in shapes.items()}
    return tensors


def rows(order):
    """The rows of these numbers of embedding and head; -1 is a new one."""

    def change(base):
        order_of_rows = torch.as_tensor(order)
        new = torch.randn(len(order), WIDTH, generator=torch.Generator().manual_seed(8))
        is_new = (order_of_rows < 0)[:, None]
        names = [name for name in (EMBED, HEAD) if name in base]
        return base | {name: torch.where(is_new, new, base[name][order_of_rows]) for name in names}

    return change


def attention_of_others(base):
    return base | {
        name: base[name.replace("layers.3", "layers.2")]
        for name in base
        if "layers.3.self_attn" in name
    }


def blocks_added(base):
    """LLaMA-Pro: a copy of layer 1 behind it, which writes nothing yet."""
    made = layers(0, 1, 1, 2, 3, 4)(base)
    ends = ("layers.2.self_attn.o_proj.weight", "layers.2.mlp.down_proj.weight")
    return made | {name: torch.zeros_like(one) for name, one in made.items() if name.endswith(ends)}


def both(first, second):
    return lambda base: second(first(base))


KEPT = [at for at in range(ROWS) if at % 3]
# kinds of models, the change, and what it is of: missing, new and runs, or figures of a row
CHANGES = {
    "first dropped": ("plain tied", layers(1, 2, 3, 4), {"layers": ([0], [], [(0, 3, 1)])}),
    "dropped": ("plain experts", layers(0, 1, 3, 4), {"layers": ([2], [], [(2, 3, 3)])}),
    "doubled": ("plain tied", layers(0, 1, 2, 1, 2, 3, 4), {"layers": ([], [], [(3, 6, 1)])}),
    "blocks added": ("plain", blocks_added, {"layers": ([], [], [(2, 5, 1)])}),
    "exchanged": (
        "plain tied", layers(0, 3, 2, 1, 4), {"layers": ([], [], [(1, 1, 3), (3, 3, 1)])}
    ),
    "attention": ("plain experts", attention_of_others, {"matrices": (3, 2)}),
    "pruned": ("experts", experts(0, 2), {"experts": ([1, 3], [], [(1, 1, 2)])}),
    "permuted": ("experts", experts(1, 0, 2, 3), {"experts": ([], [], [(0, 0, 1), (1, 1, 0)])}),
    "dropped and pruned": (
        "experts",
        both(layers(0, 2, 3, 4), experts(0, 2, 3)),
        {"layers": ([1], [], [(1, 3, 2)]), "experts": ([1], [], [(1, 2, 2)])},
    ),
    "subset": ("plain tied", rows(KEPT), {"rows": (64, 64, 96, None)}),
    "put in front": ("plain tied", rows(range(-8, ROWS)), {"rows": (96, 104, 96, 8)}),
    "grown": ("plain", rows([*range(ROWS), -1, -1]), {}),
    "same": ("plain tied experts", lambda base: dict(base), {}),
}  # fmt: skip
CASES = [
    (name, kind, dtype, size)
    for name, (kinds, _, _) in CHANGES.items()
    for kind in kinds.split()
    for dtype, size in (("float32", 0.0), ("bfloat16", 0.01), ("bfloat16", 0.0), ("float32", 0.01))
]


def stored(tensors, dtype, size=0.0, seed=9):
    """Tensors in a format, after noise of a relative size on every entry."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, one in tensors.items():
        noise = torch.randn(one.shape, generator=generator)
        made[name] = (one + size * one.std() * noise).to(getattr(torch, dtype))
    return made


def config_of(kind):
    named = {"model_type": "qwen3_moe", "num_experts": EXPERTS} if kind == "experts" else {}
    return {**planted.LLAMA, "tie_word_embeddings": kind == "tied", **named}


def audited(folder, base, tuned, kind, tokenizers=None, **asked):
    """The report of two models; base: its tensors, or its folder; tokenizers: by side, the content
    of its tokenizer.json.
    """
    sides = {"base": base, "tuned": tuned}
    for side, tensors in sides.items():
        if isinstance(tensors, dict):
            sides[side] = planted.write(folder / side, tensors, config_of(kind))
    for side, content in (tokenizers or {}).items():
        (folder / side / "tokenizer.json").write_bytes(content)
    named = {side: str(path) for side, path in sides.items()}
    return shadow.audit(**named, output=folder / "out", **{"level": "norms", **asked})


def found_in(correspondence):
    """The facts of a summary as the table above writes them."""
    facts = {}
    for key in ("layers", "experts"):
        for one in correspondence[key]:
            runs = [(run["first"], run["last"], run["base_first"]) for run in one["runs"]]
            facts[key] = one["missing"], one["new"], runs
    for one in correspondence["rows"]:
        facts["rows"] = one["rows"], one["tuned_rows"], one["base_rows"], one["in_front"]
    for one in correspondence["matrices"]:
        assert one["modules"] == ["attn.k", "attn.o", "attn.q", "attn.v"]
        facts["matrices"] = one["layer"], one["base_layer"]
    return facts


@pytest.mark.parametrize("case", every(3, CASES), ids=str)
def test_what_corresponds_is_found_and_measured(tmp_path, case):
    """Made, or with noise on every entry: the answer is the same, and what is compared is equal, or
    that noise apart. Healthy pairs are silent.
    """
    name, kind, dtype, size = case
    base = model(kind)
    _, change, facts = CHANGES[name]
    report = audited(tmp_path, stored(base, dtype), stored(change(base), dtype, size), kind)
    matched = report.summary.correspondence
    assert (found_in(matched) if matched else {}) == facts
    codes = {sentence.code for sentence in report.summary.finding.sentences}
    assert {code for code in codes if code.endswith("_moved")} == {f"{key}_moved" for key in facts}
    assert not codes & {"unrelated", "replaced", "all_zero"}
    of_tuned = {int(number[1]) for number in map(OF_LAYER.search, change(base)) if number}
    assert {row.layer for row in report.summary.depth} == of_tuned
    compared = report.tensors[report.tensors["matched_by"].notna()]
    ways = set(compared["matched_by"])
    assert ways - {"number"} == ({"likeness" if size else "content"} if facts else set())
    if size:
        assert report.deltas["cosine"].min() > 0.99
        assert report.summary.figures.relative_norm_overall == pytest.approx(size, rel=0.1)
    else:
        assert set(compared["status"]) == {"identical"} | {"skipped"} & set(compared["status"])
        assert not (compared["relative_norm"] > 0).any()


CLAIMS = [("stored", {}), ("trained", {"frozen": "*"}), ("trained", {"moved": "*"})]  # in turn


@pytest.mark.parametrize("case", every(5, CASES), ids=str)
def test_a_model_whose_numbers_changed_is_a_relative(tmp_path, case):
    """`related` names its base as the nearest, also beside a sibling of it; nothing else is one."""
    name, kind, dtype, size = case
    base = stored(model(kind), dtype)
    _, change, facts = CHANGES[name]
    sides = {
        "tuned": stored(change(model(kind)), dtype, size), "base": base,
        "sibling": stored(base, dtype, 0.05, seed=10), "other": model(kind, seed=11),
    }  # fmt: skip
    tuned, near, sibling, other = (
        planted.write(tmp_path / side, tensors, config_of(kind)) for side, tensors in sides.items()
    )
    found = shadow.verify("related", tuned, sibling, other, near).answer.reasons[0]
    assert (found.code, found.figures["name"]) == ("nearest", str(near))
    is_moved = bool({"layers", "experts"} & facts.keys())
    assert found.figures["how"].code == ("moved" if is_moved else "related")
    assert shadow.verify("related", tuned, other).holds is False
    claim, asked = CLAIMS[CASES.index(case) % len(CLAIMS)]
    first, second = (shadow.verify(claim, side, tuned, **asked) for side in (near, other))
    is_noted = "other_numbers" in {statement.code for statement in first.statements}
    assert is_noted is (is_moved and first.holds is False) or "matrices" in facts
    assert "other_numbers" not in {statement.code for statement in second.statements}


@pytest.mark.parametrize(
    ("name", "code"),
    [("same", None), ("exchanged", "other_numbers"), ("attention", "other_numbers")],
)
def test_what_moved_by_number_alone_is_left_open(tmp_path, name, code):
    """`moved` does not hold of layers at other numbers, and says how far they moved beside it."""
    base = model("plain")
    tuned = stored(CHANGES[name][1](base), "float32", 0.01)
    sides = [planted.write(tmp_path / at, one, config_of("plain")) for at, one in
             (("base", base), ("tuned", tuned))]  # fmt: skip
    found = shadow.verify("moved", *sides)
    assert found.holds is (None if code else True)
    codes = [statement.code for statement in found.statements]
    assert "component_moved" in codes
    assert code in (codes[0], None)


def in_stacks(tensors):
    """The same model, with the experts of a layer in one tensor."""
    made = {name: one for name, one in tensors.items() if ".experts." not in name}
    stacks = {}
    for name in sorted(tensors.keys() - made.keys()):
        stacks.setdefault(OF_EXPERT.sub("experts.", name).removesuffix(".weight"), []).append(name)
    return made | {to: torch.stack([tensors[name].T for name in of]) for to, of in stacks.items()}


# kinds of models, the change, and how many matrices of the base are compared: all of the layers and
# experts that are left, without routers and vocabularies of other rows
COMPARED = {
    "first dropped": ("plain tied", 4 * 7), "dropped": ("experts", 4 * 17),
    "doubled": ("plain", 5 * 7), "exchanged": ("tied", 5 * 7), "attention": ("plain", 5 * 7 - 4),
    "pruned": ("experts stacks", 5 * 10), "permuted": ("experts stacks", 5 * 16),
    "dropped and pruned": ("experts stacks", 4 * 13), "put in front": ("plain", 5 * 7),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_models_of_one_base_are_compared_on_what_both_have(tmp_path, name):
    """A fine-tune, and one with other numbers that moved twice as far: in each matrix, though the
    steps of layers and experts differ.
    """

    def trained(base, size, seed):
        generator = torch.Generator().manual_seed(seed)
        made = {}
        for key, one in base.items():
            numbers = [pattern.search(key) for pattern in (OF_LAYER, OF_EXPERT)]
            step = size * (1 + sum(int(number[1]) for number in numbers if number))
            made[key] = one + step * one.std() * torch.randn(one.shape, generator=generator)
        return made

    kinds, inside = COMPARED[name]
    for kind in kinds.split():
        base = model(of := "experts" if kind == "stacks" else kind)
        form = in_stacks if kind == "stacks" else dict
        sides = trained(base, 0.01, 1), CHANGES[name][1](trained(base, 0.02, 2))
        there = planted.write(tmp_path / f"{kind} base", form(base), config_of(of))
        reports = [
            audited(tmp_path / f"{kind} {at}", there, stored(form(side), "float32"), of)
            for at, side in enumerate(sides)
        ]
        (found,) = shadow.compare(*reports).contrasts
        norm = next(one for one in found.figures if one.figure == "relative_norm")
        assert found.matched.in_layers == inside
        assert (norm.low, norm.high) == pytest.approx((np.log(0.5),) * 2, abs=0.05)


def numbered(texts):
    return {text: row for row, text in enumerate(texts)}


def tokenizer(vocabulary, added=()):
    return json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}).encode()


TEXTS, OTHERS = ([f"{letter}{row}" for row in range(ROWS)] for letter in "tu")
MIXED = np.random.default_rng(4).permutation(ROWS).tolist()
SOME = [-1, *KEPT[:40], -1, *KEPT[50:]]  # new rows among those that were left
TOKENS = {  # rows of the base, noise, texts of the tuned side, which rows have it, how they match
    "trimmed": (KEPT, 0.1, TEXTS, 1, "token"), "reordered": (MIXED, 0.1, TEXTS, 1, "token"),
    "far": (MIXED, 0.9, TEXTS, 1, "token"), "added and dropped": (SOME, 0.1, TEXTS, 1, "token"),
    "trained in part": (KEPT, 0.1, TEXTS, 3, "token"), "equal": (KEPT, 0.0, TEXTS, 1, "content"),
    "renamed": (KEPT, 0.1, OTHERS, 1, "likeness"), "without": (KEPT, 0.1, None, 1, "likeness"),
    "of others": (KEPT, 0.1, TEXTS[7:] + TEXTS[:7], 1, "likeness"),
    "in place": ([*range(ROWS)], 0.9, TEXTS, 1, "number"),
}  # fmt: skip
KINDS = ("tied", "bfloat16"), ("plain", "float32")


@pytest.mark.parametrize(
    "case", every(2, [(name, *of) for name in TOKENS for of in KINDS]), ids=str
)
def test_rows_match_by_the_text_of_their_tokens(tmp_path, case):
    """Figures are those of rows paired by their text; otherwise as without tokenizers."""
    name, kind, dtype = case
    order, noise, texts, step, by = TOKENS[name]
    base = stored(model(kind), dtype)
    tuned = stored(rows(order)(model(kind)), dtype)
    names = {EMBED, HEAD} & {*tuned}
    for key in names:
        tuned[key][::step] = stored({key: tuned[key]}, dtype, noise)[key][::step]
    tokenizers = {"base": tokenizer(numbered(TEXTS))}
    if texts is not None:
        own = [texts[row] if row >= 0 else f"new{at}" for at, row in enumerate(order)]
        tokenizers["tuned"] = tokenizer(numbered(own))
    report = audited(tmp_path, base, tuned, kind, tokenizers)
    paired = [at for at, row in enumerate(order) if row >= 0]
    deltas = report.deltas.set_index("tensor")
    assert {*deltas.index} == (names if noise else set())
    for key, found in deltas.iterrows():
        first = base[key].double().numpy()[[order[at] for at in paired]]
        second = tuned[key].double().numpy()[paired]
        assert (found["matched_by"], found["rows"]) == (by, len(paired))
        far = np.linalg.norm(second - first) / np.linalg.norm(first)
        assert found["relative_norm"] == pytest.approx(far, rel=1e-6)
    matched = report.summary.correspondence
    assert (matched is None) is (by == "number")
    for row in matched.rows if matched else []:
        assert [row.rows, row.tuned_rows, row.base_rows] == [len(paired), len(order), ROWS]
        (text,) = [one.text for one in report.summary.finding.sentences if one.code == "rows_moved"]
        assert ("by the text of their tokens" in text) is (by == "token")
        is_gone = f"; {ROWS - len(paired)} rows of the base are gone" in text
        assert (is_gone, "at least" in text) == (order == KEPT, order == SOME)


HOSTILE = {
    "none": None, "empty": b"", "cut": tokenizer(numbered(TEXTS))[:-9],
    "deep": b'{"model": {"vocab": ' + b"[" * 10**6, "twice": b'{"t": 1, "t": 2}',
    "one number": tokenizer(dict.fromkeys(TEXTS, 1)),
    "beyond": tokenizer({text: row * 10**30 - 5 for row, text in enumerate(TEXTS)}),
    "list": tokenizer([7, [], ["t1"], {"content": "t2"}], {"id": 3}),
    "many": tokenizer({str(number): number for number in range(10**5)}),
}  # fmt: skip


def test_a_tokenizer_that_cannot_be_used_costs_nothing(tmp_path):
    """The report is that of a pair without one."""
    tuned = stored(rows(KEPT)(model("tied")), "float32", 0.1)
    tables = {}
    own = tokenizer(numbered(TEXTS[at] for at in KEPT))
    for name, content in HOSTILE.items():
        both = {"base": content, "tuned": own} if content is not None else {}
        report = audited(tmp_path / name, model("tied"), tuned, "tied", both)
        tables[name] = pq.read_table(report.folder / "matrices.parquet").drop_columns(["pair"])
    assert {name for name, table in tables.items() if table == tables["none"]} == {*HOSTILE}
    assert "likeness" in tables["none"]["matched_by"].to_pylist()


@pytest.mark.parametrize(("order", "numbers", "size", "units"), [
    ((0, 2, 2, 1, 2, 3), (0, 3, 4), 0.0, {}),  # it has its number
    ((0, 2, 2, 1, 2, 3), (0, 1, 2, 4), 0.0, {3: [2, 1, 4]}),
    ((0, 1, 2, 2, 3), (0, 2, 4), 0.0, {1: [2, 3]}),
    ((0, 1, 2, 2, 3), (0, 2, 4), 0.01, {1: [2]}),  # which of the two, nobody knows
])  # fmt: skip
def test_a_layer_that_is_several_of_the_base_is_said_to_be(tmp_path, order, numbers, size, units):
    """Where the base has copies, all of them are named; the nearest that fits is measured."""
    base = stored(layers(*order)(model("plain")), "bfloat16")
    tuned = stored(layers(*numbers)(base), "bfloat16", size)
    report = audited(tmp_path, base, tuned, "plain")
    (row,) = report.summary.correspondence.layers
    (text,) = [one.text for one in report.summary.finding.sentences if one.code == "layers_moved"]
    for number, own in units.items():
        assert [run.base_first for run in row.runs if run.first == number] == own
        assert row.base_number(number) == own[0]
        assert all(f"layer {number} is also the base's {unit}" in text for unit in own[1:])
    assert ("also" in text) is any(len(own) > 1 for own in units.values())


def test_what_is_broken_in_a_layer_that_moved_is_said(tmp_path):
    """Zeros of a block that was added are no fault; entries that are not finite are."""
    tuned = stored(layers(1, 2, 3, 4)(model("plain")), "float32")
    tuned["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    report = audited(tmp_path, model("plain"), tuned, "plain")
    codes = {sentence.code for sentence in report.summary.finding.sentences}
    assert codes >= {"nonfinite", "layers_moved"}


def test_models_with_nothing_in_common_have_nothing_in_common(tmp_path):
    """Also where one has fewer layers: nothing corresponds but numbers."""
    other = layers(0, 1, 2, 3)(model("plain", seed=10))
    report = audited(tmp_path, model("plain"), other, "plain")
    assert report.summary.correspondence is None
    assert "unrelated" in {sentence.code for sentence in report.summary.finding.sentences}
    assert set(report.matrices["matched_by"]) == {"number"}


@pytest.mark.parametrize("change", ["exchanged", "same"])
def test_by_number_is_another_report(tmp_path, change):
    """With --by-number an audit pairs as numbers say; tables of a pair whose numbers agree are the
    same without it, to the byte of every column.
    """
    tuned = stored(CHANGES[change][1](model("plain")), "float32", 0.01)
    tables = []
    for name, asked in (("default", {}), ("numbers", {"by_number": True})):
        report = audited(tmp_path / name, model("plain"), tuned, "plain", level="full", **asked)
        own = [pq.read_table(report.folder / f"{one}.parquet") for one in ("matrices", "tensors")]
        tables.append([one.drop_columns(["pair"] * ("pair" in one.column_names)) for one in own])
        assert report.provenance.base.content
    assert (tables[0] == tables[1]) is (change == "same")
    assert set(tables[1][0]["matched_by"].to_pylist()) == {"number"}


def test_a_stopped_audit_goes_on(tmp_path, monkeypatch):
    """Stopped when what corresponds was measured: nothing is measured again, and the tables are
    those of an audit that was not stopped.
    """
    base = planted.write(tmp_path / "base", model("plain"), config_of("plain"))
    tuned = CHANGES["dropped"][1](stored(model("plain"), "float32", 0.01))
    there = planted.write(tmp_path / "tuned", tuned, config_of("plain"))
    pair = Pair("toy", "base..tuned", Reference(str(base), True), Reference(str(there), True))
    settings = Settings(Method("norms"), Filter())
    whole = run_pair(pair, settings, tmp_path / "whole")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "facts", stop)
        with pytest.raises(KeyboardInterrupt):
            run_pair(pair, settings, tmp_path / "stopped")
    done = run_pair(pair, settings, tmp_path / "stopped")
    assert (whole.measured > 0, done.measured) == (True, 0)
    one, other = (pq.read_table(of.folder / "tensors.parquet") for of in (whole, done))
    assert one == other


def signed(*columns):
    """Signatures of unit vectors, each with a digest of its own."""
    made = np.array(columns, dtype=np.float32)
    return [Signature(at, one / np.linalg.norm(one)) for at, one in enumerate(made, 1)]


def turned(cosine, of=0, size=8):
    """A vector with this cosine with axis `of`, and 0 with all others but an axis of its own."""
    one = np.zeros(size)
    one[of], one[size - 1] = cosine, np.sqrt(1 - cosine**2)
    return one


BASE = signed(*np.eye(8)[:3])
LIKE_1 = signed(np.eye(8)[0], np.eye(8)[1], turned(0.91, 1))
UNLIKE_1 = signed(np.eye(8)[0], np.eye(8)[1], turned(0.89, 1))


@pytest.mark.parametrize(
    ("own", "vector", "base", "unit"),
    [
        (1, turned(0.51, 1), BASE, 1),  # its own number, as far as that goes
        (0, turned(0.51, 1), BASE, 1),
        (0, turned(0.49, 1), BASE, None),
        (5, np.eye(8)[1] + 0.78 * np.eye(8)[2], BASE, None),  # the next is too near: .79 and .61
        (5, np.eye(8)[1] + 0.70 * np.eye(8)[2], BASE, 1),  # .82 and .57
        (2, np.eye(8)[1] * 1.0, BASE, 1),
        (5, turned(0.99, 1), LIKE_1, 2),  # a copy of the nearest, which follows: unit 5 is after 2
        (5, turned(0.99, 1), UNLIKE_1, None),
        (5, np.zeros(8), BASE, None),
    ],
)
def test_a_unit_is_like_one_and_no_other(own, vector, base, unit):
    tuned = [Signature(99, (vector / max(np.linalg.norm(vector), 1e-9)).astype(np.float32))]
    found = choose([(own, tuned[0])], [*enumerate(base)])
    assert (found[0].unit if found else None) == unit
