"""`shadow verify same`: equal tensors, whatever their names, files, packing and dtypes."""

from __future__ import annotations

import json
import os

import numpy as np
import planted
import pytest
import quantisers
import torch
from command import run_shadow
from effort import chosen
from safetensors.torch import load_file, save_file

import shadow

UP = planted.UP
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(tmp_path, first, second, config=planted.LLAMA, other=None):
    """The answer about two checkpoints of these tensors."""
    a = planted.write(tmp_path / "a", first, config)
    b = planted.write(tmp_path / "b", second, other or config)
    return shadow.verify("same", a, b)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_one_entry_that_differs_is_found_and_its_size_is_that_of_numpy(tmp_path, dtype):
    """A copy is the same; with the smallest step in one entry it is not, and it is named."""
    tensors = {name: one.to(dtype) for name, one in planted.matrices(0, size=32).items()}
    assert same(tmp_path / "1", tensors, copied(tensors)).holds is True
    changed = copied(tensors)
    name = UP.format(1)
    whole = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    changed[name].view(whole)[3, 5] += 1
    found = same(tmp_path / "2", tensors, changed)
    assert found.holds is False
    assert [one.name for one in found.against] == [name]
    base, tuned = (one[name].double().numpy() for one in (tensors, changed))
    far = np.linalg.norm(tuned - base) / np.linalg.norm(base)
    assert found.against[0].size == pytest.approx(far, rel=1e-6)
    assert found.figures["entries_differ"] == 1


def test_signs_of_zero_and_equal_nans_are_no_difference_and_a_nan_is(tmp_path):
    """Values are compared, not bits; NaN beside NaN is equal, NaN beside a number is not."""
    tensors = planted.matrices(0)
    tensors[UP.format(0)][0, 0], tensors[UP.format(0)][1, 1] = 0.0, float("nan")
    other = copied(tensors)
    other[UP.format(0)][0, 0] = -0.0
    assert same(tmp_path / "1", tensors, other).holds is True
    other[UP.format(0)][2, 2] = float("nan")
    found = same(tmp_path / "2", tensors, other)
    assert found.holds is False
    assert found.figures["entries_differ"] == 1


def test_a_cast_that_is_exact_in_every_entry_is_named_and_a_rounded_copy_does_not_hold(tmp_path):
    """BF16 values stored as F32 are the same model; F32 values rounded to BF16 are not."""
    narrow = {name: one.bfloat16() for name, one in planted.matrices(0).items()}
    wide = {name: one.float() for name, one in narrow.items()}
    found = same(tmp_path / "1", narrow, wide)
    assert found.holds is True
    assert "after a cast BF16 -> F32 that is exact in every entry" in found.reason
    assert "F32 -> BF16" in same(tmp_path / "2", wide, narrow).reason
    full = planted.matrices(0)
    for number, (dtype, name) in enumerate([(torch.bfloat16, "BF16"), (torch.float16, "F16")]):
        rounded = {key: one.to(dtype) for key, one in full.items()}
        for back in (False, True):  # stored as it is, and again in F32
            other = {key: one.float() if back else one for key, one in rounded.items()}
            found = same(tmp_path / f"{number}{back}", full, other)
            assert found.holds is False
            assert f"B is A rounded to {name}" in found.reason
            found = same(tmp_path / f"r{number}{back}", other, full)
            assert f"A is B rounded to {name}" in found.reason
    rounded[UP.format(0)][0, 0] *= 2
    assert "rounded" not in same(tmp_path / "3", full, rounded).reason.replace("1 of", "")


