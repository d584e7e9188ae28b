"""The claims that are planted: what is asked of which checkpoints, and what is true of them.

A plant is a kind of claim on a model in a format. Its weights are drawn from the seed and its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import claim_faults as do
import numpy as np
import torch
from claim_faults import cast, layer_of, named, updated
from claim_models import NAMES, Model, State, model, real, written
from histories import generator

from shadow.checks.answer import Outcome

TRUE: Outcome = "holds"
FALSE: Outcome = "does_not_hold"
OPEN: Outcome = "inconclusive"
FORMATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Asked:
    """A claim as it is typed."""

    checkpoints: tuple[Path | Mapping[str, Path], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    """`base`, `moved`, `frozen`."""


@dataclass(frozen=True)
class Plant:
    """A claim whose answer is known."""

    claim: str
    kind: str
    model: str
    stored: str
    truth: Outcome
    make: Callable[[Work], Asked]
    names: str = ""
    """What the answer has to name, as a pattern: the fault, or why it cannot be told."""

    @property
    def name(self) -> str:
        """Unique among plants."""
        return f"{self.claim}, {self.kind}, {self.model}, {self.stored}"


@dataclass(frozen=True)
class Work:
    """Where a plant makes its checkpoints, and of what."""

    folder: Path
    model: Model
    stored: str
    rng: np.random.Generator

    @property
    def base(self) -> State:
        """The model as it is stored."""
        return cast(self.model.weights, self.stored)

    def put(self, name: str, state: State, shards: int = 1, **config: Any) -> Path:
        """A checkpoint of this name."""
        return written(self.folder / name, state, {**self.model.config, **config}, shards)

    def tuned(self, size: float, stored: str | None = None) -> State:
        """The model after a training of its own."""
        return cast(updated(self.model.weights, size, self.rng), stored or self.stored)


def work(plant: Plant, folder: Path, seed: int) -> Work:
    """What the plant is made of, for a seed."""
    return Work(folder, model(plant.model), plant.stored, generator("claims", seed, plant.name))


def plants() -> list[Plant]:
    """All of them."""
    found = [*_same(), *_merged(), *_trained(), *_stored(), *_base(), *_files()]
    assert len({one.name for one in found}) == len(found)
    return found


def _each(
    claim: str,
    kind: str,
    truth: Outcome,
    make: Callable[[Work], Asked],
    names: str = "",
    models: tuple[str, ...] = NAMES,
    formats: tuple[str, ...] = FORMATS,
) -> Iterator[Plant]:
    """The kind on every model, each in one format: formats take turns. Merges are in all."""
    shift = sum(map(ord, claim + kind))
    for number, name in enumerate(models):
        turn = formats[(number + shift) % len(formats)]
        for stored in formats if claim == "merged" else (turn,):
            yield Plant(claim, kind, name, stored, truth, make, names)


# ------------------------------------------------------------------------------------ same


def _same() -> Iterator[Plant]:
    def two(change: Callable[[Work], tuple[State, State]], **config: Any) -> Any:
        def make(at: Work) -> Asked:
            first, second = change(at)
            return Asked((at.put("a", first), at.put("b", second, **config)))

        return make

    def changed(change: Callable[[Work, State], State], **config: Any) -> Any:
        return two(lambda at: (at.base, change(at, at.base)), **config)

    def shards(at: Work) -> Asked:
        backwards = dict(reversed(at.base.items()))
        return Asked((at.put("a", at.base), at.put("b", backwards, shards=3)))

    yield from _each("same", "other shards and order", TRUE, shards)
    prefixed = changed(lambda at, state: {f"model.{name}": one for name, one in state.items()})
    yield from _each("same", "double prefix", TRUE, prefixed)
    exact = two(lambda at: (at.base, cast(at.base, "F32")))
    yield from _each("same", "exact cast", TRUE, exact, formats=("F16", "BF16"))
    packed = changed(lambda at, state: do.packed_experts(state))
    yield from _each("same", "packed experts", TRUE, packed, models=("moe",))
    joined = changed(lambda at, state: do.fused(state), model_type="phi3")
    yield from _each("same", "fused qkv", TRUE, joined, models=("llama", "smollm2"))
    head = changed(
        lambda at, state: {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}
    )
    yield from _each("same", "tied head stored", TRUE, head, models=("smollm2",))

    def other_head(at: Work, state: State) -> State:
        embed = state["model.embed_tokens.weight"]
        return {**state, "lm_head.weight": updated({"x": embed}, 0.1, at.rng)["x"].to(embed.dtype)}

    yield from _each(
        "same", "other head stored", FALSE, changed(other_head), "head", models=("smollm2",)
    )
    entry = changed(lambda at, state: do.one_entry(state, named(state, "v"), at.rng, 1))
    yield from _each("same", "one entry changed", FALSE, entry, r"v_proj|value")
    noise = changed(lambda at, state: do.rounding_noise(state, at.rng, [named(state, "q")]))
    yield from _each("same", "noise of rounding", FALSE, noise, r"q_proj|query")
    swap = changed(lambda at, state: do.swapped(state))
    yield from _each("same", "q and k swapped", FALSE, swap, r"q_proj|query")
    turn = changed(lambda at, state: do.reordered_heads(at.model, state))
    yield from _each("same", "q and k permuted", FALSE, turn, r"q_proj|query")
    rounded = two(lambda at: (cast(at.model.weights, "F32"), cast(at.base, "F32")))
    yield from _each("same", "rounded", FALSE, rounded, "rounded to", formats=("F16", "BF16"))

    def lost(at: Work, state: State) -> State:
        head = [name for name in state if name.endswith("lm_head.weight")]
        gone = head[0] if head else named(state, "norm")
        return {name: one for name, one in state.items() if name != gone}

    yield from _each("same", "lost head or norm", FALSE, changed(lost), "only in A")
    yield from _each("same", "another training", FALSE, changed(lambda at, _: at.tuned(1e-2)))

    def one_expert(at: Work, state: State) -> State:
        names = [f"model.layers.1.mlp.experts.{n}.up_proj.weight" for n in (0, 2)]
        return do.packed_experts(
            {**state, names[0]: state[names[1]].clone(), names[1]: state[names[0]].clone()}
        )

    exchanged = changed(one_expert)
    yield from _each("same", "experts exchanged", FALSE, exchanged, "experts", models=("moe",))
    yield from _each("same", "quantised", OPEN, _quantised, "quanti|packed|not compared")

    def adapters(alpha: float) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            of = do.factors(at.base, 2e-2, at.rng, do.ALPHA / do.RANK)
            tensors, config = do.adapter_files(of, rank_stabilised=False)
            first = _adapter(at, "a", tensors, config)
            return Asked((first, _adapter(at, "b", tensors, {**config, "lora_alpha": alpha})))

        return make

    yield from _each("same", "adapters", TRUE, adapters(do.ALPHA))
    yield from _each("same", "adapters of another scale", FALSE, adapters(do.ALPHA / 2), "scale")


def _adapter(at: Work, name: str, tensors: State, config: Mapping[str, object]) -> Path:
    """An adapter of this name."""
    folder = written(at.folder / name, tensors, {})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _quantised(at: Work) -> Asked:
    """One matrix as integers in a layout that is not decoded, beside floats."""
    name = named(at.base, "v")
    stem = name.removesuffix(".weight")
    state = {key: one for key, one in at.base.items() if key != name}
    rows, cols = at.base[name].shape
    state |= {
        f"{stem}.qweight": torch.zeros(cols // 8, rows, dtype=torch.int32),
        f"{stem}.qzeros": torch.zeros(1, rows // 8, dtype=torch.int32),
        f"{stem}.scales": torch.ones(1, rows, dtype=torch.float16),
        f"{stem}.g_idx": torch.zeros(cols, dtype=torch.int32),
    }
    config = {"quant_method": "gptq", "bits": 4, "group_size": cols, "checkpoint_format": "marlin"}
    second = at.put("b", state, quantization_config=config)
    return Asked((at.put("a", at.base), second))


# ---------------------------------------------------------------------------------- merged


def _merged() -> Iterator[Plant]:
    def merge(
        how: Callable[[Work, str], float] = lambda at, name: 1.0,
        size: float = 2e-2,
        narrow: bool = False,
        stabilised: bool = False,
        start: Callable[[Work, State, list[str]], State] = lambda at, state, names: state,
        after: Callable[[Work, State, State], State] = lambda at, state, base: state,
        replay: str = "",
    ) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            scale = do.ALPHA / (do.RANK**0.5 if stabilised else do.RANK)
            of = do.factors(at.base, size, at.rng, scale)
            tensors, config = do.adapter_files(of, stabilised)
            adapter = _adapter(at, "adapter", tensors, config)
            begun = start(at, at.base, list(of))
            found = do.merge(begun, of, scale, at.stored, partial(how, at), narrow)
            found = after(at, found, at.base)
            if replay:
                found = do.replayed(begun, of, scale, at.stored, replay)
            return Asked((at.put("base", at.base), adapter, at.put("merged", found)))

        return make

    def in_layer(value: float, which: int = 1) -> Callable[[Work, str], float]:
        return lambda at, name: value if layer_of(name) == which else 1.0

    def always(value: float, at: Work, name: str) -> float:
        return value

    yield from _each("merged", "in float32", TRUE, merge())
    yield from _each("merged", "in 16 bits", TRUE, merge(narrow=True), formats=("F16", "BF16"))
    yield from _each("merged", "rsLoRA", TRUE, merge(stabilised=True))
    for kind, value, said in (
        ("not applied", 0.0, "not applied"), ("half the scale", 0.5, "half"),
        ("twice the scale", 2.0, "twice"), ("0.7 of the scale", 0.7, "scale"),
        ("1.005 of the scale", 1.005, "scale"), ("1.001 of the scale", 1.001, "scale"),
    ):  # fmt: skip
        yield from _each("merged", kind, FALSE, merge(partial(always, value)), said)
    skipped = merge(in_layer(0.0))
    yield from _each("merged", "skipped layer", FALSE, skipped, r"not applied[\s\S]*layers?\.1\.")
    one = merge(in_layer(1.005))
    yield from _each("merged", "1.005 in one layer", FALSE, one, r"scale[\s\S]*layers?\.1\.")
    for name in ("in_one_sum", "left_scaled", "update_rounded", "left_scaled_in_16_bits"):
        kinds = ("F16", "BF16") if "update" in name or "16" in name else FORMATS
        yield from _each("merged", name, TRUE, merge(replay=name), "to the bit", formats=kinds)
    double = merge(in_layer(2.0))
    yield from _each("merged", "double merge", FALSE, double, r"twice[\s\S]*layers?\.1\.")

    def near(at: Work, state: State, names: list[str]) -> State:
        return at.tuned(3e-3)

    def other(at: Work, state: State, names: list[str]) -> State:
        return at.tuned(0.5)

    def quantised(bits: str) -> Callable[[Work, State, list[str]], State]:
        return lambda at, state, names: do.through(state, names, bits)

    yield from _each("merged", "near base", FALSE, merge(start=near))
    yield from _each("merged", "other base", FALSE, merge(start=other))
    yield from _each("merged", "onto NF4", FALSE, merge(start=quantised("NF4")), "NF4")
    yield from _each("merged", "onto int8", FALSE, merge(start=quantised("int8")), "INT8|int8")

    def entry(at: Work, state: State, base: State) -> State:
        return do.one_entry(state, do.adapted(state)[-1], at.rng)

    def beside(at: Work, state: State, base: State) -> State:
        return do.one_entry(state, named(state, "norm"), at.rng)

    def noise(at: Work, state: State, base: State) -> State:
        found = dict(base)
        for name in do.adapted(base):
            size = (state[name].float() - base[name].float()).square().mean().sqrt()
            step = torch.from_numpy(at.rng.standard_normal(tuple(base[name].shape))).float()
            found[name] = (base[name].float() + size * step).to(base[name].dtype)
        return found

    yield from _each("merged", "one entry changed", FALSE, merge(after=entry), "entries")
    yield from _each("merged", "norm changed beside", FALSE, merge(after=beside), "[nN]orm")
    yield from _each("merged", "noise of the same size", FALSE, merge(after=noise))
    swap = merge(after=lambda at, state, base: do.swapped(state))
    yield from _each("merged", "q and k swapped", FALSE, swap, r"q_proj|query")

    def held_whole(is_merged: bool) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            name = named(at.base, "norm")
            saved = cast(updated({name: at.base[name]}, 5e-2, at.rng), at.stored)
            module = f"base_model.model.{name.removesuffix('.weight')}.modules_to_save.weight"
            _, config = do.adapter_files({}, rank_stabilised=False)
            adapter = _adapter(at, "adapter", {module: saved[name]}, config)
            merged = {**at.base, **saved} if is_merged else at.base
            return Asked((at.put("base", at.base), adapter, at.put("merged", merged)))

        return make

    def misnamed(at: Work) -> Asked:
        of = do.factors(at.base, 2e-2, at.rng, do.ALPHA / do.RANK)
        tensors, config = do.adapter_files(
            {f"wrapped.{name}": one for name, one in of.items()}, False
        )
        adapter = _adapter(at, "adapter", tensors, config)
        return Asked((at.put("base", at.base), adapter, at.put("merged", at.base)))

    unnamed = r"none of the adapter's \d+ modules has a name of the base"
    yield from _each("merged", "wrong prefix", FALSE, misnamed, unnamed)

    def other_type(which: str, share: float) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            weights = do.adapted(at.base)[:4]
            biases = [name.removesuffix("weight") + "bias" for name in weights]
            names = [name for name in (*weights, *biases) if name in at.base]
            tensors, config, merged = do.by_peft(which, {name: at.base[name] for name in names})
            adapter = _adapter(at, "adapter", tensors, config)
            found = dict(at.base)
            for name in names:
                base, own = at.base[name].double(), merged[name].double()
                found[name] = own if share == 1 else base + share * (own - base)
            found = cast(found, at.stored)
            return Asked((at.put("base", at.base), adapter, at.put("merged", found)))

        return make

    for number, which in enumerate(do.TYPES):
        models = NAMES[number % 2 :: 2]  # every other one
        kind = f"of type {which}"
        yield from _each("merged", kind, TRUE, other_type(which, 1.0), "to the bit", models)
        for share, said in ((0.0, "not applied"), (1.5, "times its scale|base plus update")):
            wrong = other_type(which, share)
            yield from _each("merged", f"{kind}, {share:g} times", FALSE, wrong, said, models[:1])
    yield from _each("merged", "modules held whole", TRUE, held_whole(True))
    yield from _each("merged", "modules held whole, lost", FALSE, held_whole(False), "[nN]orm")
    said = "below the rounding|within the rounding"
    narrow = ("F16", "BF16")
    # SmolLM2 has entries of exactly 0, where any update shows
    unseen = tuple(name for name in NAMES if name != "smollm2")
    hidden = merge(size=1e-12)
    yield from _each("merged", "below rounding", OPEN, hidden, said, unseen, narrow)


# --------------------------------------------------------------------------------- trained


def _trained() -> Iterator[Plant]:
    def train(
        after: Callable[[Work, State], State] = lambda at, state: state,
        moved: tuple[str, ...] = ("layers.1",),
        frozen: tuple[str, ...] = ("layers.0",),
        size: float = 2e-2,
    ) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            names = [name for name in at.base if layer_of(name) == 1]
            tuned = cast(updated(at.base, size, at.rng, names), at.stored)
            tuned = after(at, tuned)
            options = {"moved": moved, "frozen": frozen}
            return Asked((at.put("base", at.base), at.put("tuned", tuned)), options)

        return make

    def back(at: Work, state: State, which: Callable[[str], bool]) -> State:
        return {name: at.base[name] if which(name) else one for name, one in state.items()}

    yield from _each("trained", "as said", TRUE, train())
    yield from _each("trained", "moved alone", TRUE, train(frozen=()))
    yield from _each("trained", "frozen alone", TRUE, train(moved=()))
    entry = train(lambda at, state: do.one_entry(state, named(state, "v", 0), at.rng, 1))
    yield from _each("trained", "one frozen entry", FALSE, entry, r"v_proj|value")
    noise = train(lambda at, state: do.rounding_noise(state, at.rng, [named(state, "q", 0)]))
    yield from _each("trained", "noise in a frozen matrix", FALSE, noise, r"q_proj|query")
    skipped = train(lambda at, state: back(at, state, lambda name: name == named(state, "k")))
    yield from _each("trained", "skipped matrix", FALSE, skipped, r"k_proj|key")
    every = train(lambda at, state: back(at, state, lambda name: layer_of(name) == 1))
    yield from _each("trained", "skipped layer", FALSE, every, "did not")
    stuck = train(
        lambda at, state: back(at, state, lambda name: "norm" in name.lower()), size=1.5e-2
    )
    yield from _each("trained", "stuck norms", FALSE, stuck, "[nN]orm", formats=("F16",))
    small, near_one = train(size=2e-3), ("llama", "moe", "llava")
    yield from _each("trained", "norms BF16 holds", TRUE, small, "", near_one, ("BF16",))
    rounded = train(lambda at, state: cast(cast(state, "BF16"), "F32"))
    yield from _each(
        "trained",
        "frozen was rounded",
        FALSE,
        rounded,
        "cast F32 -> BF16 -> F32, which changed",
        formats=("F32",),
    )

    def only_rounded(at: Work, state: State) -> State:
        own = {name: at.base[name] if layer_of(name) == 1 else one for name, one in state.items()}
        return cast(cast(own, "BF16"), "F32")

    cast_alone = train(only_rounded, frozen=())
    yield from _each("trained", "moved was rounded", FALSE, cast_alone, "did not", formats=("F32",))

    def by_component(change: Callable[[Work, State], State]) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            parts = {}
            for component, prefix in (("language", "language_model."), ("vision", "vision_tower.")):
                own = {
                    name.removeprefix(prefix): one
                    for name, one in at.base.items()
                    if name.startswith(prefix)
                }
                config = at.model.config[
                    {"language": "text_config"}.get(component, "vision_config")
                ]
                parts[component] = written(at.folder / component, own, config)
            names = [name for name in at.base if name.startswith("language_model.")]
            tuned = change(at, cast(updated(at.base, 2e-2, at.rng, names), at.stored))
            options = {"moved": ("language",), "frozen": ("vision",)}
            base = ",".join(f"{component}={folder}" for component, folder in parts.items())
            return Asked((base, at.put("tuned", tuned)), options)

        return make

    def tower(at: Work, state: State) -> State:
        name = next(name for name in state if re.search(r"vision.*fc1\.weight$", name))
        return do.one_entry(state, name, at.rng, 1)

    for stored in FORMATS:
        whole, leaky = by_component(lambda at, state: state), by_component(tower)
        kind = "base per component"
        yield Plant("trained", kind, "llava", stored, TRUE, whole)
        yield Plant("trained", f"{kind}, tower moved", "llava", stored, FALSE, leaky, r"fc1")
    turned = train(lambda at, state: do.reordered_heads(at.model, state, 0))
    yield from _each("trained", "frozen q and k permuted", FALSE, turned, r"q_proj|query")


# ---------------------------------------------------------------------------------- stored


def _stored() -> Iterator[Plant]:
    def copy(
        after: Callable[[Work, State], State] = lambda at, state: state,
        size: float | None = None,
    ) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            base = cast(at.model.weights, "F32")
            full = base if size is None else cast(updated(base, size, at.rng), "F32")
            found = after(at, cast(full, at.stored))
            options = {} if size is None else {"base": at.put("base", base)}
            return Asked((at.put("full", full), at.put("stored", found)), options)

        return make

    narrow = ("F16", "BF16")
    yield from _each("stored", "rounded", TRUE, copy(), formats=narrow)
    yield from _each("stored", "update kept", TRUE, copy(size=5e-2), formats=narrow)
    lost = copy(size=2e-5)
    yield from _each("stored", "update lost", FALSE, lost, "keeps", formats=narrow)
    entry = copy(lambda at, state: do.one_entry(state, named(state, "v"), at.rng, 1))
    yield from _each("stored", "one entry changed", FALSE, entry, r"v_proj|value", formats=narrow)
    noise = copy(lambda at, state: do.rounding_noise(state, at.rng, [named(state, "q")]))
    yield from _each("stored", "noise of rounding", FALSE, noise, r"q_proj|query", formats=narrow)
    trained = copy(lambda at, state: at.tuned(1e-2))
    yield from _each("stored", "another training", FALSE, trained, formats=narrow)
    swap = copy(lambda at, state: do.swapped(state))
    yield from _each("stored", "q and k swapped", FALSE, swap, r"q_proj|query", formats=narrow)

    def nothing(at: Work) -> Asked:
        full = cast(at.model.weights, "F32")
        base, again = at.put("base", full), at.put("full", full)
        return Asked((again, at.put("stored", at.base)), {"base": base})

    def in_8_bits(size: float) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            full = {name: size * one for name, one in cast(at.model.weights, "F32").items()}
            found = {name: one.to(torch.float8_e4m3fn) for name, one in full.items()}
            return Asked((at.put("full", full), at.put("stored", found)))

        return make

    yield from _each("stored", "in 8 bits", TRUE, in_8_bits(1.0), formats=("F32",))
    yield from _each("stored", "saturated in 8 bits", FALSE, in_8_bits(1e5), formats=("F32",))
    yield from _each("stored", "no update", OPEN, nothing, "no update", formats=narrow)


# ------------------------------------------------------------------------------------ base


def _other(at: Work) -> State:
    """A model of the same shapes that was initialised by itself."""
    shapes = {name: tuple(one.shape) for name, one in at.model.weights.items()}
    drawn = {
        name: torch.from_numpy(at.rng.standard_normal(shape)).float()
        * float(at.model.weights[name].float().std() if len(shape) > 1 else 0.0)
        + (at.model.weights[name].float().mean() if len(shape) < 2 else 0.0)
        for name, shape in shapes.items()
    }
    return cast(drawn, at.stored)


def _base() -> Iterator[Plant]:
    def candidates(
        make_some: Callable[[Work], tuple[State, list[State]]],
    ) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            tuned, others = make_some(at)
            put = [at.put(f"candidate-{number}", one) for number, one in enumerate(others)]
            return Asked((at.put("tuned", tuned), *put))

        return make

    among = candidates(lambda at: (at.tuned(1e-2), [_other(at), at.base]))
    yield from _each("related", "among unrelated", TRUE, among, "candidate-1|CANDIDATE 2")
    yield from _each("related", "alone", TRUE, candidates(lambda at: (at.tuned(1e-2), [at.base])))
    none = candidates(lambda at: (at.tuned(1e-2), [_other(at), _other(at)]))
    yield from _each("related", "none of them", FALSE, none)
    unrelated = candidates(lambda at: (_other(at), [at.base]))
    yield from _each("related", "unrelated", FALSE, unrelated)

    def with_means(at: Work, state: State) -> State:
        moved = {name: one.float() + 3 * one.float().std() if one.ndim > 1 else one
                 for name, one in state.items()}  # fmt: skip
        return cast(moved, at.stored)

    uneven = candidates(lambda at: (with_means(at, _other(at)), [with_means(at, at.base)]))
    yield from _each("related", "unrelated, means above 0", FALSE, uneven)

    def fine(at: Work) -> Asked:
        config = at.model.config
        tuned = cast(real("bert_tuned"), at.stored)
        put = written(at.folder / "tuned", tuned, config)
        return Asked((put, at.put("other", _other(at)), at.put("base", at.base)))

    yield from _each("related", "real fine-tune", TRUE, fine, models=("bert",))
    siblings = candidates(lambda at: (at.tuned(1e-2), [at.tuned(1e-2), at.tuned(1e-2)]))
    yield from _each("related", "siblings alone", OPEN, siblings, "sibling|direction|order|which")


# ----------------------------------------------------------------------------------- files

FILES = {
    "generation_config.json": json.dumps({"temperature": 0.7, "eos_token_id": 2}),
    "tokenizer.json": json.dumps(
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
         "added_tokens": [{"id": 3, "content": "<eos>", "special": True}]}
    ),
    "tokenizer_config.json": json.dumps({"chat_template": "{{ messages }}", "eos_token": "<eos>"}),
    "README.md": "# A model\n",
}  # fmt: skip


def _files() -> Iterator[Plant]:
    def edited(
        files: Callable[[dict[str, str]], dict[str, str]] = lambda files: files, **config: Any
    ) -> Callable[[Work], Asked]:
        def make(at: Work) -> Asked:
            recorded = {**at.model.config, "rope_theta": 1e4}
            small = {name: one for name, one in at.base.items() if one.ndim == 1}
            first = written(at.folder / "a", small, recorded, files=FILES)
            second = written(
                at.folder / "b", small, {**recorded, **config}, files=files(dict(FILES))
            )
            return Asked((first, second))

        return make

    def replaced(name: str, old: str, new: str) -> Callable[[Work], Asked]:
        return edited(lambda files: {**files, name: files[name].replace(old, new)})

    def spread(files: dict[str, str]) -> dict[str, str]:
        return {
            name: json.dumps(json.loads(one), indent=3, sort_keys=True)
            if name.endswith(".json") else one
            for name, one in files.items()
        }  # fmt: skip

    def more(name: str, text: str) -> Callable[[Work], Asked]:
        return edited(lambda files: {**files, name: text})

    few = ("F32",)
    for kind, truth, make, said in (
        ("equal", TRUE, edited(), ""),
        ("spaces and order of keys", TRUE, edited(spread), ""),
        ("other readme", TRUE, replaced("README.md", "A model", "Another model"), ""),
        ("rope_theta", FALSE, edited(rope_theta=5e5), "rope_theta"),
        ("chat template", FALSE,
         replaced("tokenizer_config.json", "messages", "message"), "chat|tokenizer_config"),
        ("one token", FALSE, replaced("tokenizer.json", '"ab"', '"ac"'), "tokenizer"),
        ("one merge", FALSE, replaced("tokenizer.json", "a b", "b a"), "tokenizer"),
        ("temperature", FALSE, replaced("generation_config.json", "0.7", "0.8"), "temperature"),
        ("Python file", FALSE, more("modeling_own.py", "x = 1\n"), "modeling_own"),
        ("pickle", FALSE, more("optimizer.pt", "not one"), "optimizer.pt"),
    ):  # fmt: skip
        yield from _each("files", kind, truth, make, said, formats=few)
