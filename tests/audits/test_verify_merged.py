"""`shadow verify merged`: base plus adapter within the rounding of storage, and what else it is."""

import math
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import planted
import pytest
import torch
from effort import chosen
from safetensors.torch import load_file, save_file

import shadow
from shadow.checkpoints.weight_files import MERGED_BY_PEFT
from shadow.dtypes import FLOATS
from shadow.run import merged_by_peft as by_peft
from shadow.spectra.relations.merging import half_ulp, quantised

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"
RANK, ALPHA = 4, 8


def based(dtype, norm=0.02):
    """The weights of a toy with two adapted matrices a layer, and others beside."""
    generator = torch.Generator().manual_seed(0)
    names = [*(one.format(layer) for one in (Q, UP) for layer in (0, 1)), EMBED]
    tensors = {name: norm * torch.randn(64, 64, generator=generator) for name in names}
    tensors["model.norm.weight"] = torch.ones(64)
    return {name: one.to(dtype) for name, one in tensors.items()}


def factors(seed=1, strength=0.05, dtype=torch.float32):
    """(B, A) by the name of a matrix."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name.format(layer): (
            (strength * torch.randn(64, RANK, generator=generator)).to(dtype),
            (strength * torch.randn(RANK, 64, generator=generator)).to(dtype),
        )
        for name in (Q, UP)
        for layer in (0, 1)
    }


def merge(base, pairs, dtype, scale=ALPHA / RANK, only=None, arithmetic=torch.float64):
    """Base plus update, computed in a dtype and stored in one, by plain torch."""
    done = {name: one.clone().to(dtype) for name, one in base.items()}
    for name, (b, a) in pairs.items():
        if only is None or name in only:
            delta = (b.to(arithmetic) @ a.to(arithmetic)) * scale
            done[name] = (base[name].to(arithmetic) + delta).to(dtype)
    return done


def recorded(tmp_path, base, pairs, merged, **config):
    """The answer about three checkpoints of these tensors."""
    where = tmp_path / str(len(list(tmp_path.iterdir())) if tmp_path.exists() else 0)
    planted.write(where / "base", base, planted.LLAMA)
    planted.write(where / "merged", merged, planted.LLAMA)
    planted.adapter(where / "adapter", pairs, **config)
    return shadow.verify("merged", where / "base", where / "adapter", where / "merged")


def codes(found):
    return [one.code for one in found.answer.reasons]


def told_wrong(found):
    """What speaks against an answer that does not hold."""
    assert found.holds is False, found
    return [(one.name, one.code) for one in found.against]


each_format = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


@each_format
def test_a_merge_holds_in_every_format_and_each_deviation_is_named(tmp_path, dtype):
    """Merged once in float64 or float32 it holds; not applied, twice, half, skipped it does not."""
    base, pairs = based(dtype), factors()
    for arithmetic in (torch.float64, torch.float32):
        found = recorded(tmp_path, base, pairs, merge(base, pairs, dtype, arithmetic=arithmetic))
        assert (found.holds, codes(found)) == (True, ["base_plus_update"])
        assert found.figures["scale"] == 2
    cases = {0.0: "not_applied", 1.0: "half", 4.0: "twice", 3.0: "rescaled", -2.0: "rescaled"}
    for scale, code in cases.items():
        found = recorded(tmp_path, base, pairs, merge(base, pairs, dtype, scale))
        assert told_wrong(found) == [(one.name, code) for one in found.against]
        assert (codes(found), found.figures["matrices_wrong"]) == ([code], 4)
        assert found.figures["scale_found"] == pytest.approx(scale / 2, abs=0.02)
    skipped = merge(base, pairs, dtype, only=[Q.format(0), UP.format(0), UP.format(1)])
    assert told_wrong(recorded(tmp_path, base, pairs, skipped)) == [(Q.format(1), "not_applied")]


@each_format
def test_one_entry_or_another_adapter_does_not_hold(tmp_path, dtype):
    """One entry a few units off is found; noise as large as the update is not the update."""
    base, pairs = based(dtype), factors()
    good = merge(base, pairs, dtype)
    one = {name: tensor.clone() for name, tensor in good.items()}
    name = UP.format(1)
    one[name].view({2: torch.int16, 4: torch.int32}[dtype.itemsize])[5, 7] += 3
    if dtype == torch.float32:  # beyond the rounding of float32 products
        one[name][5, 7] += 1e-6
    found = recorded(tmp_path, base, pairs, one)
    assert told_wrong(found) == [(name, "beyond")]
    assert found.answer.against[0].why.figures == {"beyond": 1, "entries": 4096}
    other = recorded(tmp_path, base, pairs, merge(base, factors(seed=9), dtype))
    assert other.holds is False
    update = {n: ((b @ a) * 2).double().numpy() for n, (b, a) in pairs.items()}
    wrong = merge(base, factors(seed=9), dtype)
    found = {n: wrong[n].double().numpy() - base[n].double().numpy() for n in pairs}
    residual = sum(np.linalg.norm(found[n] - update[n]) ** 2 for n in pairs)
    size = sum(np.linalg.norm(one) ** 2 for one in update.values())
    assert other.figures["error_over_update"] == pytest.approx((residual / size) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["F16", "BF16"])
def test_a_merge_that_is_computed_in_16_bits_holds_and_says_so(tmp_path, dtype):
    """The product, the scaled product and the sum are each rounded, as in peft on 16-bit models."""
    base, pairs = based(dtype), factors(dtype=dtype)
    done = dict(base)
    for name, (b, a) in pairs.items():
        done[name] = base[name] + (b @ a) * torch.tensor(1.7, dtype=dtype)
    alpha = 4 * float(torch.tensor(1.7, dtype=dtype))
    found = recorded(tmp_path, base, pairs, done, lora_alpha=alpha)
    assert (found.holds, codes(found)) == (True, ["base_plus_update"])
    wide = factors()  # float32 factors that are cast before
    for name, (b, a) in wide.items():
        done[name] = base[name] + (b.to(dtype) @ a.to(dtype)) * 2
    assert recorded(tmp_path, base, wide, done).holds is True


def test_an_f32_base_that_was_rounded_before_the_merge_is_noted(tmp_path):
    """Two roundings, of the base and of the sum: it holds, with a note."""
    base, pairs = based(torch.float32), factors()
    found = recorded(tmp_path, base, pairs, merge(base, pairs, torch.bfloat16))
    assert (found.holds, found.notes) == (True, ())
    rounded = {name: one.bfloat16().float() for name, one in base.items()}
    found = recorded(tmp_path, base, pairs, merge(rounded, pairs, torch.bfloat16))
    assert (found.holds, [one.code for one in found.answer.notes]) == (True, ["base_rounded"])


@pytest.mark.parametrize("name", ["NF4", "FP4", "INT8"])
@each_format
def test_a_merge_onto_a_dequantised_base_is_named(tmp_path, dtype, name):
    """The residual is that of the quantisation: many times the update where that is small."""
    base, pairs = based(dtype), factors(strength=0.01)
    copy = {
        key: quantised(one.double(), name).to(dtype) if one.ndim == 2 and key in pairs else one
        for key, one in base.items()
    }
    found = recorded(tmp_path, base, pairs, merge(copy, pairs, dtype))
    assert (found.holds, codes(found), found.figures["matrices_wrong"]) == (False, ["onto_copy"], 4)
    assert found.answer.reasons[0].figures["copy"] == name
    if name != "INT8":
        assert found.figures["error_over_update"] > 2


def test_another_scale_is_named_where_rounding_leaves_as_much(tmp_path):
    """A small update in BF16 at 0.7 of its scale; one entry off is no other scale."""
    base, pairs = based(torch.bfloat16), factors(strength=0.005)
    found = recorded(tmp_path, base, pairs, merge(base, pairs, torch.bfloat16, 1.4))
    assert (codes(found), found.figures["matrices_wrong"]) == (["rescaled"], 4)
    assert found.figures["scale_found"] == pytest.approx(0.7, abs=0.05)
    good = merge(base, pairs, torch.bfloat16)
    good[UP.format(1)][5, 7] += 0.001
    assert told_wrong(recorded(tmp_path, base, pairs, good)) == [(UP.format(1), "beyond")]


def test_an_update_below_the_rounding_cannot_be_told(tmp_path):
    """Merged or not, the file would be the same."""
    base, pairs = based(torch.bfloat16), factors(strength=1e-6)
    found = recorded(tmp_path, base, pairs, merge(base, pairs, torch.bfloat16))
    assert (found.holds, codes(found)) == (None, ["hidden"])
    some = {name: (b * (1e6 if "layers.0" in name else 1), a) for name, (b, a) in pairs.items()}
    found = recorded(tmp_path, base, some, merge(base, some, torch.bfloat16))
    assert found.holds is True
    assert [(one.code, one.figures) for one in found.answer.notes] == [("unseen", {"matrices": 2})]


@each_format
def test_dora_gives_rows_their_norms(tmp_path, dtype):
    """m * (W + sBA) / |W + sBA| by rows; plain addition does not hold."""
    base, pairs = based(dtype), factors()
    generator = torch.Generator().manual_seed(5)
    extra, done = {}, {name: one.clone() for name, one in base.items()}
    for name, (b, a) in pairs.items():
        whole = base[name].double() + 2 * (b.double() @ a.double())
        norms = whole.norm(dim=1)
        m = (norms * (1 + 0.1 * torch.rand(len(norms), generator=generator))).float()
        module = f"base_model.model.{name.removesuffix('.weight')}"
        extra[f"{module}.lora_magnitude_vector"] = m
        done[name] = (whole * (m.double() / norms)[:, None]).to(dtype)
    kind = {"use_dora": True, "extra": extra}
    assert recorded(tmp_path, base, pairs, done, **kind).holds is True
    assert recorded(tmp_path, base, pairs, merge(base, pairs, dtype), **kind).holds is False
    one = next(iter(extra))
    for value in (math.nan, math.inf):  # of which no merge has finite rows
        broken = {**extra, one: torch.full_like(extra[one], value)}
        found = recorded(tmp_path, base, pairs, done, use_dora=True, extra=broken)
        assert told_wrong(found) == [(next(iter(pairs)), "not_finite")]
    some = {name: norms for name, norms in extra.items() if name != one}
    found = recorded(tmp_path, base, pairs, done, use_dora=True, extra=some)
    assert (found.holds, [one.code for one in found.against]) == (None, ["no_norms"])


def test_what_stands_beside_the_adapter_must_be_the_bases(tmp_path):
    """A norm that moved, a lost tensor, one more, more rows, and modules that are held whole."""
    base, pairs = based(torch.float32), factors()
    good = merge(base, pairs, torch.float32)
    name, embed = "model.norm.weight", EMBED
    bias = "model.layers.0.self_attn.q_proj.bias"
    found = recorded(tmp_path, base, pairs, good | {name: good[name] * 1.01})
    assert (codes(found), told_wrong(found)) == (["beside"], [(name, "changed")])
    lost = {other: one for other, one in good.items() if other != name}
    assert told_wrong(recorded(tmp_path, base, pairs, lost)) == [(name, "only_in")]
    more = recorded(tmp_path, base, pairs, good | {bias: torch.zeros(64)})
    assert told_wrong(more) == [(bias, "only_in")]
    grown = good | {embed: torch.cat([good[embed], torch.zeros(2, 64)])}
    assert told_wrong(recorded(tmp_path, base, pairs, grown)) == [(embed, "rows_only_in")]
    held = {"base_model.model.model.embed_tokens.modules_to_save.weight": grown[embed] + 1}
    whole = grown | {embed: grown[embed] + 1}
    assert recorded(tmp_path, base, pairs, whole, extra=held).holds is True
    lost = recorded(tmp_path, base, pairs, grown, extra=held)
    assert told_wrong(lost) == [(embed, "not_adapters")]
    cut = recorded(tmp_path, base, pairs, good | {embed: whole[embed][:64]}, extra=held)
    assert told_wrong(cut) == [(embed, "rows_only_in")]


def test_an_adapter_of_other_modules_says_nothing_of_the_base(tmp_path):
    base = based(torch.bfloat16)
    other = {name.replace("_proj", "_p"): one for name, one in factors().items()}
    found = recorded(tmp_path, base, other, {name: one + 0.02 for name, one in base.items()})
    assert "other_base" not in codes(found)


@pytest.mark.parametrize("kind", ["another", "a stage", "narrower", "deeper", "other names"])
def test_a_wrong_base_is_asked_for_before_all(tmp_path, kind):
    """The first reason names what the adapter's config names; another adapter is no base."""
    base, pairs = based(torch.bfloat16), factors()
    merged, generator = merge(base, pairs, torch.bfloat16), torch.Generator().manual_seed(7)
    width, share = (32 if kind == "narrower" else 64), (0.01 if kind == "a stage" else 1.0)
    given = {}
    for name, one in base.items():
        noise = share * 0.02 * torch.randn((width,) * one.ndim, generator=generator)
        given[name] = noise + one if kind == "a stage" else noise
    if kind == "deeper":
        given |= {one.format(2): given[one.format(1)].clone() for one in (Q, UP)}
    if kind == "other names":
        given = {name.replace("self_attn.q", "attn.x"): one for name, one in given.items()}
    given = {name: one.to(torch.bfloat16) for name, one in given.items()}
    found = recorded(tmp_path, given, pairs, merged, base_model_name_or_path="org/base")
    assert (found.holds, codes(found)[0]) == (False, "other_base")
    assert found.answer.reasons[0].figures == {"named": "'org/base'"}
    other = merge(base, factors(seed=3), torch.bfloat16)
    assert codes(recorded(tmp_path, base, pairs, other)) == ["beyond"]


