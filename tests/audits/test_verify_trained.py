"""`shadow verify trained`: what should have moved did, and what should be frozen is equal."""

import json
import os

import numpy as np
import planted
import pytest
import torch
from command import run_shadow
from effort import chosen
from safetensors.torch import load_file

import shadow
from shadow.errors import UsageError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NO, YES, OPEN = "does_not_hold", "holds", "inconclusive"
EMBED, NORM, UP = (
    "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight",
)  # fmt: skip


def based(dtype=torch.float32, layers=4, size=32):
    """A toy with matrices, norms and an embedding."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"):
            one = 0.02 * torch.randn(size, size, generator=generator)
            tensors[f"model.layers.{layer}.{part}.weight"] = one
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(size)
    tensors["model.embed_tokens.weight"] = 0.02 * torch.randn(64, size, generator=generator)
    tensors["model.norm.weight"] = torch.ones(size)
    return {name: one.to(dtype) for name, one in tensors.items()}


def moved(base, which, step=1e-3, seed=1):
    """The tensors with a step of one size in those that are chosen."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (one.double() + step * torch.randn(one.shape, generator=generator)).to(one.dtype)
        if which(name)
        else one.clone()
        for name, one in base.items()
    }


def recorded(tmp_path, base, tuned, **patterns):
    number = len(list(tmp_path.iterdir()))
    a = planted.write(tmp_path / f"{number}a", base, planted.LLAMA)
    b = planted.write(tmp_path / f"{number}b", tuned, planted.LLAMA)
    return shadow.verify("trained", a, b, **patterns)


def test_a_name_or_its_beginning_is_a_pattern(tmp_path):
    """Of the tensors that begin so, all have to be equal, and no others."""
    base = based()
    tuned = moved(base, lambda name: "embed" not in name)
    assert recorded(tmp_path, base, tuned, frozen="model.embed_tokens", moved="layers").holds
    found = recorded(tmp_path, base, tuned, frozen="model.layers.0.mlp")
    assert (found.holds, [one.name for one in found.against]) == (False, [UP])


def codes(found):
    """The outcome, and the codes of reasons and of what speaks against it."""
    against = [one.code for one in found.against]
    return found.outcome, [one.code for one in found.answer.reasons], against


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_what_moved_and_what_is_frozen(tmp_path, dtype):
    """Layers 2 and 3 moved, all else did not; each way round, and with one entry changed."""
    base = based(dtype)
    upper = ("layers.2.", "layers.3.")
    tuned = moved(base, lambda name: "_proj" in name and any(one in name for one in upper))
    frozen = ["layers.0-1", "embed", "norm"]
    found = recorded(tmp_path, base, tuned, moved="layers.2-3", frozen=frozen)
    assert codes(found) == (YES, ["moved", "frozen"], [])
    assert (found.figures["tensors_to_move"], found.figures["tensors_frozen"]) == (6, 12)
    found = recorded(tmp_path, base, tuned, moved=["layers.1-3"], frozen=["norm"])
    assert codes(found) == (NO, ["not_moved"], ["equal"] * 3)
    assert (found.figures["tensors_not_moved"], found.figures["tensors_to_move"]) == (3, 9)
    assert {one.name.split(".")[2] for one in found.against} == {"1"}
    found = recorded(tmp_path, base, tuned, frozen="language")
    assert codes(found) == (NO, ["leaked"], ["entries"] * 6)
    assert (found.figures["tensors_frozen_moved"], found.figures["tensors_frozen"]) == (6, 18)
    one = {name: tensor.clone() for name, tensor in base.items()}
    whole = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    one[EMBED].view(whole)[7, 7] += 1
    found = recorded(tmp_path, base, one, frozen="*")
    assert codes(found) == (NO, ["leaked"], ["entries"])
    (against,) = found.answer.against
    assert (against.name, against.why.figures["changed"]) == (EMBED, 1)