def test_a_tensor_more_a_lost_head_and_another_vocabulary_do_not_hold(tmp_path):
    """Of each the reason says on which side, and the tensor is named."""
    tensors = planted.matrices(0) | {
        "model.embed_tokens.weight": torch.randn(16, 8),
        "lm_head.weight": torch.randn(16, 8),
    }
    lost = copied(tensors)
    del lost["lm_head.weight"]
    found = same(tmp_path / "1", tensors, lost)
    assert found.holds is False
    assert "1 tensor only in A" in found.reason
    assert [one.name for one in found.against] == ["lm_head.weight"]
    more = copied(tensors)
    more["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(8)
    assert "1 tensor only in B" in same(tmp_path / "2", tensors, more).reason
    grown = copied(tensors)
    grown["model.embed_tokens.weight"] = torch.cat([tensors["model.embed_tokens.weight"]] * 2)
    found = same(tmp_path / "3", tensors, grown)
    assert found.holds is False
    assert found.against[0].what == "16 rows only in B"


def test_a_tied_head_is_the_embedding_and_one_that_differs_is_found(tmp_path):
    """A head that the config ties may be stored or not; a stored one is compared all the same."""
    tied = {**planted.LLAMA, "tie_word_embeddings": True}
    tensors = planted.matrices(0) | {"model.embed_tokens.weight": torch.randn(16, 8)}
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    assert same(tmp_path / "1", tensors, copied(tensors | head), tied).holds is True
    untied = {**planted.LLAMA, "tie_word_embeddings": False}
    assert same(tmp_path / "2", tensors, copied(tensors | head), tied, untied).holds is True
    wrong = copied(tensors | head)
    wrong["lm_head.weight"][0, 0] += 1
    for number, (first, second, configs, differ) in enumerate(
        [
            (tensors, wrong, (tied, tied), 1),
            (wrong, tensors, (tied, tied), 1),
            (tensors, wrong, (tied, untied), 1),
            (tensors | head, wrong, (tied, tied), 1),
            (wrong, tensors | head, (untied, tied), 2),  # beside embedding and head
        ]
    ):
        found = same(tmp_path / f"w{number}", copied(first), copied(second), *configs)
        assert found.holds is False, number
        assert found.figures["entries_differ"] == differ


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "phi3"])
def test_shards_and_order_do_not_matter(tmp_path, kind):
    """A model in one file and in three, in another order, is the same."""
    one = planted.saved(kind, tmp_path / "one")
    tensors = load_file(one / "model.safetensors")
    config = json.loads((one / "config.json").read_text())
    names = sorted(tensors, reverse=True)
    three = planted.sharded(tmp_path / "three", {name: tensors[name] for name in names}, 3)
    (three / "config.json").write_text(json.dumps(config))
    assert shadow.verify("same", one, three).holds is True