def test_a_head_that_was_tied_may_go_with_its_embedding(tmp_path):
    """An update of the embedding, and a head that is stored beside it."""
    base = {name: one for name, one in based(torch.float32).items() if "q_proj" in name}
    generator = torch.Generator().manual_seed(2)
    base[EMBED] = 0.02 * torch.randn(32, 64, generator=generator)
    a, b = (0.05 * torch.randn(one, generator=generator) for one in ((RANK, 32), (64, RANK)))
    module = "base_model.model.model.embed_tokens"
    extra = {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b}
    moved = (base[EMBED].double() + 2 * (b.double() @ a.double()).T).float()
    tied, untied = ({**planted.LLAMA, "tie_word_embeddings": is_tied} for is_tied in (True, False))
    for number, head in enumerate((moved, base[EMBED], moved + 1)):
        where = tmp_path / str(number)
        planted.write(where / "base", base, tied)
        merged = base | {EMBED: moved, "lm_head.weight": head.clone()}
        planted.write(where / "merged", merged, untied)
        planted.adapter(where / "adapter", {}, extra)
        found = shadow.verify("merged", *(where / one for one in ("base", "adapter", "merged")))
        assert found.holds is (number < 2), found


def adapted_by_peft(folder, kind, stored, raised=True, auto="", **config):
    """Save a base and an adapter with random factors; the model that has both. raised: whether
    factors become float32.
    """
    import peft
    import transformers

    model = planted.built(kind).to(DTYPES[stored])
    model.save_pretrained(folder / "base")
    if auto:
        auto = getattr(transformers, auto)
        model = auto.from_pretrained(folder / "base", dtype=DTYPES[stored])
    config = {"r": 4, "lora_alpha": 7, "target_modules": "all-linear", **config}
    config = peft.LoraConfig(**config)
    tuned = peft.get_peft_model(model, config, autocast_adapter_dtype=raised)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in tuned.named_parameters():
        noise = 0.05 * torch.randn(parameter.shape, generator=generator)
        if parameter.requires_grad:
            parameter.data += (noise.abs() if "magnitude" in name else noise).to(parameter.dtype)
    tuned.save_pretrained(folder / "adapter")
    return tuned


