"""`shadow verify same`: equal tensors, whatever their names, files, packing and dtypes."""

import json
import os
import shutil

import numpy as np
import planted
import pytest
import quantisers
import torch
from command import run_shadow
from companions import of_mistral
from effort import chosen
from safetensors.torch import load_file, save_file

import shadow
from shadow.errors import ShadowError
from shadow.run import scan as scan_module

UP = planted.UP
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
IDS, BIAS = "model.position_ids", "model.layers.0.self_attn.q_proj.bias"
TIED, UNTIED = (planted.LLAMA | {"tie_word_embeddings": tied} for tied in (True, False))


def same(tmp_path, first, second, config=planted.LLAMA, other=None):
    """The answer about two checkpoints of these tensors."""
    a = planted.write(tmp_path / "a", first, config)
    b = planted.write(tmp_path / "b", second, other or config)
    return shadow.verify("same", a, b)


def plus(tensors, **changes):
    """A copy with an entry of a tensor changed; names are those above, in small letters."""
    copy = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, value in changes.items():
        copy[{"up": UP.format(0), "head": HEAD, "ids": IDS}[name]].view(-1)[3] = value
    return copy


def but(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


TOY = planted.matrices(0)
EMBEDDED = TOY | {EMBED: planted.normal(1, 16, 8), HEAD: planted.normal(2, 16, 8)}
STORED = EMBEDDED | {HEAD: EMBEDDED[EMBED].clone()}  # a tied head that is stored all the same
NOT_STORED = but(EMBEDDED, HEAD)
COUNTED = TOY | {IDS: torch.arange(8)}
VECTORS = TOY | {NORM: torch.arange(64.0), "lm_head.bias": torch.ones(9)}
HALF = {name: one.bfloat16() for name, one in TOY.items()}
STEM = "model.layers.0.mlp.up_proj"
PACKED = but(TOY, f"{STEM}.weight") | {
    f"{STEM}.qweight": torch.ones(1, 8, dtype=torch.int32),
    f"{STEM}.qzeros": torch.ones(1, 1, dtype=torch.int32),
    f"{STEM}.scales": torch.ones(1, 8, dtype=torch.float16),
    f"{STEM}.g_idx": torch.zeros(8, dtype=torch.int32),
}
MARLIN = planted.LLAMA | {
    "quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}
}
WHOLE_UP = TOY | {UP.format(0): torch.ones(8, 8, dtype=torch.int8)}
QKVO = {
    f"model.layers.0.self_attn.{part}_proj.weight": planted.normal(10 + n, 64, 64)
    for n, part in enumerate("qkvo")
}
Q, K, *_ = QKVO
NO, YES, OPEN = "does_not_hold", "holds", "inconclusive"


def ids(values):
    return TOY | {IDS: values}


def entries(count):
    return {"entries_differ": count}


# planted: A, B (and their configs) -> outcome, tensors that speak against it (None: not asked),
# figures
CASES = {
    "zeros of other signs": (plus(TOY, up=0.0), plus(TOY, up=-0.0), YES, (), {}),
    "equal NaNs": (plus(TOY, up=torch.nan), plus(TOY, up=torch.nan), YES, (), {}),
    "a NaN beside a number": (TOY, plus(TOY, up=torch.nan), NO, [UP.format(0)], entries(1)),
    "a cast that is exact": (HALF, {name: one.float() for name, one in HALF.items()}, YES, (), {}),
    "a head less": (EMBEDDED, NOT_STORED, NO, [HEAD], {"tensors_only_in_a": 1}),
    "a bias more": (TOY, TOY | {BIAS: torch.zeros(8)}, NO, [BIAS], {"tensors_only_in_b": 1}),
    "a grown vocabulary": (
        EMBEDDED, EMBEDDED | {EMBED: EMBEDDED[EMBED].repeat(2, 1)}, NO, [EMBED],
        {"tensors_only_in_b": 0},
    ),
    "a tied head that is stored": (NOT_STORED, STORED, TIED, TIED, YES, (), {}),
    "a tied head that is stored, untied": (NOT_STORED, STORED, TIED, UNTIED, YES, (), {}),
    **{
        f"a tied head that differs {number}": (*sides, NO, None, entries(differ))
        for number, (*sides, differ) in enumerate([
            (NOT_STORED, plus(STORED, head=9), TIED, TIED, 1),
            (plus(STORED, head=9), NOT_STORED, TIED, TIED, 1),
            (NOT_STORED, plus(STORED, head=9), TIED, UNTIED, 1),
            (STORED, plus(STORED, head=9), TIED, TIED, 2),  # beside embedding and head
            (plus(STORED, head=9), STORED, UNTIED, TIED, 2),  # beside embedding and head
        ])
    },
    "a head that one config ties": (EMBEDDED, NOT_STORED, planted.LLAMA, TIED, NO, None, {}),
    "whole numbers": (COUNTED, plus(COUNTED), YES, (), {}),
    "another whole number": (COUNTED, plus(COUNTED, ids=9), NO, [IDS], {}),
    "whole numbers in fewer bits": (COUNTED, ids(torch.arange(8).int()), YES, (), {}),
    "flags as bytes": (
        ids(torch.tensor([True, False])), ids(torch.tensor([1, 0]).byte()), YES, (), {}
    ),
    "a number that fewer bits lack": (
        ids(torch.arange(4)), ids(torch.tensor([0, 1, 2, 300])), NO, [IDS], entries(1)
    ),
    "another number in fewer bits": (
        ids(torch.arange(4)), ids(torch.tensor([0, 1, 2, 30]).byte()), NO, [IDS], entries(1)
    ),
    "whole numbers of another shape": (
        ids(torch.arange(4)), ids(torch.arange(4).view(2, 2)), NO, [IDS],
        {"tensors_only_in_a": 0, "tensors_only_in_b": 0},
    ),
    "whole numbers as floats": (ids(torch.arange(4)), ids(torch.arange(4.0)), NO, [IDS], {}),
    "packed": (PACKED, plus(PACKED), MARLIN, MARLIN, YES, (), {}),
    "packed otherwise": (
        PACKED, PACKED | {f"{STEM}.qweight": torch.full((1, 8), 2).int()}, MARLIN, MARLIN, NO,
        None, {},
    ),
    "packed beside floats": (TOY, PACKED, planted.LLAMA, MARLIN, OPEN, None, {}),
    "whole numbers for a matrix": (TOY, WHOLE_UP, OPEN, None, {}),
    "a matrix for whole numbers": (WHOLE_UP, TOY, OPEN, None, {}),
    "vectors as rows and columns": (
        VECTORS,
        VECTORS | {NORM: VECTORS[NORM].view(1, 64), "lm_head.bias": torch.ones(9, 1)}, YES, (), {},
    ),
    **{
        f"a prefix {prefix}": (TOY, {f"{prefix}{n}": one for n, one in TOY.items()}, YES, (), {})
        for prefix in ("model.", "base_model.model.", "_orig_mod.", "module.")
    },
    "swapped projections": (QKVO, QKVO | {Q: QKVO[K], K: QKVO[Q]}, NO, [Q, K], entries(8192)),
    "another model": (
        TOY, {"transformer.wte.weight": torch.ones(8, 8), "foo.bar": torch.ones(3, 3)}, NO, None,
        {"tensors_only_in_a": 2, "tensors_only_in_b": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_planted_and_what_is_said(tmp_path, case):
    first, second, *configs, outcome, against, figures = CASES[case]
    found = same(tmp_path, first, second, *configs)
    assert (found.outcome, found.exit_code) == (outcome, {YES: 0, NO: 4, OPEN: 5}[outcome])
    assert against is None or sorted(one.name for one in found.against) == sorted(against)
    assert {name: found.figures[name] for name in figures} == figures


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_one_entry_that_differs_is_found_and_its_size_is_that_of_numpy(tmp_path, dtype):
    """With the smallest step in one entry; a copy is the same."""
    tensors = {name: one.to(dtype) for name, one in planted.matrices(0, size=32).items()}
    assert same(tmp_path / "1", tensors, plus(tensors)).holds is True
    changed = plus(tensors)
    name = UP.format(1)
    changed[name].view({2: torch.int16, 4: torch.int32}[dtype.itemsize])[3, 5] += 1
    found = same(tmp_path / "2", tensors, changed)
    assert (found.holds, [one.name for one in found.against]) == (False, [name])
    base, tuned = (one[name].double().numpy() for one in (tensors, changed))
    far = np.linalg.norm(tuned - base) / np.linalg.norm(base)
    assert found.against[0].size == pytest.approx(far, rel=1e-6)
    assert found.figures["entries_differ"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("back", [False, True], ids=["as it is", "again in F32"])
def test_a_rounded_copy_does_not_hold_and_is_named(tmp_path, dtype, back):
    rounded = {name: one.to(dtype) for name, one in TOY.items()}
    other = {name: one.float() if back else one for name, one in rounded.items()}
    for number, sides in enumerate(((TOY, other), (other, TOY))):
        found = same(tmp_path / str(number), *sides)
        assert found.holds is False
        assert f"is {'BA'[1 - number]} rounded to" in found.reason
    broken = plus(rounded, up=9)
    assert same(tmp_path / "broken", TOY, broken).code != "rounded"


def test_mistrals_own_file_is_that_of_transformers(tmp_path):
    """Other names, q and k in another order, heads of params.json or config; an entry is found."""
    one = planted.saved("mistral", tmp_path / "hf")
    numbers = torch.randn(64, generator=torch.Generator().manual_seed(0))
    biases = {f"model.layers.0.self_attn.{part}_proj.bias": numbers[: 64 // of].clone()
              for part, of in (("q", 1), ("k", 2))}  # fmt: skip
    planted.write(one, load_file(one / "model.safetensors") | biases)
    config = json.loads((one / "config.json").read_text())
    shutil.copytree(one, tmp_path / "both")
    of_mistral(tmp_path / "both")
    file = tmp_path / "both" / "consolidated.safetensors"
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(file, own)
    heads = {"n_heads": config["num_attention_heads"], "n_kv_heads": config["num_key_value_heads"]}
    (own / "params.json").write_text(json.dumps(heads))
    for other in (file, own):
        assert shadow.verify("same", one, other).holds is True
    tensors = load_file(file)
    tensors["layers.0.attention.wq.weight"][1, 2] += 1
    save_file(tensors, file)
    assert shadow.verify("same", one, file).figures["entries_differ"] == 1


WQ, WK, OWN_Q = (f"layers.0.attention.{name}.weight" for name in ("wq", "wk", "q_proj"))


def in_pairs(heads=2, more=(), change="", **values):
    """Mistral's names; the heads stand in params.json. `more` are further tensors."""
    names = {WQ: 1, WK: 2, "norm.weight": 3} | {name: 10 + at for at, name in enumerate(more)}
    tensors = {name: planted.normal(seed, 16, 16) for name, seed in names.items()}
    if change:
        tensors[change] = tensors[change] + 1
    return tensors, {"n_heads": heads} | values


# Mistral's own files: two sides, outcome, entries that differ
OF_MISTRAL = {
    "equal": (in_pairs(), in_pairs(), YES, 0),
    "equal bytes, other heads": (in_pairs(2), in_pairs(4), NO, None),
    "a projection of another name beside": (
        in_pairs(more=[OWN_Q]), in_pairs(more=[OWN_Q], change=WQ), NO, 256),
    "a change in the one of another name": (
        in_pairs(more=[OWN_Q]), in_pairs(more=[OWN_Q], change=OWN_Q), NO, 256),
    "heads that are none": (in_pairs("x"), in_pairs("x", change=WK), NO, 256),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_MISTRAL)
def test_heads_of_mistrals_params_decide_on_its_order(case, tmp_path):
    """A tensor is renamed only where its new name is free."""
    *sides, outcome, differ = OF_MISTRAL[case]
    folders = []
    for name, (tensors, params) in zip("ab", sides, strict=True):
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "consolidated.safetensors")
        (folder / "params.json").write_text(json.dumps(params))
        folders.append(folder)
    found = shadow.verify("same", *folders)
    assert found.outcome == outcome
    assert differ is None or found.figures["entries_differ"] == differ


def test_a_broken_params_of_mistrals_is_named(tmp_path):
    for name, params in (("a", '{"n_heads": 2}'), ("b", "{")):
        (tmp_path / name).mkdir()
        save_file(in_pairs()[0], tmp_path / name / "consolidated.safetensors")
        (tmp_path / name / "params.json").write_text(params)
    with pytest.raises(ShadowError, match=r"params\.json: not JSON"):
        shadow.verify("same", tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("params", ["{", "[1]", "[" * 100_000, "", "\0"])
def test_a_broken_params_of_another_model_is_no_matter(params, tmp_path):
    """Only Mistral's names make it a file of Mistral's."""
    folder = planted.write(tmp_path / "a", TOY)
    (folder / "params.json").write_text(params)
    assert shadow.verify("same", folder, planted.write(tmp_path / "b", TOY)).holds is True


@pytest.mark.parametrize("kind", chosen(["mixtral", "qwen3_moe", "deepseek_v3"], ["mixtral"]))
def test_keys_that_a_library_renamed_and_experts_that_it_packed(tmp_path, kind):
    """Names of the file beside those in memory, where experts are a stack; an entry is found."""
    file, memory = planted.saved_twice(kind, tmp_path)
    found = shadow.verify("same", file, memory)
    assert found.holds is True
    assert found.notes
    tensors = load_file(memory / "model.safetensors")
    name = next(name for name in tensors if name.endswith("experts.down_proj"))
    tensors[name][2, 3, 4] += 1
    save_file(tensors, memory / "model.safetensors")
    found = shadow.verify("same", file, memory)
    assert found.holds is False
    assert (found.figures["tensors_differ"], found.figures["entries_differ"]) == (1, 1)


def test_the_shape_of_a_tensor_on_either_side_is_said(tmp_path):
    found = same(tmp_path, QKVO, QKVO | {Q: QKVO[Q][:, :32].clone()})
    (against,) = found.answer.against
    figures = {"first": "64 x 64", "a": "A", "second": "64 x 32", "b": "B"}
    assert (against.why.code, against.why.figures) == ("shapes", figures)


def test_swapped_projections_name_each_other(tmp_path):
    found = same(tmp_path, QKVO, QKVO | {Q: QKVO[K], K: QKVO[Q]})
    assert {one.name for one in found.against} == {Q, K}
    assert all({Q: K, K: Q}[one.name] in one.what for one in found.against)


def test_figures_do_not_depend_on_jobs(tmp_path):
    a = planted.saved("llama", tmp_path / "a")
    b = planted.perturbed(a, tmp_path / "b")
    one, four = (shadow.verify("same", a, b, jobs=jobs).as_json() for jobs in (1, 4))
    assert one == four
    assert one["outcome"] == NO


def test_one_file_is_not_read_unless_its_config_decodes_it_otherwise(tmp_path, monkeypatch):
    """GPTQ of another version has zeros that are one higher."""
    pieces, _ = quantisers.gptq(planted.normal(0, 32, 32))
    tensors = {f"{STEM}.{name}": one for name, one in pieces.items()}
    said = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    a = planted.write(tmp_path / "a", tensors, planted.LLAMA | {"quantization_config": said})
    (tmp_path / "link").symlink_to(a)
    for name, more in (("b", {}), ("c", {"checkpoint_format": "gptq_v2"})):
        (tmp_path / name).mkdir()
        os.link(a / "model.safetensors", tmp_path / name / "model.safetensors")
        config = planted.LLAMA | {"quantization_config": said | more}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    assert shadow.verify("same", a, tmp_path / "c").holds is False
    plain = [planted.write(tmp_path / name, TOY, planted.LLAMA) for name in ("d", "e")]
    planted.edit(plain[1], quantization_config={"quant_method": "other"})
    assert shadow.verify("same", *plain).code == "equal"  # read: configs differ
    monkeypatch.setattr(scan_module, "scan", None)
    assert shadow.verify("same", a, tmp_path / "b").code == "equal_files"
    found = shadow.verify("same", a, tmp_path / "link")  # nothing was compared
    assert (found.holds, found.code) == (None, "one_checkpoint")
    assert found.reason.startswith("A and B are one checkpoint")


FACTORS = {
    f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{which}.weight": torch.ones(shape)
    for layer in range(2)
    for which, shape in (("A", (4, 8)), ("B", (8, 4)))
}
NORMS = "base_model.model.model.layers.{}.self_attn.q_proj.lora_magnitude_vector"


@pytest.mark.parametrize("linked", [False, True], ids=["copies", "the same file"])
@pytest.mark.parametrize(("config", "apart"), [
    ({"lora_alpha": 64}, [16.0] * 2), ({"use_rslora": True}, [4.0] * 2),
    ({"alpha_pattern": {"layers.1.self_attn.q_proj": 16}}, [4.0]),
    ({"use_rslora": True, "lora_alpha": 4}, []), ({"lora_dropout": 0.5}, []),
])  # fmt: skip
def test_adapters_of_other_scales_are_not_the_same(tmp_path, linked, config, apart):
    """Equal factors with another alpha are another update; another way to write a scale is not."""
    a, b = (
        planted.adapter(tmp_path / "a", {}, FACTORS),
        planted.adapter(tmp_path / "b", {}, FACTORS, **config),
    )
    if linked:
        (b / "adapter_model.safetensors").unlink()
        (b / "adapter_model.safetensors").hardlink_to(a / "adapter_model.safetensors")
    found = shadow.verify("same", a, b)
    scales = [one.why.figures for one in found.answer.against]
    assert (found.holds, scales) == (not apart, [{"a": 2.0, "b": scale} for scale in apart])
    assert not apart or "layers.1.self_attn.q_proj" in found.against[-1].name


def test_dora_adapters_are_compared_with_their_norms(tmp_path):
    """An adapter whose norms are not used is another one."""
    tensors = FACTORS | {NORMS.format(layer): torch.ones(8) for layer in range(2)}
    other = tensors | {NORMS.format(0): torch.full((8,), 1.5)}
    a = planted.adapter(tmp_path / "a", {}, tensors, use_dora=True)
    b = planted.adapter(tmp_path / "b", {}, tensors, use_dora=True)
    assert shadow.verify("same", a, b).holds is True
    for sides, where in (((a, tmp_path / "c"), "A"), ((tmp_path / "c", a), "B")):
        planted.adapter(tmp_path / "c", {}, tensors)
        found = shadow.verify("same", *sides)
        assert found.holds is False
        (dora,) = (one for one in found.answer.reasons if one.code == "dora")
        assert dora.figures == {"where": where}
    found = shadow.verify("same", a, planted.adapter(tmp_path / "d", {}, other, use_dora=True))
    assert [one.name for one in found.against] == [NORMS.format(0)]


def test_the_command_exits_with_its_code(tmp_path):
    """0 holds, 4 does not hold, 1 a fault, 2 wrong usage; JSON has the tensors."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        planted.toy(tmp_path / name, seed)
    run_shadow("verify", "same", "./a", "./b", cwd=tmp_path).assert_done()
    found = run_shadow("verify", "same", "./a", "./c", "--json", cwd=tmp_path)
    recorded = json.loads(found.assert_done(4))
    assert recorded["outcome"] == NO
    assert {one["name"] for one in recorded["against"]} == {UP.format(0), UP.format(1)}
    for wrong in (
        ["same", "./a"], ["smae", "./a", "./b"], ["same", "./a", "./b", "./c"], ["same", "a", "b"],
        [], ["same", "--claims", "x.yaml"], ["trained", "./a", "./b"],
        ["same", "language=./a", "./b"], ["same", "./a", "./b", "--base", "./c"],
    ):  # fmt: skip
        run_shadow("verify", *wrong, cwd=tmp_path).assert_refused(2)
    (tmp_path / "cut").mkdir()
    raw = (tmp_path / "a" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(raw[:-8])
    for other in ("./none", "./cut"):
        run_shadow("verify", "same", "./a", other, cwd=tmp_path).assert_refused()


CLAIMS = {  # a file of claims -> exit code, outcomes
    "- same ./a ./b\n- {claim: same, of: [./a, ./c]}\n": (4, ["holds", NO]),
    "- same ./a ./c\n- same ./a ./p\n- same ./a ./b\n": (4, [NO, OPEN, "holds"]),
    "- same ./a ./b\n- same ./a ./p\n": (5, ["holds", OPEN]),
    "- same ./a ./b\n- same ./a ./none\n- same ./a ./c\n": (1, ["holds", "fault", NO]),
    "- same ./a ./b\n- smae ./a ./b\n": (2, None),
    "- trained ./a ./b --frozen embed\n": (1, None),
    "same: x\n": (1, None),
    "- {claim: same}\n": (1, None),
    "- [1]\n": (1, None),
    "- 3\n": (1, None),
    "- ''\n": (1, None),
    "- same\n": (1, None),
    "": (1, None),
    "- {claim: same, of: [a]}\n": (2, None),
}


@pytest.fixture(scope="module")
def claimed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims") / "deep"
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        planted.toy(folder / name, seed)
    planted.write(folder / "p", PACKED, MARLIN)
    return folder


@pytest.mark.parametrize("text", CLAIMS)
def test_claims_of_a_file_and_the_first_of_1_4_5_0(claimed, text):
    """Folders are relative to the file; JUnit has a case each; what is no claim has its line."""
    code, outcomes = CLAIMS[text]
    (claimed / "claims.yaml").write_text(text)
    words = ("verify", "--claims", "deep/claims.yaml", "--json", "--junit", "r.xml")
    done = run_shadow(*words, cwd=claimed.parent)
    if outcomes is None:
        done.assert_refused(done.code)
        assert done.code in (1, 2)
        return
    assert [one["outcome"] for one in json.loads(done.assert_done(code))] == outcomes
    cases = (claimed.parent / "r.xml").read_text()
    assert f'tests="{len(outcomes)}"' in cases
    assert f'failures="{outcomes.count(NO)}"' in cases


@pytest.mark.parametrize("word", ["mixture", "sames"])
def test_a_claim_that_is_none_is_refused_with_those_that_are(word, tmp_path):
    """Exit code 2 before any checkpoint is looked for; `mixture` was one once."""
    done = run_shadow("verify", word, "./tuned", "./a", "./b", cwd=tmp_path)
    assert f"no claim '{word}'" in done.assert_refused(2)
    assert "same" in done.err.partition("hint:")[2]


def test_names_from_files_are_harmless_on_a_terminal(tmp_path):
    """Control characters and workflow commands of a name stay text."""
    name = "x\x1b[2J\n::error::y"
    for folder, value in (("a", 1.0), ("b", 2.0)):
        planted.write(tmp_path / folder, TOY | {name: torch.full((4,), value)})
    found = run_shadow("verify", "same", "./a", "./b", cwd=tmp_path)
    assert found.code in (1, 4)
    assert "\x1b[2J" not in found.out + found.err
    assert "\n::error" not in found.out + found.err


@pytest.mark.parametrize(("added", "outcome"), [(1, "holds"), (0, "does_not_hold")])
def test_the_1_that_gguf_adds_to_norms_may_round_as_it_does_in_the_class(added, outcome, tmp_path):
    """1 + weight in F32 has fewer digits than a weight in F32; Gemma's class multiplies by it."""
    pytest.importorskip("gguf")
    tensors = planted.gguf_llama()
    numbers = np.random.default_rng(0)
    for name in tensors:
        if name.endswith("norm.weight"):
            tensors[name] = (0.05 * numbers.standard_normal(256)).astype(np.float32)
    config = {"model_type": "gemma", "num_attention_heads": planted.GGUF_HEADS}
    torch_tensors = {name: torch.from_numpy(one) for name, one in tensors.items()}
    first = planted.write(tmp_path / "a", torch_tensors, config)
    path = tmp_path / "b.gguf"
    planted.write_gguf(path, tensors, "F32", "gemma", added=added, paired=False)
    found = shadow.verify("same", first, path)
    assert found.outcome == outcome
    assert any("the 1 that a GGUF file adds" in note for note in found.notes) is bool(added)
    moved = dict(torch_tensors)
    moved["model.norm.weight"] = moved["model.norm.weight"] + 1e-6
    planted.write(tmp_path / "a", moved, config)
    assert shadow.verify("same", first, path).figures["tensors_differ"] == (1 if added else 5)


BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4),
    "model.rotary_emb.inv_freq": torch.rand(4),
    "model.layers.0.self_attn.rotary_emb.cos_cached": torch.rand(1, 1, 8, 4),
    "model.vision_tower.embeddings.position_ids": torch.arange(9)[None],
}


@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_that_one_side_lacks_is_no_difference(tmp_path, name):
    """It is computed when a model is loaded. Where both have it, its values count as any."""
    tensors = planted.matrices(0)
    plain = planted.write(tmp_path / "plain", tensors, planted.LLAMA)
    older = planted.write(tmp_path / "older", tensors | {name: BUFFERS[name]}, planted.LLAMA)
    for sides in ((plain, older), (older, plain)):
        found = shadow.verify("same", *sides)
        assert (found.outcome, found.figures["tensors_only_in_a"]) == ("holds", 0), found
    other = planted.write(tmp_path / "other", tensors | {name: BUFFERS[name] + 1}, planted.LLAMA)
    found = shadow.verify("same", older, other)
    assert (found.outcome, found.figures["tensors_differ"]) == ("does_not_hold", 1)
    audited = shadow.audit(older, plain, output=tmp_path / "out").summary
    assert "Missing" not in audited.finding.headline
    lost = planted.write(tmp_path / "lost", dict([*tensors.items()][:1]), planted.LLAMA)
    assert shadow.verify("same", older, lost).figures["tensors_only_in_a"] == 1


def test_biases_of_fused_matrices_differ_without_a_relation(tmp_path):
    """Parts of a vector are compared as they are: only rows of matrices have an order."""
    stem = "gpt_neox.layers.0.attention.query_key_value"
    tensors = {f"{stem}.weight": torch.randn(48, 16), f"{stem}.bias": torch.randn(48)}
    config = {"model_type": "gpt_neox", "num_attention_heads": 2, "hidden_size": 16}
    found = same(tmp_path, tensors, tensors | {f"{stem}.bias": tensors[f"{stem}.bias"] * 2}, config)
    assert found.outcome == "does_not_hold"
    assert {row.name for row in found.against} == {f"{stem}.bias"}