def test_fused_projections_are_the_separate_ones(tmp_path):
    """Phi-3's fused qkv and gate_up beside the same rows apart."""
    one = planted.saved("phi3", tmp_path / "fused")
    config = json.loads((one / "config.json").read_text())
    tensors = load_file(one / "model.safetensors")
    heads, size = config["num_attention_heads"], config["hidden_size"]
    q = heads * (config.get("head_dim") or size // heads)
    k = config["num_key_value_heads"] * q // heads
    apart = {}
    for name, tensor in tensors.items():
        if name.endswith("qkv_proj.weight"):
            for part, rows in zip("qkv", tensor.split([q, k, k]), strict=True):
                apart[name.replace("qkv_proj", f"{part}_proj")] = rows
        elif name.endswith("gate_up_proj.weight"):
            for part, rows in zip(("gate", "up"), tensor.chunk(2), strict=True):
                apart[name.replace("gate_up_proj", f"{part}_proj")] = rows
        else:
            apart[name] = tensor
    planted.write(tmp_path / "apart", apart, config)
    assert shadow.verify("same", one, tmp_path / "apart").holds is True
    name = next(name for name in apart if name.endswith("k_proj.weight"))
    apart[name] = apart[name].clone()
    apart[name][0, 0] += 1
    planted.write(tmp_path / "other", apart, config)
    assert shadow.verify("same", one, tmp_path / "other").figures["entries_differ"] == 1


@pytest.mark.parametrize("kind", chosen(["mixtral", "qwen3_moe", "deepseek_v3"], ["mixtral"]))
def test_keys_that_a_library_renamed_and_experts_that_it_packed(tmp_path, kind):
    """The names of the file beside those of transformers in memory, where experts are one stack; an
    entry of one expert is found.
    """
    file, memory = planted.saved_twice(kind, tmp_path)
    found = shadow.verify("same", file, memory)
    assert found.holds is True
    assert any("another name or packing in B" in note for note in found.notes)
    tensors = load_file(memory / "model.safetensors")
    name = next(name for name in tensors if name.endswith("experts.down_proj"))
    tensors[name][2, 3, 4] += 1
    save_file(tensors, memory / "model.safetensors")
    found = shadow.verify("same", file, memory)
    assert found.holds is False
    assert (found.figures["tensors_differ"], found.figures["entries_differ"]) == (1, 1)


def test_a_prefix_twice_is_seen_through_and_noted(tmp_path):
    """An exporter wrote `model.model.`: the tensors are equal, and a note says how names begin."""
    tensors = planted.matrices(0) | {"model.norm.weight": torch.ones(8)}
    for prefix in ("model.", "base_model.model.", "_orig_mod.", "module."):
        wrapped = {f"{prefix}{name}": one.clone() for name, one in tensors.items()}
        found = same(tmp_path / prefix, tensors, wrapped)
        assert found.holds is True, prefix
    broken = copied(wrapped)
    broken[f"{prefix}{UP.format(0)}"][0, 0] += 1
    assert same(tmp_path / "broken", tensors, broken).holds is False


def test_swapped_projections_are_named(tmp_path):
    """Swapped q and k are told from other values."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"]
    tensors = {name: torch.randn(64, 64, generator=generator) for name in names}
    swapped = copied(tensors)
    swapped[names[0]], swapped[names[1]] = tensors[names[1]].clone(), tensors[names[0]].clone()
    found = same(tmp_path / "1", tensors, swapped)
    assert {one.name: one.what for one in found.against} == {
        names[0]: f"4,096 of 4,096 entries differ; A has these values in {names[1]}",
        names[1]: f"4,096 of 4,096 entries differ; A has these values in {names[0]}",
    }
    noise = copied(tensors)
    noise[names[0]] = torch.randn(64, 64, generator=generator)
    (one,) = same(tmp_path / "3", tensors, noise).against
    assert one.what == "4,096 of 4,096 entries differ"


def test_whole_numbers_and_packed_weights_are_compared_byte_by_byte(tmp_path):
    """Buffers of integers count; quantised weights beside floats cannot be told."""
    tensors = planted.matrices(0) | {"model.position_ids": torch.arange(8)}
    assert same(tmp_path / "1", tensors, copied(tensors)).holds is True
    other = copied(tensors)
    other["model.position_ids"][3] = 9
    found = same(tmp_path / "2", tensors, other)
    assert found.holds is False
    assert [one.name for one in found.against] == ["model.position_ids"]
    stem = "model.layers.0.mlp.up_proj"
    packed = {name: one for name, one in planted.matrices(0).items() if stem not in name}
    packed |= {
        f"{stem}.qweight": torch.ones(1, 8, dtype=torch.int32),
        f"{stem}.qzeros": torch.ones(1, 1, dtype=torch.int32),
        f"{stem}.scales": torch.ones(1, 8, dtype=torch.float16),
        f"{stem}.g_idx": torch.zeros(8, dtype=torch.int32),
    }
    said = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}
    config = {**planted.LLAMA, "quantization_config": said}
    assert same(tmp_path / "3", packed, copied(packed), config).holds is True
    other = copied(packed)
    other[f"{stem}.qweight"][0, 0] = 2
    assert same(tmp_path / "4", packed, other, config).holds is False
    found = same(tmp_path / "5", planted.matrices(0), packed, planted.LLAMA, config)
    assert found.holds is None
    assert found.exit_code == 5


def test_vectors_of_another_shape_are_equal_and_told(tmp_path):
    """A loader may refuse a vector that is stored as one row or one column."""
    tensors = planted.matrices(0) | {
        "model.norm.weight": torch.rand(64),
        "lm_head.bias": torch.ones(9),
    }
    found = same(tmp_path / "as it is", tensors, tensors)
    assert found.reason == f"all {len(tensors)} tensors are equal"
    other = tensors | {"model.norm.weight": tensors["model.norm.weight"].view(1, 64)}
    found = same(tmp_path / "row", tensors, other)
    assert found.holds
    assert found.reason.endswith("are equal, but 1 vector has another shape: 64 in A, 1 x 64 in B")
    other["lm_head.bias"] = other["lm_head.bias"].view(9, 1)
    found = same(tmp_path / "both", other, tensors)
    assert found.holds
    assert "but 2 vectors have another shape: " in found.reason
    assert "9 x 1 in A, 9 in B" in found.reason


def test_whole_numbers_are_compared_as_numbers(tmp_path):
    """By entries, whatever their dtypes; one of another shape is in both, and differs."""
    tensors = planted.matrices(0)

    def told(name, one, other):
        sides = (tensors | {"model.position_ids": values} for values in (one, other))
        return same(tmp_path / name, *sides)

    whole = torch.arange(4)
    assert told("narrow", whole, whole.int()).reason.endswith(
        "I64 -> I32 that is exact in every entry"
    )
    assert told("flags", torch.tensor([True, False]), torch.tensor([1, 0], dtype=torch.uint8)).holds
    found = told("off", whole, torch.tensor([0, 1, 2, 300]))
    assert found.against[0].what == "1 of 4 entries differ"
    assert (
        told("off narrow", whole, torch.tensor([0, 1, 2, 30]).byte()).figures["entries_differ"] == 1
    )
    found = told("shape", whole, whole.view(2, 2))
    assert found.reason.endswith("shape 4 in A, 2 x 2 in B, of 1 tensor")
    assert found.figures["tensors_only_in_a"] == found.figures["tensors_only_in_b"] == 0
    found = told("floats", whole, whole.float())
    assert "I64 in A, F32 in B, of 1 tensor" in found.reason


def test_another_model_is_told_by_what_it_lacks(tmp_path):
    """Nothing of one has a place in the other: an answer, no fault."""
    other = {"transformer.wte.weight": torch.randn(8, 8), "foo.bar": torch.randn(3, 3)}
    found = same(tmp_path, planted.matrices(0), other)
    assert found.holds is False
    assert "2 tensors only in A; 2 tensors only in B" in found.reason


def test_an_exporter_that_wrote_another_model_of_the_same_names(tmp_path):
    """Weights of another initialisation: every tensor differs by as much as independent ones do,
    whose squared norms add up.
    """
    first, second = (planted.matrices(seed, layers=3, size=64) for seed in (0, 1))
    found = same(tmp_path, first, second)
    assert found.holds is False
    assert found.figures["tensors_differ"] == len(first)
    for against in found.against:
        norms = [float(one[against.name].double().square().sum()) for one in (first, second)]
        assert against.size == pytest.approx((sum(norms) / norms[0]) ** 0.5, rel=0.05)


def test_figures_do_not_depend_on_jobs(tmp_path):
    """The same JSON from one worker and from four."""
    a = planted.saved("llama", tmp_path / "a")
    b = planted.perturbed(a, tmp_path / "b")
    one, four = (shadow.verify("same", a, b, jobs=jobs).as_json() for jobs in (1, 4))
    assert one == four
    assert one["outcome"] == "does_not_hold"


def test_the_files_of_one_folder_are_not_read(tmp_path, monkeypatch):
    """A folder beside itself by another name ends early."""
    a = planted.toy(tmp_path / "a", 0)
    (tmp_path / "b").symlink_to(a)
    monkeypatch.setattr("shadow.audits.verify.same.scan", None)
    assert shadow.verify("same", a, tmp_path / "b").reason == "the weight files are the same files"


def test_the_same_files_may_be_decoded_in_another_way(tmp_path):
    """GPTQ of another version has zeros that are one higher."""
    pieces, _ = quantisers.gptq(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))
    tensors = {f"model.layers.0.mlp.up_proj.{name}": one for name, one in pieces.items()}
    said = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    a = planted.write(tmp_path / "a", tensors, {**planted.LLAMA, "quantization_config": said})
    for name, more in (("b", {}), ("c", {"checkpoint_format": "gptq_v2"})):
        (tmp_path / name).mkdir()
        os.link(a / "model.safetensors", tmp_path / name / "model.safetensors")
        config = {**planted.LLAMA, "quantization_config": said | more}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert "are the same files" in shadow.verify("same", a, tmp_path / "b").reason
    assert shadow.verify("same", a, tmp_path / "c").holds is False


def test_the_command_prints_a_line_and_exits_with_its_code(tmp_path):
    """0 holds, 4 does not hold, 1 a fault, 2 wrong usage; JSON has the tensors."""
    planted.toy(tmp_path / "a", 0)
    planted.toy(tmp_path / "b", 0)
    planted.toy(tmp_path / "c", 1)
    done = run_shadow("verify", "same", "./a", "./b", cwd=tmp_path).assert_done()
    assert "holds: both tensors are equal" in done
    found = run_shadow("verify", "same", "./a", "./c", "--json", cwd=tmp_path)
    told = json.loads(found.assert_done(4))
    assert told["outcome"] == "does_not_hold"
    assert {one["name"] for one in told["against"]} == {UP.format(0), UP.format(1)}
    run_shadow("verify", "same", "./a", "./none", cwd=tmp_path).assert_refused()
    for wrong in (
        ["same", "./a"],
        ["smae", "./a", "./b"],
        ["same", "./a", "./b", "./c"],
        ["same", "a", "b"],
        [],
        ["same", "--claims", "x.yaml"],
    ):
        run_shadow("verify", *wrong, cwd=tmp_path).assert_refused(2)
    (tmp_path / "cut").mkdir()
    raw = (tmp_path / "a" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(raw[:-8])
    run_shadow("verify", "same", "./a", "./cut", cwd=tmp_path).assert_refused()


def test_claims_of_a_file_are_checked_in_turn_and_the_code_is_the_first_of_1_4_5_0(tmp_path):
    """A list with texts and mappings; folders are relative to it; JUnit has a case each."""
    folder = tmp_path / "deep"
    planted.toy(folder / "a", 0)
    planted.toy(folder / "b", 0)
    planted.toy(folder / "c", 1)
    file = folder / "claims.yaml"
    file.write_text("- same ./a ./b\n- {claim: same, of: [./a, ./c]}\n")
    found = run_shadow("verify", "--claims", file, "--junit", "r.xml", cwd=tmp_path)
    assert "does not hold" in found.assert_done(4)
    text = (tmp_path / "r.xml").read_text()
    assert 'tests="2" failures="1" errors="0"' in text
    file.write_text("- same ./a ./b\n- same ./a ./none\n- same ./a ./c\n")
    found = run_shadow("verify", "--claims", file, "--json", cwd=tmp_path)
    told = json.loads(found.assert_done(1))
    assert [one["outcome"] for one in told] == ["holds", "fault", "does_not_hold"]
    file.write_text("- same ./a ./b\n- smae ./a ./b\n")
    error = run_shadow("verify", "--claims", file, cwd=tmp_path).assert_refused(2)
    assert "claims.yaml:2: no claim 'smae'" in error
    for text in ("same: x\n", "- {claim: same}\n", "- [1]\n", "", "- {claim: same, of: [a]}\n"):
        file.write_text(text)
        error = run_shadow("verify", "--claims", file, cwd=tmp_path)
        assert error.code in (1, 2)
        error.assert_refused(error.code)


def test_names_from_files_are_harmless_on_a_terminal(tmp_path):
    """Control characters and workflow commands of a name stay text."""
    a = planted.matrices(0) | {"x\x1b[2J\n::error::y": torch.ones(4)}
    b = copied(a)
    b["x\x1b[2J\n::error::y"][0] = 2
    for name, tensors in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    found = run_shadow("verify", "same", "./a", "./b", cwd=tmp_path)
    assert found.code in (1, 4)
    assert "\x1b[2J" not in found.out + found.err
    assert "\n::error" not in found.out + found.err


def lora(folder, tensors, **config):
    """An adapter's files."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("linked", [False, True], ids=["copies", "the same file"])
def test_adapters_of_other_scales_are_not_the_same(tmp_path, linked):
    """Equal factors with another alpha are another update; another way to write a scale is not."""
    module = "base_model.model.model.layers.{}.self_attn.q_proj"
    tensors = {}
    for layer in range(2):
        tensors[f"{module.format(layer)}.lora_A.weight"] = torch.ones(4, 8)
        tensors[f"{module.format(layer)}.lora_B.weight"] = torch.ones(8, 4)
    a = lora(tmp_path / "a", tensors)
    cases = [
        ({"lora_alpha": 64}, 2),
        ({"use_rslora": True}, 2),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 16}}, 1),
        ({"use_rslora": True, "lora_alpha": 4}, 0),
        ({"lora_dropout": 0.5}, 0),
    ]
    for number, (config, apart) in enumerate(cases):
        b = lora(tmp_path / f"b{number}", tensors, **config)
        if linked:
            (b / "adapter_model.safetensors").unlink()
            (b / "adapter_model.safetensors").hardlink_to(a / "adapter_model.safetensors")
        found = shadow.verify("same", a, b)
        assert found.holds is (apart == 0), (config, found)
        assert len(found.against) == apart
        if apart:
            assert "scale" in found.reason
            assert "layers.1.self_attn.q_proj" in found.against[-1].name