def merged_by_peft(adapted, folder, scale=1.0, only="", safe=False, edit=None):
    """Save peft's merge. scale: of the modules with `only` in their names. edit: of B and A."""
    tuned = deepcopy(adapted)
    for name, module in tuned.named_modules():
        if isinstance(getattr(module, "scaling", None), dict) and only in name:
            module.scaling["default"] *= scale
            if edit:
                edit(name, *(getattr(module, f"lora_{one}")["default"].weight.data for one in "BA"))
    tuned.merge_and_unload(safe_merge=safe).save_pretrained(folder)


def sides(folder, kind, stored, safe=False, **config):
    """A base, an adapter and peft's merge of them, and the model with both."""
    adapted = adapted_by_peft(folder, kind, stored, **config)
    merged_by_peft(adapted, folder / "merged", safe=safe)
    return [folder / one for one in ("base", "adapter", "merged")], adapted


def to_the_bit(found):
    """The order that gives every entry."""
    assert found.holds is True, found
    how = found.answer.reasons[0].figures["how"]
    assert how.code == "to_the_bit", how
    return how.figures["order"].code


DORA, CONV = {"use_dora": True}, {"fan_in_fan_out": True}
SAFE, UNRAISED = {"safe": True}, {"raised": False}
BY_PEFT = [
    ("llama", "F32", {}, "in_float32"), ("llama", "BF16", {"use_rslora": True}, "in_float32"),
    ("llama", "F32", {"alpha_pattern": {"q_proj": 32}}, "in_float32"),
    ("mistral", "F16", DORA, "in_float32"), ("gpt2", "F16", CONV, "in_float32"),
    ("gpt2", "BF16", CONV | DORA, "in_float32"), ("gpt_neox", "BF16", {}, "in_float32"),
    ("phi3", "BF16", DORA, "in_float32"), ("qwen2", "BF16", SAFE, "update_rounded"),
    ("gemma2", "F16", UNRAISED, "update_rounded"), ("bert", "F16", {}, "in_float32"),
    ("olmo2", "BF16", UNRAISED | DORA, "update_rounded"), ("qwen3", "F32", SAFE, "in_float32"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "stored", "config", "order"), BY_PEFT)
