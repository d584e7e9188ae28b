"""A LoRA adapter as the tuned side: every figure is that of the model that `peft` merges."""

import json
from collections import Counter

import pandas as pd
import planted
import pytest
import reference
import torch
from command import run_shadow
from effort import chosen
from safetensors.torch import load_file

import shadow
from shadow.checkpoints.adapter_names import BaseNames, Targets
from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter, pair_checkpoints
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.checkpoints.weight_files import read_adapter
from shadow.engines.pair import run_pair
from shadow.errors import ShadowError
from shadow.places.architecture import Place
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.families import given_pair
from shadow.targets.references import parse_reference

FACTORS = "adapter_model.safetensors"
COLUMNS = (
    "frobenius_norm", "relative_norm", "effective_rank", "stable_rank", "concentration",
    "null_edge", "cosine",
)  # fmt: skip
Q_DOWN = {"target_modules": ["q_proj", "down_proj"]}
KINDS = {
    "plain": ("llama", Q_DOWN), "rslora": ("llama", Q_DOWN | {"use_rslora": True}),
    "patterns": ("llama", Q_DOWN | {
        "rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "alpha_pattern": {"layers.1.mlp.down_proj": 32, "q_proj": 5},
    }),
    "embedding and a whole head": (
        "llama", {"target_modules": ["embed_tokens", "v_proj"], "modules_to_save": ["lm_head"]}
    ),
    "Conv1D, fused": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "fused by head": ("gpt_neox", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
}  # fmt: skip


def adapted(base, folder, options):
    """An adapter with random factors, saved by peft, and its base as peft merged it."""
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
    tuned = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(folder / "adapter")
    merged = tuned.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    return folder / "adapter", folder / "merged"


def run(base, tuned, output):
    pair = given_pair(parse_reference(str(base)), parse_reference(str(tuned)))
    result = run_pair(pair, Settings(Method("exact"), Filter()), output)
    return result, *(
        pd.read_parquet(result.folder / f"{name}.parquet") for name in ("matrices", "tensors")
    )


def paired(base, tuned):
    return pair_checkpoints(open_folder(str(base)), open_folder(str(tuned)), Filter())


@pytest.mark.parametrize("kind", chosen(KINDS, ("patterns", "Conv1D, fused")))
def test_an_adapter_is_measured_as_the_model_that_peft_merges(kind, tmp_path):
    """Each delta's figures are NumPy's of merged - base; what the adapter leaves is identical."""
    name, options = KINDS[kind]
    base = planted.saved(name, tmp_path / "base")
    adapter, merged = adapted(base, tmp_path, options)
    result, matrices, tensors = run(base, adapter, tmp_path / "out")
    _, expected, merged_tensors = run(base, merged, tmp_path / "merged-out")
    keys = ["component", "layer", "module", "subject"]
    both = matrices.merge(expected, on=keys, suffixes=("", "_merged"))
    assert len(both) == len(matrices) == len(expected) > 3
    for column in COLUMNS:
        # peft rounds its sum to float32
        torch.testing.assert_close(
            *(torch.tensor(both[c].to_numpy(float)) for c in (column, f"{column}_merged")),
            rtol=2e-4,
            atol=1e-6,
            equal_nan=True,
        )
    low = matrices[(matrices["subject"] == "delta") & matrices["rank_ceiling"].notna()]
    assert len(low) >= 2
    assert (low["numerical_rank"] <= low["rank_ceiling"]).all()
    names = {("tuned", name) for name in load_file(adapter / "adapter_model.safetensors")}
    names |= {("base", name) for name in load_file(base / "model.safetensors")}
    assert set(zip(tensors["side"], tensors["tensor"], strict=True)) == names
    assert len(tensors) == len(names)
    untouched = tensors[(tensors["side"] == "base") & (tensors["status"] == "identical")]
    assert untouched["detail"].eq("the adapter leaves it unchanged").all()
    base_rows = merged_tensors[merged_tensors["side"] == "base"]
    vectors = base_rows[
        (base_rows["status"] == "skipped") & (base_rows["relative_norm"].fillna(0) == 0)
    ]
    assert set(untouched["tensor"]) == {
        *base_rows[base_rows["status"] == "identical"]["tensor"],
        *vectors["tensor"],
    }
    assert result.summary.figures["rank_ceiling"] == low["rank_ceiling"].max()


def test_a_filter_leaves_out_what_the_adapter_leaves(tmp_path):
    """With --module attn.v what has no factors is left out too, and the share is of attn.v."""
    base = planted.saved("llama", tmp_path / "base")
    adapter, _ = adapted(base, tmp_path, {"target_modules": ["v_proj"]})
    sides = open_folder(str(base)), open_folder(str(adapter))
    pairs, skips = pair_checkpoints(*sides, Filter(modules=("attn.v",)))
    assert {pair.place.module for pair in pairs} == {"attn.v"}
    assert {(skip.status, skip.reason) for skip in skips} == {("skipped", "filtered")}
    pairs, skips = pair_checkpoints(*sides, Filter(modules=("attn.q",)))
    asked = [skip for skip in skips if skip.place.module == "attn.q"]
    assert not pairs
    assert {skip.status for skip in asked} == {"identical"}


def test_a_low_rank_delta_is_numpys(tmp_path):
    """Without peft: scaling * B @ A in float64 NumPy for one matrix, every column of a delta."""
    shape, rank, alpha = (48, 64), 3, 12.0
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).bfloat16()
    left = torch.randn(48, rank, generator=generator)
    right = torch.randn(rank, 64, generator=generator)
    name = "model.layers.0.self_attn.q_proj"
    planted.write(tmp_path / "base", {f"{name}.weight": base}, planted.LLAMA)
    write_adapter(tmp_path / "adapter", name, left, right, alpha)
    _, matrices, _ = run(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    delta = matrices[matrices["subject"] == "delta"].iloc[0]
    b = base.double().numpy()
    expected = reference.delta(
        b, b + alpha / rank * left.double().numpy() @ right.double().numpy(), ("F64", "F64")
    )
    assert delta["tensor"] == f"base_model.model.{name}.lora_B.weight"
    assert (delta["numerical_rank"], delta["rank_ceiling"]) == (rank, rank)
    assert pd.isna(delta["floor_ratio"])
    for column in COLUMNS:
        assert delta[column] == pytest.approx(expected[column], rel=1e-9), column


def write_adapter(folder, module, left, right, alpha=8, more=None, **config):
    planted.adapter(folder, {module: (left, right)}, more, lora_alpha=alpha, **config)


def test_an_untrained_adapter_is_identical(tmp_path):
    """B is zero at first: nothing has changed, and nothing is measured."""
    name = "model.layers.0.self_attn.q_proj"
    planted.write(
        tmp_path / "base", {f"{name}.weight": torch.randn(8, 6).bfloat16()}, planted.LLAMA
    )
    write_adapter(tmp_path / "adapter", name, torch.zeros(8, 2), torch.randn(2, 6))
    _, matrices, tensors = run(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert len(matrices) == 0
    assert list(tensors["status"]) == ["identical"] * 3
    assert set(tensors["detail"]) == {"a low-rank update: its rank is at most 2"}


def test_the_factors_of_an_embedding_are_read_transposed(tmp_path):
    """A of (rank, tokens) comes first, B of (width, rank) second; the update is (tokens, width)."""
    name = "model.embed_tokens"
    planted.write(tmp_path / "base", {f"{name}.weight": torch.randn(30, 5)}, planted.LLAMA)
    names = [f"base_model.model.{name}.lora_embedding_{which}" for which in "AB"]
    factors = dict(zip(names, (torch.randn(3, 30), torch.randn(5, 3)), strict=True))
    planted.adapter(tmp_path / "adapter", {}, factors)
    ((pair,), skipped) = paired(tmp_path / "base", tmp_path / "adapter")
    assert (pair.tuned.shape, pair.shape, pair.detail, skipped) == ((30, 5), (30, 5), "", [])
    assert [info.name for info in pair.tuned.infos] == names
    assert (pair.tuned.factor.rank, pair.tuned.factor.scaling) == (3, 8 / 3)


def test_factors_that_do_not_fit_have_a_reason(tmp_path):
    """A module that the base lacks, another shape, a piece of DoRA: each has its row."""
    name = "model.layers.0.self_attn.q_proj"
    names = (f"{name}.weight", "model.layers.0.self_attn.k_proj.weight")
    planted.write(tmp_path / "base", {one: torch.randn(8, 6) for one in names}, planted.LLAMA)
    prefix = "base_model.model.model.layers"
    more = {
        f"{prefix}.7.self_attn.q_proj.lora_A.weight": torch.randn(2, 6),
        f"{prefix}.7.self_attn.q_proj.lora_B.weight": torch.randn(8, 2),
        f"{prefix}.0.self_attn.k_proj.lora_A.weight": torch.randn(2, 5),
        f"{prefix}.0.self_attn.k_proj.lora_B.weight": torch.randn(8, 2),
        f"{prefix}.0.self_attn.v_proj.lora_A.weight": torch.randn(2, 5),
        f"{prefix}.0.self_attn.v_proj.lora_B.weight": torch.randn(8, 3),
        f"{prefix}.0.self_attn.o_proj.lora_A.weight": torch.randn(3, 5),
        f"{prefix}.0.self_attn.o_proj.lora_B.weight": torch.randn(8, 2),
        f"{prefix}.0.self_attn.q_proj.lora_magnitude_vector": torch.randn(8),
    }
    write_adapter(tmp_path / "adapter", name, torch.randn(8, 2), torch.randn(2, 6), more=more)
    pairs, skipped = paired(tmp_path / "base", tmp_path / "adapter")
    assert [info.name for info in pairs[0].tuned.infos] == [
        f"base_model.model.{name}.lora_{which}.weight" for which in "BA"
    ]
    assert len(pairs) == 1
    reasons = Counter(skip.reason for skip in skipped if skip.side == "tuned")
    assert reasons == {"unnamed": 2, "shape_differs": 2, "adapter": 5}
    planted.edit(tmp_path / "adapter", "adapter_config.json", use_dora=True)
    with pytest.raises(ShadowError, match="DoRA"):
        paired(tmp_path / "base", tmp_path / "adapter")


@pytest.mark.parametrize(("config", "reason"), [
    ({"peft_type": "POLY"}, "not read"),
    ({"init_lora_weights": "pissa_niter_4"}, "initialisation changes the base"),
    ({"lora_alpha": "8"}, "lora_alpha"), ({"lora_alpha": -1}, "lora_alpha"),
    ({"lora_alpha": float("nan")}, "lora_alpha"), ({"lora_alpha": True}, "lora_alpha"),
    ({"alpha_pattern": {"(a+)+$": 4}}, "alpha_pattern"),
    ({"alpha_pattern": [1]}, "alpha_pattern"),
    ({"alpha_pattern": {"q_proj": None}}, "lora_alpha"),
])  # fmt: skip
def test_what_is_no_plain_lora_is_refused(config, reason):
    """One line that says what it is."""
    with pytest.raises(ShadowError, match=reason) as caught:
        read_adapter("here", {"peft_type": "LORA", "lora_alpha": 8} | config)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_block_scaled_fp8_is_dequantised(tmp_path):
    """DeepSeek-V3's layout against a bfloat16 base: the delta is NumPy's with scales undone."""
    shape, block = (200, 160), 128
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator).bfloat16()
    raw = (base.float() * 100 + torch.randn(shape, generator=generator)).to(torch.float8_e4m3fn)
    scales = torch.full((2, 2), 0.01) + 0.001 * torch.rand(2, 2, generator=generator)
    name = "model.layers.0.mlp.up_proj.weight"
    planted.write(tmp_path / "base", {name: base}, planted.LLAMA)
    config = {
        "model_type": "llama",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    planted.write(tmp_path / "tuned", {name: raw, f"{name}_scale_inv": scales}, config)
    _, matrices, tensors = run(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    full = torch.kron(scales.double(), torch.ones(block, block))[: shape[0], : shape[1]]
    tuned = (raw.double() * full).float().double().numpy()  # the product is kept in float32
    expected = reference.delta(base.double().numpy(), tuned, ("BF16", "F8_E4M3"))
    delta = matrices[matrices["subject"] == "delta"].iloc[0]
    assert delta["dtype"] == "BF16/F8_E4M3"
    for column in COLUMNS:
        assert delta[column] == pytest.approx(expected[column], rel=1e-5), column
    assert dict(zip(tensors["tensor"] + tensors["side"], tensors["status"], strict=True)) == {
        f"{name}base": "measured", f"{name}tuned": "measured", f"{name}_scale_invtuned": "measured",
    }  # fmt: skip


def test_the_rounding_of_scaled_fp8_is_known_within_a_factor_of_two(tmp_path):
    """Against the real steps of the stored 8-bit numbers, for weights as small as DeepSeek-V3's."""
    generator = torch.Generator().manual_seed(0)
    base = (0.01 * torch.randn(256, 256, generator=generator)).bfloat16()
    scales = base.float().abs().reshape(2, 128, 2, 128).amax((1, 3)) / 448
    full = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    raw = (base.float() / full + torch.randn(256, 256, generator=generator)).to(torch.float8_e4m3fn)
    name = "model.layers.0.mlp.up_proj.weight"
    planted.write(tmp_path / "base", {name: base}, planted.LLAMA)
    planted.write(tmp_path / "tuned", {name: raw, f"{name}_scale_inv": scales}, planted.LLAMA)
    _, matrices, _ = run(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    quanta = raw.double()
    steps = 2.0 ** (torch.floor(torch.log2(quanta.abs().clamp_min(2.0**-6))) - 3) * full.double()
    truth = float((quanta * full - base.double()).norm() / (steps / 12**0.5).norm())
    found = matrices[matrices["subject"] == "delta"].iloc[0]["floor_ratio"]
    assert truth / 2 < found < 2 * truth


@pytest.mark.parametrize("scales", [
    torch.ones(2, 3), torch.ones(4), torch.ones(2, 2, dtype=torch.float64),
    torch.ones(2, 2, dtype=torch.int32),
])  # fmt: skip
def test_scales_that_do_not_fit_leave_the_weight_quantized(scales, tmp_path):
    """Another shape or dtype of scales is not guessed at: both tensors are skipped, with reason."""
    name = "model.layers.0.mlp.up_proj.weight"
    norm = {"model.norm.weight": torch.ones(8), "model.embed_tokens.weight": torch.randn(8, 8)}
    planted.write(tmp_path / "base", {name: torch.randn(200, 160), **norm}, planted.LLAMA)
    raw = torch.randn(200, 160).to(torch.float8_e4m3fn)
    planted.write(
        tmp_path / "tuned", {name: raw, f"{name}_scale_inv": scales, **norm}, planted.LLAMA
    )
    pairs, skipped = paired(tmp_path / "base", tmp_path / "tuned")
    assert {pair.tuned.info.name for pair in pairs} == set(norm)
    reasons = {skip.info.name: skip.reason for skip in skipped if skip.side == "tuned"}
    assert reasons.keys() == {name, f"{name}_scale_inv"}
    assert reasons[name] == "quantized"


P = "base_model.model."
OWN = [(P, P)]
# how names that peft saves begin, and how others do
TEXT = [*OWN, *((f"{P}model.layers.", P + begins) for begins in (
    "foo.layers.", "transformer.h.", "model.language_model.layers.", "model.model.layers.",
    f"{P}model.layers.", "module.model.layers.", "_orig_mod.model.layers.",
))]  # fmt: skip
WRAPPED = [*OWN, (f"{P}model.language_model.", f"{P}model.")]
RENAMED = {"llama": TEXT, "llava": WRAPPED, "gemma3": WRAPPED, "qwen3_vl": WRAPPED}


@pytest.mark.parametrize("kind", chosen(RENAMED, ("llama", "llava")))
def test_an_adapter_whose_names_peft_does_not_find_reaches_nothing(kind, tmp_path):
    """Under the names that peft saves all modules are reached; under others none, as in peft."""
    import peft
    import transformers

    auto = transformers.AutoModelForCausalLM
    if kind != "llama":
        auto = transformers.AutoModelForImageTextToText
    base = planted.saved(kind, tmp_path / "base")

    def loaded():
        return auto.from_pretrained(base, dtype=torch.float32)

    config = peft.LoraConfig(r=2, target_modules=r"(?!.*vision|.*visual).*q_proj")
    tuned = peft.get_peft_model(loaded(), config)
    tuned.save_pretrained(tmp_path / "adapter")
    factors = {name: one + 1 for name, one in load_file(tmp_path / "adapter" / FACTORS).items()}
    for old, new in RENAMED[kind]:
        named = {new + name.removeprefix(old): one for name, one in factors.items()}
        assert all(name.startswith(old) for name in factors)
        planted.write(tmp_path / "adapter", named, name=FACTORS)
        reached = [
            bool(one.any())
            for name, one in peft.PeftModel.from_pretrained(
                loaded(), tmp_path / "adapter"
            ).named_parameters()
            if "lora_B" in name
        ]
        pairs, skipped = pair_checkpoints(
            open_folder(str(base)), open_folder(str(tmp_path / "adapter")), Filter()
        )
        assert sum(pair.base is not None for pair in pairs) == sum(reached), new
        assert all(reached) is (old == new)
        if old != new:
            assert {one.reason for one in skipped if one.side == "tuned"} == {"unnamed"}


def test_an_audit_of_an_adapter_without_a_name_of_its_base_compares_nothing(tmp_path):
    """Exit code 3, with the number of modules. Where some names are the base's, these count."""
    weight = torch.randn(16, 16)
    name = "model.layers.{}.self_attn.q_proj.weight"
    base = {name.format(layer): weight + layer for layer in range(4)}
    planted.write(tmp_path / "base", base, planted.LLAMA)
    left, right = torch.randn(16, 4), torch.randn(4, 16)

    def adapter(folder, *names):
        planted.adapter(tmp_path / folder, {one: (left.clone(), right.clone()) for one in names})

    adapter("none", *(f"model.{one}" for one in base))
    adapter("one", *(f"model.{one}" for one in list(base)[1:]), next(iter(base)))
    said = "none of the adapter's 4 modules has a name of the base"
    remedy = "; with no prefix for 'model.' the name is one of the base"
    shown = run_shadow("audit", "./base", "./none", "-o", "out", cwd=tmp_path).assert_done(3)
    assert said + remedy in " ".join(shown.split())
    record = json.loads(next((tmp_path / "out").rglob("summary.json")).read_text())
    assert said in record["finding"]["headline"]
    assert said in record["finding"]["sentences"][0]["text"]
    assert record["finding"]["sentences"][0]["code"] == "nothing_compared"
    assert record["unnamed_updates"] == 4
    assert record["counts"]["measured"] == record["counts"]["identical"] == 0
    assert said in run_shadow("verify", "trained", "./base", "./none", cwd=tmp_path).assert_done(4)
    run_shadow("audit", "./base", "./one", "-o", "some", cwd=tmp_path).assert_done()
    record = json.loads(next((tmp_path / "some").rglob("summary.json")).read_text())
    assert (record["unnamed_updates"], record["figures"]["matrices"]) == (3, 1)
    assert "no name of 3 modules of the adapter" in record["finding"]["headline"]
    text = " ".join(one["text"] for one in record["finding"]["sentences"])
    assert f"layers 1 to 3 (no such name in the base{remedy})" in text


MODULES = [
    f"{stack}.{layer}.{name}"
    for stack in ("model.layers", "model.visual.blocks", "transformer.h")
    for layer in (0, 1, 12)
    for name in ("self_attn.q_proj", "mlp.up_proj", "experts.1.up_proj", "mlp.q_proj.base")
] + ["lm_head", "q_proj", "score.q_proj"]
CONFIGS = [
    {"target_modules": ["q_proj", "layers.1.mlp.up_proj"]}, {"target_modules": ["lm_head"]},
    {"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
    {"target_modules": r".*\.(q_proj|up_proj)", "exclude_modules": r".*visual.*"},
    {"target_modules": r"model\.layers\.[\d]{1,}\.self_attn\.(?:q_proj|k_proj)"},
    {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1, 12]},
    {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": 0},
    {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [12], "layers_pattern": ["h", "blocks"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["score", "lm_head"]},
    {"target_modules": ["model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_config_targets_the_modules_that_peft_adapts(config):
    """Lists, patterns, exclusions and layers, against peft's own matching."""
    import peft
    from peft.tuners.tuners_utils import check_target_module_exists

    theirs = peft.LoraConfig(**config)
    expected = [bool(check_target_module_exists(theirs, one)) for one in MODULES]
    assert [Targets(config).has(one) for one in MODULES] == expected
    assert any(expected)
    assert not all(expected)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(", "a" * 3000, "((.*)*)*x"])
def test_a_pattern_that_cannot_be_evaluated_excludes_nothing(pattern):
    """Time without bound, a broken pattern, one of any length: as if the config had none."""
    module = "a" * 200 + "!"
    assert Targets({"target_modules": pattern}).has(module)
    assert Targets({"exclude_modules": pattern}).has(module)


LANGUAGE = Place("language", 0, "attn.q")


@pytest.mark.parametrize(("base", "module", "place", "is_there"), [
    ("model.layers.0.q", "model.layers.0.q", LANGUAGE, True),
    ("model.layers.0.q", "layers.0.q", LANGUAGE, True),  # of a model without its head
    ("model.layers.0.q", "layers.1.q", LANGUAGE, False),
    ("model.layers.0.q", "model", LANGUAGE, False),
    ("layers.0.q", "model.layers.0.q", LANGUAGE, True),  # saved without its first word
    ("layers.0.q", "model.model.layers.0.q", LANGUAGE, False),
    ("model.layers.0.q", "x.model.layers.0.q", LANGUAGE, False),
    ("layers.0.q", "module.layers.0.q", LANGUAGE, False),
    ("layers.0.q", "language_model.layers.0.q", LANGUAGE, False),
    ("module.layers.0.q", "layers.0.q", LANGUAGE, False),
    ("language_model.model.layers.0.q", "model.language_model.layers.0.q", LANGUAGE, True),
    ("model.language_model.layers.0.q", "language_model.model.layers.0.q", LANGUAGE, True),
    ("model.layers.0.q", "model.language_model.layers.0.q", LANGUAGE, False),
    ("layers.0.attention.wq", "x", LANGUAGE, True),  # other programs have other names
    ("model.layers.0.q", "x", Place("vision", 0, "attn.q"), True),
    ("model.layers.0.q", "x", Place("language", 0, "experts.up"), True),
    ("model.layers.0.q", "x", Place("language", None, "head"), True),
])  # fmt: skip
def test_a_module_of_a_base_has_some_other_names(base, module, place, is_there):
    """As loaders of transformers and peft find it, of a model that is no part of another."""
    tensors = {f"{base}.weight": TensorInfo(f"{base}.weight", "F32", (2, 2), "s", 0, 16)}
    assert BaseNames(tensors, ["language", "other"]).has(module, place) is is_there
    if base == "model.layers.0.q":  # which has moved in a wrapper
        wrapper = BaseNames(tensors, ["language", "vision"])
        assert wrapper.has("model.language_model.layers.0.q", LANGUAGE)


REACH = {  # what of four layers q has in the adapter, and what of it peft leaves out
    "not targeted": ({}, {"target_modules": ["q_proj"], "layers_to_transform": [0]}, ["untargeted"],
        "does not target 3 of its 4 modules, so peft leaves them out"),
    "no name": ({"model.": "model.language_model."}, {}, ["unnamed"],
        "none of the adapter's 4 modules has a name of the base: peft applies nothing; with model."
        " for model.language_model. they would have one"),
    "one without a name": ({"model.layers.1": "model.language_model.layers.1"}, {},
        ["some_unnamed"], "1 of the adapter's 4 modules has no name of the base, so peft leaves it"
        " out: model.language_model.layers.1.self_attn.q_proj; with model. for"),
    "deeper": ({"layers.3": "layers.9"}, {}, ["some_unnamed"], "layers.9.self_attn.q_proj"),
    "parameters are": ({}, {"target_modules": ["v_proj"],
        "target_parameters": ["q_proj.weight"]}, [], ""),
    "wider": (32, {}, ["shared_apart"], "base (16, 16), tuned (32, 16)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REACH)
def test_what_of_an_adapter_does_not_reach_the_base_is_said_by_all_that_have_both(case, tmp_path):
    """How many modules and which, the prefix that would reach, or both widths; a merge of the rest
    does not hold, and one of all by place holds with a note.
    """
    change, config, codes, text = REACH[case]
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(4)]
    base = {name: torch.randn(16, 16) for name in names}
    planted.write(tmp_path / "base", base, planted.LLAMA)
    rows = change if isinstance(change, int) else 16
    pairs = {name: (torch.randn(rows, 4), torch.randn(4, 16)) for name in names}
    named = dict(pairs)
    for old, new in change.items() if isinstance(change, dict) else ():
        named = {name.replace(old, new, 1): of for name, of in named.items()}
    planted.adapter(tmp_path / "adapter", named, **config)
    found = shadow.verify("trained", tmp_path / "base", tmp_path / "adapter")
    assert (found.holds, [one.code for one in found.answer.reasons][: len(codes) or 1]) == (
        not codes, codes or ["moved"])  # fmt: skip
    assert text in found.reason.replace("'model", "model").replace(".'", ".")
    merged = base
    if rows == 16:
        merged = {name: base[name] + 2 * (b @ a) for name, (b, a) in pairs.items()}
    for model, holds in ((merged, case in ("deeper", "wider")), (base, True)):
        planted.write(tmp_path / "merged", model, planted.LLAMA)
        found = shadow.verify("merged", *(tmp_path / one for one in ("base", "adapter", "merged")))
        reasons = found.answer.reasons if found.holds is False else found.answer.notes
        assert (found.holds is False) is holds, found
        assert {*codes} <= {one.code for one in reasons}
    if case == "wider":
        with pytest.raises(ShadowError, match=r"another width \(base \(16, 16\), tuned \(32, 16\)"):
            paired(tmp_path / "base", tmp_path / "adapter")