@pytest.mark.parametrize("entry", ["3", "''", "same"])
def test_an_entry_that_is_no_claim_says_how_one_is_written(tmp_path, entry):
    """In one line with its number, and a hint."""
    (tmp_path / "claims.yaml").write_text(f"- {entry}\n")
    done = run_shadow("verify", "--claims", "claims.yaml", cwd=tmp_path)
    done.assert_refused()
    assert "claims.yaml:1: " in done.err
    assert "is no claim with checkpoints" in done.err
    assert "write `same ./a ./b`" in done.err


def test_a_claim_in_one_line_with_options_says_how_to_write_them(tmp_path):
    """As typed at the command it would be taken for a checkpoint called --frozen."""
    (tmp_path / "claims.yaml").write_text("- trained ./a ./b --frozen embed\n")
    done = run_shadow("verify", "--claims", "claims.yaml", cwd=tmp_path)
    done.assert_refused()
    assert "a claim in one line has no options" in done.err
    assert "write {claim: trained, of: [./a, ./b], frozen: [embed]}" in done.err


def test_hints_name_what_the_claim_takes(tmp_path):
    """Usage has its options; a base by component only where there is a base."""
    done = run_shadow("verify", "trained", "./a", "./b", cwd=tmp_path)
    assert "trained BASE TUNED --moved PATTERN --frozen PATTERN" in done.err
    done = run_shadow("verify", "same", "language=./a", "./b", cwd=tmp_path)
    assert "--base" not in done.err
    done = run_shadow("verify", "same", "./a", "./b", "--base", "./c", cwd=tmp_path)
    assert "stored and mixture have it" in done.err