def test_what_peft_merges_holds_to_the_bit(tmp_path, kind, stored, config, order):
    """In the order that peft computes; at another scale, in all modules or one, it never holds."""
    asked, adapted = sides(tmp_path, kind, stored, **config)
    assert to_the_bit(shadow.verify("merged", *asked)) == order
    found = shadow.verify("merged", asked[0], asked[1], asked[0])
    assert (found.holds, codes(found)) == (False, ["not_applied"])
    one = {"gpt2": "h.1", "bert": "layer.1"}.get(kind, "layers.1")
    for scale, only in ((1.001, ""), (1.005, ""), (2.0, one), (0.0, one), (1.005, one)):
        merged_by_peft(adapted, tmp_path / "wrong", scale, only, config.get("safe", False))
        found = shadow.verify("merged", *asked[:2], tmp_path / "wrong")
        assert found.holds is False or (found.holds is None and scale < 1.002), (scale, only, found)


TYPES = {  # with what they need of a config beside targets
    "BOFT": {"boft_block_size": 4}, "C3A": {"block_size": 8}, "DEFT": {}, "DELORA": {},
    "FOURIERFT": {"n_frequency": 20}, "GLORA": {}, "GRALORA": {}, "HIRA": {}, "HRA": {"r": 4},
    "IA3": {"feedforward_modules": []}, "LOHA": {}, "LOKR": {}, "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4, "r": 0}, "PEANUT": {}, "PVERA": {}, "RANDLORA": {},
    "ROAD": {"group_size": 8}, "SHIRA": {"r": 2}, "SUPERTUNING": {}, "VERA": {},
    "WAVEFT": {"n_frequency": 20},
}  # fmt: skip