def test_norms_that_bf16_holds_at_one_are_told_from_others(tmp_path):
    """Their step is below half a unit of BF16, which is 0.0039 above 1; that of F32 is not."""
    base = based(torch.bfloat16)
    tuned = moved(base, lambda name: True, step=1e-4)
    found = recorded(tmp_path, base, tuned, moved="*")
    assert found.holds is True
    assert found.figures["tensors_initial"] == sum("norm" in name for name in base)
    assert [one.code for one in found.answer.notes] == ["stuck", "initial"]
    pairs = [(base[n].double().numpy(), tuned[n].double().numpy()) for n in base]
    stuck = 0
    for b, t in pairs:
        half = 2.0 ** (np.floor(np.log2(np.abs(b))) - 8)
        stuck += int(((b == t) & (half > found.figures["typical_step"])).sum())
    assert found.figures["entries_stuck"] == stuck
    assert found.figures["typical_step"] == pytest.approx(1e-4, rel=0.1)
    wide = based(torch.float32)
    found = recorded(tmp_path, wide, moved(wide, lambda name: True, step=1e-4), moved="*")
    assert found.holds is True
    assert found.figures["entries_stuck"] == 0


def through(tensors, *dtypes):
    for dtype in dtypes:
        tensors = {name: one.to(dtype) for name, one in tensors.items()}
    return tensors