def test_an_integer_weight_beside_a_float_cannot_be_told(tmp_path):
    """Also where no config says how it was quantised."""
    name = "model.layers.0.mlp.up_proj.weight"
    rest = {"model.norm.weight": torch.ones(8)}
    a = planted.write(tmp_path / "a", {name: torch.ones(8, 8), **rest}, planted.LLAMA)
    whole = torch.ones(8, 8, dtype=torch.int8)
    b = planted.write(tmp_path / "b", {name: whole, **rest}, planted.LLAMA)
    for sides in ((a, b), (b, a)):
        found = shadow.verify("same", *sides)
        assert found.holds is None, found
        found = shadow.verify("trained", *sides, frozen="mlp.up")
        assert found.holds is None, found


def test_a_size_is_only_given_where_it_is_known(tmp_path):
    """Not of tensors with NaN, and not of those that are compared byte by byte."""
    name, norm = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    sides = {name: torch.ones(8, 8), norm: torch.ones(8)}
    a = planted.write(tmp_path / "a", sides, planted.LLAMA)
    with_nan = {**sides, norm: torch.tensor([torch.nan, *[1.0] * 7])}
    found = shadow.verify("same", a, planted.write(tmp_path / "b", with_nan, planted.LLAMA))
    assert found.reason == "1 of 2 tensors differs, in 1 entry"
    packed = {**sides, "model.steps": torch.tensor([1])}
    c = planted.write(tmp_path / "c", packed, planted.LLAMA)
    packed = {**sides, "model.steps": torch.tensor([2])}
    found = shadow.verify("same", c, planted.write(tmp_path / "d", packed, planted.LLAMA))
    assert found.reason == "1 of 3 tensors differs, in 1 entry"
    assert "relative_norm" not in found.figures