@pytest.mark.parametrize("kind", chosen(TYPES, ("IA3", "LOHA", "OFT", "ROAD", "VERA")))
def test_adapters_of_other_types_are_sides_by_what_peft_makes_of_the_base(tmp_path, kind):
    """peft's merge holds to the bit in three formats, and what moved is what peft changed; a part
    of the change, none of it, another base or a foreign name never hold.
    """
    import peft

    assert {*TYPES} == {*MERGED_BY_PEFT}
    for stored, dtype in DTYPES.items():
        made = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        model = planted.built("qwen2").to(dtype)
        asked = [tmp_path / stored / one for one in ("base", "adapter", "merged")]
        model.save_pretrained(asked[0])
        config = made(target_modules=["q_proj", "v_proj"], **TYPES[kind])
        tuned = peft.get_peft_model(model, config)
        generator = torch.Generator().manual_seed(1)
        for one in tuned.parameters():
            if one.requires_grad:
                one.data += (0.05 * torch.randn(one.shape, generator=generator)).to(one.dtype)
        tuned.save_pretrained(asked[1])
        tuned.merge_and_unload().save_pretrained(asked[2])
        assert to_the_bit(shadow.verify("merged", *asked)) == "in_float32"
        base, merged = (load_file(asked[at] / "model.safetensors") for at in (0, 2))
        changed = {name for name in base if not torch.equal(base[name], merged[name])}
        found = shadow.verify("trained", *asked[:2], frozen="mlp")
        assert (found.holds, found.figures["tensors_to_move"]) == (True, 0)
        found = shadow.verify("trained", *asked[:2])
        assert (found.holds, found.figures["tensors_to_move"]) == (True, len(changed))
        one = max(changed)
        for share, names in ((0.0, changed), (0.0, {one}), (1.005, changed), (2.0, {one})):
            wrong = merged | {
                name: (base[name].double() + share * (merged[name] - base[name]).double()).to(dtype)
                for name in names
            }
            if all(torch.equal(wrong[name], merged[name]) for name in names):
                continue  # of a change that was rounded already, 1.005 times may be the same
            planted.write(tmp_path / "wrong", wrong, planted.LLAMA)
            found = shadow.verify("merged", *asked[:2], tmp_path / "wrong")
            assert found.holds is False or (found.holds is None and share == 1.005), (share, found)
    factors = load_file(asked[1] / "adapter_model.safetensors")
    other = {name.replace("model.layers", "layers"): one for name, one in factors.items()}
    planted.write(asked[1], other, name="adapter_model.safetensors")
    for claim in ("trained", "merged"):
        with pytest.raises(shadow.ShadowError, match="of nothing in the base"):
            shadow.verify(claim, *asked[: 2 if claim == "trained" else 3])