F32, F16, BF16 = DTYPES.values()
OTHER = UP.removeprefix("model.")
EMPTY = {"model.layers.0.self_attn.v_proj.weight": torch.zeros(0, 32)}
WIDE = based()
STEPS, BUT_EMBED = moved(WIDE, lambda name: True), moved(WIDE, lambda name: name != EMBED)
CAST, HALF, BACK = through(WIDE, BF16), through(WIDE, F16), through(WIDE, BF16, F32)
SMALL = through({name: one * 1e-3 for name, one in WIDE.items()}, BF16)
LOST = {name: one for name, one in BUT_EMBED.items() if name != NORM}
TWICE = WIDE | {OTHER: WIDE[UP] + 1}  # a matrix under two names
# base, tuned, what should move, what is frozen, outcome, what speaks against it (None: not asked)
CASES = {
    "a cast is no step": (WIDE, CAST, "embed", [], NO, {EMBED: "rounded"}),
    "a cast is not equal": (WIDE, CAST, [], "embed", NO, {EMBED: "rounded"}),
    "a cast that is exact is equal": (WIDE, CAST, [], "norm", YES, {}),
    "a cast in a wider file is no step": (WIDE, BACK, "embed", [], NO, {EMBED: "rounded"}),
    "a cast in a wider file is not equal": (WIDE, BACK, [], "embed", NO, {EMBED: "rounded"}),
    "an original is not its cast": (CAST, WIDE, [], "embed", NO, {EMBED: "base_cast"}),
    "a cast to a wider format is equal": (CAST, BACK, [], "embed", YES, {}),
    "a cast to a wider format is no step": (CAST, BACK, "embed", [], NO, {EMBED: "equal"}),
    "a cast there and back that loses small numbers": (
        SMALL, through(SMALL, F16, BF16), "mlp.*", [], OPEN, None
    ),
    "a cast there and back": (HALF, through(HALF, BF16, F16), "mlp.*", [], OPEN, None),
    "steps after a cast": (HALF, through(STEPS, BF16, F16), "mlp.*", [], YES, {}),
    "an original beside its cast": (CAST, WIDE, "embed", [], OPEN, {EMBED: "base_rounded"}),
    "an original that moved": (CAST, STEPS, "mlp.*", [], YES, {}),
    "a lost tensor that no pattern names": (WIDE, LOST, "layers.*", "embed", YES, {}),
    "a lost tensor": (BUT_EMBED, LOST, [], ["norm", "embed"], NO, {NORM: "only_in"}),
    "what both patterns name is frozen": (WIDE, BUT_EMBED, "language", "embed", YES, {}),
    "an embedding that did not move": (WIDE, BUT_EMBED, "language", [], NO, {EMBED: "equal"}),
    "an empty tensor is left out": (WIDE | EMPTY, STEPS | EMPTY, "layers.*", [], YES, {}),
    "an empty tensor alone": (WIDE | EMPTY, STEPS | EMPTY, "attn.v", [], OPEN, {}),
    "two tensors at one place": (TWICE, TWICE, [], "mlp.up", YES, {}),
    "one of two at a place": (TWICE, TWICE | {UP: STEPS[UP]}, [], "mlp.up", NO, {UP: "entries"}),
    "the other": (TWICE, TWICE | {OTHER: STEPS[UP]}, [], "mlp.up", NO, {OTHER: "entries"}),
    "one of two moved": (TWICE, TWICE | {UP: STEPS[UP]}, "layers.0.mlp.up", [], NO, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_planted_and_what_is_said(tmp_path, case):
    base, tuned, to_move, frozen, outcome, against = CASES[case]
    found = recorded(tmp_path, base, tuned, moved=to_move, frozen=frozen)
    assert found.outcome == outcome, found
    assert against is None or {one.name: one.code for one in found.against} == against


Q = "model.layers.{}.self_attn.q_proj.weight"
CLOSED = WIDE | {Q.format(1): torch.full((32, 32), 3, dtype=torch.int8)}  # is not read
ADAPTERS = {  # layers that an adapter of q has, base, patterns, outcome, what is said
    "without patterns": (range(4), WIDE, {}, YES, "moved"),
    "each q": (range(4), WIDE, {"moved": "attn.q", "frozen": "mlp"}, YES, "moved frozen"),
    "of some layers": (range(2), WIDE, {"moved": "attn.q"}, NO, "not_moved equal"),
    "of more": (range(5), WIDE, {}, NO, "some_unnamed no_module"),
    "of more, which a pattern names": (
        range(5), WIDE, {"moved": "layers.3-4"}, NO, "not_moved some_unnamed equal no_module"
    ),
    "of more, which none names": (range(5), WIDE, {"moved": "layers.0-3.attn.q"}, YES, "moved"),
    "frozen": (range(4), WIDE, {"frozen": "attn"}, NO, "leaked entries"),
    "beside what is not read": (range(4), CLOSED, {}, OPEN, "not_compared not_read"),
    "frozen beside it": (range(1, 2), CLOSED, {"frozen": "attn.q"}, OPEN, "not_compared not_read"),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_moves_what_it_has_factors_of(tmp_path, case):
    """The rest of its base is left alone; what the base lacks, or hides, is no step."""
    layers, tensors, patterns, outcome, said = ADAPTERS[case]
    base = planted.write(tmp_path / "base", tensors, planted.LLAMA)
    factors = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    pairs = {Q.format(layer): (factors.clone(), factors.T.clone()) for layer in layers}
    found = shadow.verify("trained", base, planted.adapter(tmp_path / "it", pairs), **patterns)
    _, reasons, against = codes(found)
    assert (found.outcome, {*reasons, *against}) == (outcome, {*said.split()}), found


def test_an_adapter_without_a_name_of_its_base_has_moved_nothing(tmp_path):
    """Each of some names that the base lacks is listed, and none of them counts as moved."""
    base = planted.write(tmp_path / "base", WIDE, planted.LLAMA)
    factors = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def adapter(folder, *names):
        pairs = {name: (factors.clone(), factors.T.clone()) for name in names}
        return planted.adapter(tmp_path / folder, pairs)

    names = [Q.format(layer) for layer in range(4)]
    wrapped = [name.replace("model.", "model.language_model.") for name in names]
    none = adapter("none", *wrapped)
    for patterns in ({}, {"moved": "attn.q"}):
        found = shadow.verify("trained", base, none, **patterns)
        reasons = ["unnamed"] if not patterns else ["not_moved", "unnamed"]
        assert (found.outcome, [one.code for one in found.answer.reasons]) == (NO, reasons)
        assert "none of the adapter's 4 modules has a name of the base" in found.reason
        assert (found.figures["modules"], found.figures["modules_unnamed"]) == (4, 4)
    found = shadow.verify("trained", base, adapter("some", *names[:3], wrapped[3]))
    assert (found.outcome, found.code) == (NO, "some_unnamed")
    assert (found.figures["modules"], found.figures["modules_unnamed"]) == (4, 1)
    assert (found.figures["tensors_to_move"], found.figures["tensors_not_moved"]) == (3, 0)
    assert {(one.name.split(".lora")[0], one.code) for one in found.against} == {
        (f"base_model.model.{wrapped[3].removesuffix('.weight')}", "no_module")
    }


def test_an_adapter_whose_product_is_zero_does_nothing(tmp_path):
    base = planted.write(tmp_path / "base", WIDE, planted.LLAMA)
    factors = torch.ones(32, 4)
    pairs = {Q.format(layer): (layer * factors, factors.T.clone()) for layer in range(4)}
    found = shadow.verify("trained", base, planted.adapter(tmp_path / "it", pairs))
    assert codes(found) == (NO, ["not_moved"], ["equal"])
    assert found.figures["modules_without_update"] == 1
    assert [one.code for one in found.answer.notes] == ["idle", "beside"]


def test_the_command_needs_a_pattern_that_names_something(tmp_path):
    """Exit 2 without one, with one that no tensor is at, and with options of other claims."""
    base = based()
    planted.write(tmp_path / "a", base, planted.LLAMA)
    planted.write(tmp_path / "b", moved(base, lambda name: True), planted.LLAMA)
    ask = ["verify", "trained", "./a", "./b"]
    done = run_shadow(*ask, "--moved", "language", "--json", cwd=tmp_path).assert_done()
    assert json.loads(done)["of"]["--moved"] == "language"
    run_shadow(*ask, "--frozen", "norm", cwd=tmp_path).assert_done(4)
    for wrong in ([], ["--moved", "vision"], ["--moved", "nrom"], ["--base", "./a"]):
        run_shadow(*ask, *wrong, cwd=tmp_path).assert_refused(2)
    run_shadow("verify", "same", "./a", "./b", "--moved", "*", cwd=tmp_path).assert_refused(2)
    (tmp_path / "claims.yaml").write_text(
        "- {claim: trained, of: [./a, ./b], moved: [language]}\n"
        "- {claim: trained, of: [./a, ./b], frozen: [norm]}\n"
    )
    run_shadow("verify", "--claims", "claims.yaml", cwd=tmp_path).assert_done(4)


def test_a_base_for_each_component(tmp_path):
    """A model that was put together: language and tower moved or not, the projector has no base."""
    generator = torch.Generator().manual_seed(0)
    language = based(layers=2)
    tower = {
        f"vision_model.encoder.layers.{layer}.mlp.fc1.weight": torch.randn(
            32, 16, generator=generator
        )
        for layer in range(2)
    }
    whole = {f"language_model.{name}": one + 0.01 for name, one in language.items()}
    whole |= {f"vision_tower.{name}": one.clone() for name, one in tower.items()}
    whole["multi_modal_projector.linear_1.weight"] = torch.randn(32, 16, generator=generator)
    config = {"model_type": "llava", "text_config": planted.LLAMA}
    planted.write(tmp_path / "lm", language, planted.LLAMA)
    planted.write(tmp_path / "tower", tower, {"model_type": "clip_vision_model"})
    planted.write(tmp_path / "llava", whole, config)
    base = f"language={tmp_path / 'lm'},vision={tmp_path / 'tower'}"
    ask = ("trained", base, tmp_path / "llava")
    assert shadow.verify(*ask, moved="language", frozen="vision").holds is True
    found = shadow.verify(*ask, moved="vision", frozen="language")
    assert found.holds is False
    assert len(found.against) == len(language) + len(tower)
    assert shadow.verify(*ask, moved=["language", "projector"]).holds is None
    typed = ["verify", "trained", "language=./lm,vision=./tower", "./llava"]
    run_shadow(*typed, "--moved", "language", cwd=tmp_path).assert_done()
    (tmp_path / "claims.yaml").write_text(
        "- {claim: trained, of: [{language: ./lm, vision: ./tower}, ./llava], frozen: [vision]}\n"
    )
    run_shadow("verify", "--claims", "claims.yaml", cwd=tmp_path).assert_done()
    for wrong in ("langage=./lm", "language=./lm,language=./tower", "language=lm"):
        run_shadow(
            "verify", "trained", wrong, "./llava", "--moved", "*", cwd=tmp_path
        ).assert_refused(2)
    run_shadow("verify", "same", "language=./lm", "./llava", cwd=tmp_path).assert_refused(2)


def expert_moved(tensors, layer=1, expert=2):
    """The tensors with an entry changed of an expert of a layer, in each of gate, up and down."""
    tuned = {name: one.clone() for name, one in tensors.items()}
    for name, one in tuned.items():
        if f"layers.{layer}." not in name or "experts" not in name or "shared" in name:
            continue
        if one.ndim == 3:  # gate and up halve one side, or take turns
            one[expert, :2, :2] += 1
            one[expert, -2:, -2:] += 1
        elif f".experts.{expert}." in name:
            one[:2, :2] += 1
    return tuned


@pytest.mark.parametrize(
    "kind", chosen(["qwen3_moe", "gpt_oss", "deepseek_v3", "mixtral"], ["qwen3_moe", "gpt_oss"])
)
@pytest.mark.parametrize("layouts", [("file", "file"), ("memory", "memory"), ("file", "memory")])
def test_each_expert_of_a_stack_is_compared(tmp_path, kind, layouts):
    """One of several experts moved, stacked or not: it alone is named, the others are frozen."""
    sides = dict(zip(("file", "memory"), planted.saved_twice(kind, tmp_path), strict=True))
    config = json.loads((sides["file"] / "config.json").read_text())
    base, layout = sides[layouts[0]], sides[layouts[1]]
    tensors = load_file(layout / "model.safetensors")
    tuned = planted.write(tmp_path / "tuned", expert_moved(tensors), config)
    found = shadow.verify(
        "trained", base, tuned, frozen=["experts.0-1", "layers.0"], moved="layers.1.experts.2"
    )
    assert found.holds is True, found
    assert found.figures["tensors_to_move"] == 3
    found = shadow.verify("trained", base, tuned, frozen="experts.down.1-2")
    assert found.holds is False
    (against,) = found.against
    assert ".1." in against.name
    assert "2" in against.name
    is_stacked = any(one.ndim == 3 for one in tensors.values())
    assert against.name.endswith("down_proj[2]") is is_stacked
    assert shadow.verify("trained", base, tuned, moved="layers.1.experts.1").holds is False


@pytest.mark.parametrize("kind", ["int8", "gptq"])
def test_patterns_name_quantised_tensors_too(tmp_path, kind):
    """At their own place, byte by byte where they are not decoded: one that differs moved."""
    stem = "model.layers.{}.mlp.up_proj"
    base, config = based(layers=2), planted.LLAMA
    for layer in range(2):
        del base[f"{stem.format(layer)}.weight"]
        if kind == "int8":
            base[f"{stem.format(layer)}.weight"] = torch.full((32, 32), 3, dtype=torch.int8)
        else:
            name = stem.format(layer)
            base |= {
                f"{name}.qweight": torch.ones(4, 32, dtype=torch.int32),
                f"{name}.qzeros": torch.ones(1, 4, dtype=torch.int32),
                f"{name}.scales": torch.ones(1, 32, dtype=torch.float16),
                f"{name}.g_idx": torch.zeros(32, dtype=torch.int32),
            }
            config = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    tuned = {name: one.clone() for name, one in base.items()}
    changed = next(name for name in tuned if "layers.1.mlp.up_proj" in name)
    tuned[changed].view(-1)[5] += 1
    a = planted.write(tmp_path / "a", base, config)
    b = planted.write(tmp_path / "b", tuned, config)
    found = shadow.verify("trained", a, b, frozen="mlp.up")
    assert found.holds is False, found
    assert [one.name for one in found.against] == [f"{stem.format(1)}.weight"]
    assert shadow.verify("trained", a, b, frozen="layers.0.mlp.up").holds is True
    found = shadow.verify("trained", a, b, moved="layers.0.mlp.up")
    assert found.holds is False, found
    assert all("layers.0" in one.name for one in found.against)


BROKEN = {  # what became of a tensor that should have moved -> the code of why it is no step
    "zeros": (lambda one: torch.zeros_like(one), "zeros"),
    "NaN": (lambda one: torch.full_like(one, torch.nan), "nonfinite"),
    "one NaN": (lambda one: one.index_fill(1, torch.tensor([3]), torch.nan), "nonfinite"),
    "infinities": (lambda one: torch.where(one > 0.03, torch.inf, one), "nonfinite"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_tensor_of_zeros_or_nan_has_not_moved(tmp_path, how, dtype):
    """It differs from the base's, and no training leaves such a tensor: it is named, with why."""
    broken, why = BROKEN[how]
    base = based(dtype)
    tuned = moved(base, lambda name: "_proj" in name)
    assert recorded(tmp_path, base, tuned, moved="mlp").holds
    tuned[UP] = broken(tuned[UP])
    found = recorded(tmp_path, base, tuned, moved="mlp")
    assert codes(found) == (NO, ["broken"], [why])
    assert [one.name for one in found.against] == [UP]
    assert (found.figures["tensors_broken"], found.figures["tensors_not_moved"]) == (1, 0)
    found = recorded(tmp_path, base, tuned, frozen="mlp")
    assert found.outcome == NO
    assert UP in {one.name for one in found.against}


def test_entries_that_the_base_has_infinite_too_are_no_fault_of_training(tmp_path):
    """Whether the others moved is unknown then, as ever."""
    base = based()
    base[UP][0, 0] = torch.inf
    found = recorded(tmp_path, base, moved(base, lambda name: True), moved="mlp")
    assert codes(found) == (OPEN, ["not_compared"], ["not_finite"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_adapter_whose_factors_are_not_finite_moves_nothing(tmp_path, value):
    """Without patterns too."""
    base = planted.write(tmp_path / "base", WIDE, planted.LLAMA)
    factors = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    pairs = {Q.format(layer): (factors.clone(), factors.T.clone()) for layer in range(4)}
    pairs[Q.format(2)][0][5, 1] = value
    found = shadow.verify("trained", base, planted.adapter(tmp_path / "it", pairs))
    assert codes(found) == (NO, ["broken"], ["nonfinite"])
    assert "layers.2" in found.against[0].name


def through_int8(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return torch.round(weight / scale) * scale


ROUNDED = {  # a rounding -> why it is no sure step, and whether steps beyond it are
    "twice": (lambda one: one.half().bfloat16(), "another_way", YES),
    "cut": (
        lambda one: (one.view(torch.int32) & -65536).view(torch.float32).bfloat16(),
        "another_way", YES,
    ),
    "8 bits": (through_int8, "few_levels", OPEN),
    "8 bits, stored in BF16": (lambda one: through_int8(one).bfloat16(), "few_levels", OPEN),
}  # fmt: skip


@pytest.mark.parametrize("how", ROUNDED)
def test_what_rounding_may_leave_is_no_sure_step(tmp_path, how):
    """Nor is it equal; steps beyond a rounding are."""
    rounded, why, beyond = ROUNDED[how]
    base = {name: one for name, one in based(size=1024, layers=1).items() if "norm" not in name}
    tuned, steps = (
        {name: rounded(one) for name, one in state.items()}
        for state in (base, moved(base, lambda _: True, 3e-3))
    )
    found = recorded(tmp_path, base, tuned, moved="mlp.up")
    assert codes(found) == (OPEN, ["not_compared"], [why])
    assert recorded(tmp_path, base, tuned, frozen="mlp.up").outcome == NO
    assert recorded(tmp_path, base, steps, moved="mlp.up").outcome == beyond


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="reads are counted where preadv makes them")
def test_every_byte_is_read_once(tmp_path, monkeypatch):
    """Of tensors that moved, too; a sample for the fingerprint and some rows come on top."""
    base = based(torch.bfloat16, layers=2, size=512)
    tuned = moved(base, lambda name: "_proj" in name)
    read, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: read.append(preadv(*given)) or read[-1])
    assert recorded(tmp_path, base, tuned, moved=["attn.*", "mlp.*"]).holds
    weights = 2 * sum(one.numel() * one.itemsize for one in base.values())
    assert weights <= sum(read) < 1.1 * weights


def test_patterns_that_part_a_stack_are_not_told_of_it_as_a_whole(tmp_path):
    """Which expert of a stack compared as a whole differs is unknown; a missing one is refused."""
    name = "model.layers.0.mlp.experts.down_proj"
    config = {"model_type": "gpt_oss", "num_local_experts": 4, "hidden_size": 32}
    generator = torch.Generator().manual_seed(0)
    base = {**based(layers=1), name: torch.randint(-9, 9, (4, 32, 32), generator=generator).char()}
    tuned = {key: one.clone() for key, one in base.items()}
    tuned[name][3] += 1
    a = planted.write(tmp_path / "a", base, config)
    b = planted.write(tmp_path / "b", tuned, config)
    copy = planted.write(tmp_path / "copy", base, config)
    for parted in (
        {"moved": "experts.*", "frozen": "experts.3"},
        {"moved": "experts.3", "frozen": "experts.0-2"},
        {"moved": ["experts.3", "norm"]},
        {"frozen": "experts.3"},
    ):
        found = shadow.verify("trained", a, b, **parted)
        if "norm" not in parted.get("moved", ()):
            assert codes(found) == (OPEN, ["not_compared"], ["not_told_apart"]), (parted, found)
        found = shadow.verify("trained", a, copy, **parted)
        assert found.holds is ("moved" not in parted), (parted, found)
    assert shadow.verify("trained", a, b, moved="experts.0-3").holds is True
    assert shadow.verify("trained", a, b, frozen="experts.down.0-3").holds is False
    for beyond in ("experts.9", "layers.0.experts.4"):
        with pytest.raises(UsageError, match="no tensor lies at") as caught:
            shadow.verify("trained", a, b, frozen=beyond)
        assert "experts.0-3" in caught.value.hint


@pytest.mark.parametrize("kind", ["int8", "bnb", "w_q"])
def test_parts_of_a_fused_tensor_that_is_compared_as_a_whole(tmp_path, kind):
    """Which of packed, fused projections differs is not known; scales lie at their place."""
    base = based(layers=2)
    for layer in range(2):
        base[f"model.layers.{layer}.mlp.gate_proj.weight"] = torch.randn(32, 32)
    stem = "model.layers.0.mlp."
    for part in ("gate_proj", "up_proj"):
        del base[f"{stem}{part}.weight"]
    numbers = torch.randint(0, 9, (64, 32), generator=torch.Generator().manual_seed(0))
    pieces = {
        "int8": {"weight": numbers.char()},
        "bnb": {"weight": numbers[:, :16].reshape(-1, 1).byte(), "weight.absmax": torch.ones(32)},
        "w_q": {"W_q": numbers.byte(), "scale": torch.ones(64, 1)},
    }[kind]
    base |= {f"{stem}gate_up_proj.{piece}": one for piece, one in pieces.items()}
    a = planted.write(tmp_path / "a", base, planted.LLAMA)
    for piece in pieces:
        tuned = {key: one.clone() for key, one in base.items()}
        tuned[f"{stem}gate_up_proj.{piece}"].view(-1)[-1] += 1
        b = planted.write(tmp_path / f"b {piece}", tuned, planted.LLAMA)
        for parted in ({"frozen": "mlp.up"}, {"frozen": "mlp.gate"}, {"frozen": "layers.0.mlp.up"}):
            found = shadow.verify("trained", a, b, **parted)
            assert codes(found) == (OPEN, ["not_compared"], ["not_told_apart"]), (piece, parted)
        found = shadow.verify("trained", a, b, frozen=["mlp.up", "mlp.gate"])
        assert found.holds is False, (piece, found)
        assert [one.name for one in found.against] == [f"{stem}gate_up_proj.{piece}"]
        assert shadow.verify("trained", a, b, frozen=["layers.1", "attn.*"]).holds is True
    copy = planted.write(tmp_path / "copy", base, planted.LLAMA)
    assert shadow.verify("trained", a, copy, frozen="mlp.up").holds is True