def test_a_head_that_only_one_config_ties_is_said_to_be_tied(tmp_path):
    """The embeddings are equal: it is the head that differs."""
    embed = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    sides = {"model.embed_tokens.weight": embed, "lm_head.weight": embed + 1}
    a = planted.write(tmp_path / "a", sides, planted.LLAMA)
    del sides["lm_head.weight"]
    tied = planted.LLAMA | {"tie_word_embeddings": True}
    b = planted.write(tmp_path / "b", sides, tied)
    found = shadow.verify("same", a, b)
    assert found.holds is False
    assert "as the head of the second, which its config ties to the embedding" in str(found.against)
    found = shadow.verify("same", b, a)
    assert "as the head of the first" in str(found.against)


def test_rows_of_a_grown_vocabulary_are_no_tensors(tmp_path):
    """They are counted as rows, by every claim that compares tensors."""
    sides = {"model.embed_tokens.weight": torch.ones(16, 8), "model.norm.weight": torch.ones(8)}
    a = planted.write(tmp_path / "a", sides, planted.LLAMA)
    grown = {**sides, "model.embed_tokens.weight": torch.ones(18, 8)}
    b = planted.write(tmp_path / "b", grown, planted.LLAMA)
    found = shadow.verify("same", a, b)
    assert found.reason == "both tensors that both have are equal; 2 rows only in B, of 1 tensor"
    assert found.figures["tensors_only_in_b"] == 0
    found = shadow.verify("trained", a, b, frozen="embed")
    assert found.reason == "2 rows only in the tuned model, of 1 tensor"
    assert "2 rows only in the copy" in shadow.verify("stored", a, b).reason


def test_dora_adapters_are_compared_with_their_norms(tmp_path):
    """An adapter whose norms are not used is another one."""
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": torch.ones(4, 8),
               f"{module}.lora_B.weight": torch.ones(8, 4),
               f"{module}.lora_magnitude_vector": torch.ones(8)}  # fmt: skip
    a = lora(tmp_path / "a", tensors, use_dora=True)
    assert shadow.verify("same", a, lora(tmp_path / "b", tensors, use_dora=True)).holds is True
    found = shadow.verify("same", a, lora(tmp_path / "c", tensors))
    assert found.holds is False
    assert found.reason.endswith("only A is a DoRA adapter")
    other = {**tensors, f"{module}.lora_magnitude_vector": torch.full((8,), 1.5)}
    found = shadow.verify("same", a, lora(tmp_path / "d", other, use_dora=True))
    assert [one.name for one in found.against] == [f"{module}.lora_magnitude_vector"]