@pytest.mark.parametrize("lost", ["score.weight", "lm_head.weight", f"{Q.format(0)[:-6]}bias"])
def test_a_whole_tensor_of_another_type_that_the_base_lacks_is_one_line(tmp_path, lost):
    """Of IA3, beside a factor: peft leaves it out, so the error names it."""
    names = f"{Q.format(0)[:-7]}.ia3_l", lost
    held = {f"base_model.model.{name}": torch.ones(64, 1) for name in names}
    base = based(torch.float32)
    with pytest.raises(shadow.ShadowError, match=f"of nothing in the base.*{lost}"):
        recorded(tmp_path, base, {}, base, extra=held, peft_type="IA3")


HEAD, Q_PROJ = {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj"]}
SCORE = {"auto": "AutoModelForSequenceClassification", "task_type": "SEQ_CLS"}


@pytest.mark.parametrize(("kind", "config", "tensor"), [
    ("llama", HEAD, "lm_head.weight"), ("llama", SCORE, "score.weight"),
    ("llama", Q_PROJ | {"trainable_token_indices": [3, 5]}, EMBED),
    ("qwen2", Q_PROJ | {"trainable_token_indices": {"embed_tokens": [7]}}, EMBED),
    ("qwen2", Q_PROJ | {"lora_bias": True}, "model.layers.1.self_attn.q_proj.bias"),
    ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, EMBED),
    ("llama", {"target_modules": ["q_proj", "lm_head"]}, "lm_head.weight"),
])  # fmt: skip
def test_heads_tokens_and_biases_belong_to_the_adapter(tmp_path, kind, config, tensor):
    """peft's merge holds to the bit; one that lost, randomised or reset such a tensor does not."""
    asked, _ = sides(tmp_path, kind, "BF16", **config)
    found = shadow.verify("merged", *asked)
    assert to_the_bit(found) == "in_float32"
    assert found.against == ()
    path = asked[2] / "model.safetensors"
    merged = load_file(path)
    of_base = load_file(asked[0] / "model.safetensors").get(tensor)
    for value in (merged[tensor] + 1, of_base, None):
        if value is of_base is None and tensor != "score.weight":
            continue
        rest = {name: one for name, one in merged.items() if name != tensor}
        save_file(rest if value is None else rest | {tensor: value}, path, {"format": "pt"})
        found = shadow.verify("merged", *asked)
        assert found.holds is False, (value, found)
        names = [one.name.removeprefix("base_model.model.") for one in found.against]
        assert names == [tensor]
        if value is of_base is not None:
            assert found.against[0].code in ("is_base", "not_applied")


EXPERTS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "r": 2,
           "target_modules": ["q_proj"]}  # fmt: skip


def repacked(b, turn):
    """Change the columns of a B of three experts, as (outputs, rank, experts)."""
    b.copy_(turn(b.reshape(len(b), -1, 3)).reshape(b.shape))


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_stacked_experts_in_both_packings(tmp_path, kind):
    """Rank by rank, as peft reads, and expert by expert; what is neither is named."""
    asked, adapted = sides(tmp_path, kind, "BF16", **EXPERTS)
    assert to_the_bit(shadow.verify("merged", *asked)) == "in_float32"

    def by_expert(name, b, a):
        if "experts" in name:
            repacked(b, lambda one: one.reshape(len(one), 3, -1).transpose(1, 2))

    def of_another(name, b, a):
        if "experts" in name:
            repacked(b, lambda one: one.roll(1, 2))
            a.copy_(a.roll(len(a) // 3, 0))

    def dropped(name, b, a):
        if "experts" in name:
            repacked(b, lambda one: one * torch.tensor([1.0, 0.0, 1.0], dtype=one.dtype))

    turns = {
        "packed_by_expert": by_expert,
        "scrambled": lambda name, *of: name.endswith("experts") and by_expert(name, *of),
        "other_expert": of_another,
        "not_applied": dropped,
    }
    for code, edit in turns.items():
        wrong = tmp_path / code
        merged_by_peft(adapted, wrong, edit=edit)
        found = shadow.verify("merged", *asked[:2], wrong)
        if code == "packed_by_expert":
            assert (found.holds, [one.code for one in found.answer.notes][-1]) == (True, code)
        else:
            assert (found.holds, codes(found)) == (False, [code])
            assert all(found.check.say(one.why) for one in found.answer.against)
            assert {one.name for one in found.answer.against} <= {
                *load_file(wrong / "model.safetensors")
            }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["F16", "BF16"])
def test_a_merge_in_an_order_that_nobody_lists_holds_by_its_scale(tmp_path, dtype):
    """Rounded at other points, so that half of the entries differ; at scale 1.001 it does not."""
    base, pairs = based(dtype), factors()
    update = {name: (b.to(dtype) * 2).float() @ a.flip(0).to(dtype).flip(0).float()
              for name, (b, a) in pairs.items()}  # fmt: skip
    done = base | {
        name: base[name] + (1.01 * (one / 1.01).to(dtype)).to(dtype) for name, one in update.items()
    }
    found = recorded(tmp_path, base, pairs, done)
    assert (found.holds, found.answer.reasons[0].figures["how"].code) == (True, "within_rounding")
    assert found.figures["entries_off"] > 2000
    wrong = recorded(tmp_path, base, pairs, merge(base, pairs, dtype, 2.002))
    assert (wrong.holds, codes(wrong)) == (False, ["rescaled"])


@pytest.mark.parametrize("shape", [(1, 64), (64, 1)])
@each_format
def test_an_update_of_a_matrix_with_a_side_of_one_counts(tmp_path, dtype, shape):
    """Such as the gate of a shared expert, or a head with one score."""
    gate = "model.layers.0.mlp.shared_expert_gate.weight"
    generator = torch.Generator().manual_seed(4)
    base = {**based(dtype), gate: torch.randn(shape, generator=generator).to(dtype)}
    left = torch.randn(shape[0], RANK, generator=generator)
    right = torch.randn(RANK, shape[1], generator=generator)
    pairs = {**factors(), gate: (0.3 * left, 0.3 * right)}
    found = recorded(tmp_path, base, pairs, merge(base, pairs, dtype))
    assert (found.holds, found.figures["matrices"]) == (True, 5)
    found = recorded(tmp_path, base, pairs, merge(base, pairs, dtype, only=set(factors())))
    assert told_wrong(found) == [(gate, "not_applied")]
    flat = merge(base, pairs, dtype)
    flat[gate] = flat[gate].reshape(-1)
    assert recorded(tmp_path, base, pairs, flat).holds is not True


def test_half_a_unit_in_the_last_place_is_the_formats():
    """Against the distance of neighbours in torch, subnormal numbers and zero included."""
    for name, dtype in DTYPES.items():
        smallest = 2.0 ** (FLOATS[name].min_exponent - FLOATS[name].mantissa_bits)
        values = torch.tensor([0.0, smallest, 1.0, -1.5, 0.02, 300.0, 2.0**-14], dtype=dtype)
        whole = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        up = (values.view(whole) + 1).view(dtype).double()
        expected = (up - values.double()).abs() / 2
        assert torch.equal(half_ulp(values.double(), FLOATS[name]), expected)


def test_wrong_usage_and_hostile_files(tmp_path):
    """A model for the adapter, an adapter for a model, factors that are cut or not finite."""
    base, pairs = based(torch.float32), factors()
    model = planted.write(tmp_path / "base", base, planted.LLAMA)
    adapter = planted.adapter(tmp_path / "adapter", pairs)
    for asked in ((model, model, model), (model, adapter, adapter)):
        with pytest.raises(shadow.UsageError, match=asked[2].name):
            shadow.verify("merged", *asked)
    with pytest.raises(shadow.ShadowError, match="lora_magnitude_vector"):
        recorded(tmp_path, base, pairs, base, use_dora=True)
    name = Q.format(0)
    for value in (math.nan, math.inf, 1e300):
        b = torch.full((64, RANK), value, dtype=torch.float64)
        broken = pairs | {name: (b, pairs[name][1])}
        found = recorded(tmp_path, base, broken, merge(base, pairs, torch.float32))
        assert [one for one, _ in told_wrong(found)] == [name]
    short = {one: (b[:8], a) for one, (b, a) in pairs.items()}
    assert codes(recorded(tmp_path, base, short, base)) == ["shared_apart"]


def test_an_adapter_that_only_holds_modules_whole(tmp_path):
    """It holds where the merged model has them; where they are the base's, nothing can be told."""
    dtype = torch.bfloat16
    base = based(dtype)
    saved = base[EMBED].float() + 0.01
    extra = {"base_model.model.model.embed_tokens.modules_to_save.weight": saved}
    merged = base | {EMBED: saved.to(dtype)}
    found = recorded(tmp_path, base, {}, merged, extra=extra)
    assert (found.holds, codes(found)) == (True, ["whole"])
    assert recorded(tmp_path, base, {}, base, extra=extra).holds is False
    kept = {name: base[EMBED].float() for name in extra}
    found = recorded(tmp_path, base, {}, base, extra=kept)
    assert (found.holds, codes(found)) == (None, ["whole_is_base"])
    both = recorded(tmp_path, base, factors(), merge(merged, factors(), dtype), extra=extra)
    assert (both.holds, codes(both)) == (True, ["base_plus_update", "whole"])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_merge_that_is_stored_in_8_bits(tmp_path, dtype):
    """Plain formats are rounded once; nobody computes in 8 bits; with scales it is not judged."""
    base, pairs = based(torch.float32, norm=1.0), factors(strength=0.5)
    merged = merge(base, pairs, dtype)
    found = recorded(tmp_path, base, pairs, merged)
    assert (found.holds, codes(found)) == (True, ["base_plus_update"])
    assert recorded(tmp_path, base, pairs, merge(base, pairs, dtype, scale=1.0)).holds is False
    scaled = merge(base, pairs, torch.float32)
    scaled[UP.format(0)] = merged[UP.format(0)]
    scaled[UP.format(0).replace("weight", "weight_scale_inv")] = torch.full((1, 1), 1.0)
    found = recorded(tmp_path, base, pairs, scaled)
    against = [(one.name, one.code) for one in found.against]
    assert (found.holds, against) == (None, [(UP.format(0), "quantised")])


@pytest.mark.parametrize(("key", "number", "is_refused"), [
    ("r", 65536, False), ("r", 65537, True), ("projection_prng_key", 1 << 40, False),
])  # fmt: skip
def test_a_number_by_which_peft_makes_arrays_is_65536_at_most(key, number, is_refused):
    config = {"peft_type": "VERA", "target_modules": ["x"], key: number}
    adapter = SimpleNamespace(adapter=SimpleNamespace(config=config))
    with pytest.raises(ValueError, match=" ") as caught:  # of what is allowed, no module
        by_peft._model({}, adapter, {})
    assert (str(caught.value) == f"{key} is {number}") is is_refused
