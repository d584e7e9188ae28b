"""What symptoms.py plants: a model that is sick in a way that owners report, or its healthy twin,
and the command that a new user would type.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from histories import generator
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as distributed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import planted
import quantisers
from companions import of_mistral, tokenizer
from small_plants import FILES

import shadow
from shadow.checks.whole import RULES

FILE, EMBED, HEAD = "model.safetensors", "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
MATRIX = r".*(layers|h)\.\d+\..*(proj|fc\d|c_\w+|w\d)\.weight"
NORM, EXPERT = r".*(layers|h)\.\d+\..*(norm|ln_1).*weight", r".*layers\.\d+\..*experts\.\d+\."
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Asked:
    """A command, and what it has to say of the sick checkpoint. names: a pattern of what is named;
    sick, well: the right outcomes of it and of its twin.
    """

    command: str
    of: Sequence[Any]
    code: str = ""  # among those of the answer; an audit has none
    names: str = ""
    sick: str = "does_not_hold"
    well: str = "holds"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Work:
    """A model in a size and a format of its own, and where it is sick or healthy."""

    here: Path
    kind: str
    is_sick: bool
    seed: tuple[object, ...]

    def __post_init__(self) -> None:
        self.rng = generator("symptoms", *self.seed)
        self.stored, self.shards = ("BF16", "F32")[self.draw(2)], (1, 3)[self.draw(2)]
        self.more: dict[str, Any] = {}

    def draw(self, below: int = 1 << 30) -> int:
        return int(self.rng.integers(below))

    @cached_property
    def saved(self) -> Path:
        """The model as transformers makes and saves it."""
        sizes = copy.deepcopy((planted.FAMILIES.get(self.kind) or planted.KINDS[self.kind])[-1])
        inner = sizes.get("text_config", sizes)
        if "num_hidden_layers" in inner and "layer_types" not in inner:
            inner["num_hidden_layers"] = 3 + self.draw(3)
        inner["vocab_size"] += 8 * self.draw(6)
        return planted.saved(self.kind, self.here / "made", self.draw(), **sizes | self.more)

    @cached_property
    def config(self) -> dict[str, Any]:
        said = json.loads((self.saved / "config.json").read_text())
        return said | {"dtype": str(DTYPES[self.stored]).removeprefix("torch.")}

    def text(self, key: str, more: int = 0) -> int:
        """A number of the language model."""
        inner = self.config.get("text_config", self.config)
        return int(inner.get(key) or inner["n_layer"]) + more

    def promising(self, key: str, more: int) -> dict[str, Any]:
        """Config with more of something than there is."""
        inner = self.config.get("text_config", self.config)
        keys = {key if key in inner else "n_layer": self.text(key, more)}
        return {"text_config": inner | keys} if "text_config" in self.config else keys

    @cached_property
    def base(self) -> State:
        """The model after a training that in half of the cases left norms as they begin."""
        return self.moved(load_file(self.saved / FILE), 0.5, "norm" if self.draw(2) else "nothing")

    def moved(self, state: State, size: float = 0.1, but: str = "nothing") -> State:
        """The tensors after a step of size times 0.02, but for those of that name."""
        own, found = torch.Generator().manual_seed(self.draw()), {}
        for name, one in state.items():
            step = 0.02 * size * torch.randn(one.shape, generator=own)
            found[name] = (one.float() + (but not in name) * step).to(DTYPES[self.stored])
        return found

    def pick(self, pattern: str = MATRIX, state: State | None = None) -> str:
        return str(self.rng.choice([one for one in state or self.base if re.match(pattern, one)]))

    def put(self, name: str, state: State | None = None, shards: int = 0, **more: object) -> Path:
        """A checkpoint with a tokenizer. more: of its config."""
        whole = {key: one.clone() for key, one in (self.base if state is None else state).items()}
        if (shards or self.shards) > 1:
            folder = planted.sharded(self.here / name, whole, 3, self.config | more)
        else:
            folder = planted.write(self.here / name, whole, self.config | more)
        tokenizer(folder, self.text("vocab_size"))
        planted.edit(folder, **more)
        return folder

    def whole(self, state: State | None, code: str, names: str, **more: object) -> Asked:
        """more: of the config of the sick one."""
        return Asked("whole", [self.put("m", state, **more if self.is_sick else {})], code, names)

    def two(self, command: str, second: State | None, *said: str, **options: Any) -> Asked:
        return Asked(command, [self.put("a"), self.put("b", second)], *said, options=options)

    def changed(self, name: str, change: Callable[[torch.Tensor], object]) -> State:
        """The model after a change in place of one of its tensors, if it is sick."""
        one = self.base[name].clone()
        if self.is_sick:
            change(one)
        return self.base | {name: one}

    def without(self, *parts: str) -> State:
        lost = [one for one in self.base if self.is_sick and any(part in one for part in parts)]
        return {name: one for name, one in self.base.items() if name not in lost}

    def older(self) -> tuple[State, str]:
        """The model, one tensor of which is of an earlier step if it is sick; its name."""
        name = self.pick()
        earlier = self.moved({name: self.base[name]})[name]
        return self.changed(name, lambda one: one.copy_(earlier)), re.escape(name)

    def adapted(self, grown: int = 0) -> list[Path]:
        """A base, an adapter that peft made and trained, and what peft merges of both."""
        import peft
        import transformers

        base, rank = self.put("base"), (2, 4, 8)[self.draw(3)]
        auto = planted.FAMILIES.get(self.kind, ("AutoModelForCausalLM",))[0]
        model = getattr(transformers, auto).from_pretrained(base, dtype=DTYPES[self.stored])
        if grown:
            model.resize_token_embeddings(self.text("vocab_size", grown))
        targets = {"gpt2": ["c_attn", "c_fc"], "phi3": ["qkv_proj", "gate_up_proj"]}
        said = {"target_modules": targets.get(self.kind, ["q_proj", "v_proj"])}
        said |= {"lora_alpha": 2 * rank, "fan_in_fan_out": self.kind == "gpt2"}
        tuned = peft.get_peft_model(model, peft.LoraConfig(r=rank, **said))
        torch.manual_seed(self.draw())
        with torch.no_grad():
            for name, one in tuned.named_parameters():
                one += 0.05 * ("lora_" in name) * torch.randn_like(one)
        tuned.save_pretrained(self.here / "adapter")
        tuned.merge_and_unload().save_pretrained(self.here / "merged")
        return [base, self.here / "adapter", self.here / "merged"]


# ------------------------------------------------------------------------------------ plants


def merged(at: Work, code: str, change: Callable[..., Path | None], grown: int = 0) -> Asked:
    """change: of base, adapter and merged model -> another merged model, if it is one."""
    of = at.adapted(grown)
    of[2] = (change(*of) if at.is_sick else None) or of[2]
    return Asked("merged", of, code, r"(layers|h)\.\d+\.\S+:|embed_tokens|lm_head")


def again(base: Path, adapter: Path, done: Path) -> None:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(done, dtype="auto")
    peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(done)


def scaled(factor: float, base: Path, adapter: Path, done: Path) -> None:
    alpha = json.loads((adapter / CONFIG).read_text())["lora_alpha"]
    planted.edit(adapter, CONFIG, lora_alpha=alpha * factor)


def lacking(what: str, base: Path, adapter: Path, done: Path) -> None:
    """A merged model with a layer of the base, or without the last rows."""
    after, every = load_file(done / FILE), base.glob("*.safetensors")
    before = {name: one for file in every for name, one in load_file(file).items()}
    layer = {name: one for name, one in before.items() if ".1." in name}
    rows = {name: one[:-8].clone() for name, one in after.items() if name in (EMBED, HEAD)}
    save_file(after | (layer if what == "a layer" else rows), done / FILE, {"format": "pt"})


def adapter(at: Work, command: str, *said: str, zero: str = "none", **config: Any) -> Asked:
    """zero: the factors that are 0 if it is sick; config: what it says then."""
    of = at.adapted()[:2]
    if at.is_sick:
        state = load_file(of[1] / ADAPTER)
        zeroed = {name: one * (not re.search(zero, name)) for name, one in state.items()}
        save_file(zeroed, of[1] / ADAPTER)
        planted.edit(of[1], CONFIG, **config)
    return Asked(command, of[1:] if command == "whole" else of, *said)


def mtp(at: Work, command: str) -> Asked:
    """DeepSeek's layer for further tokens, after the last that config counts."""
    new, last = at.text("num_hidden_layers"), f"layers.{at.text('num_hidden_layers', -1)}."
    full = at.base | {name.replace(last, f"layers.{new}."): one for name, one in at.base.items()}
    state, more = at.base if at.is_sick else full, {"num_nextn_predict_layers": 1}
    if command == "whole":
        return Asked("whole", [at.put("m", state, **more)], "mtp_missing", "num_nextn")
    of = [at.put("a", full, **more), at.put("b", at.moved(state), **more)]
    return Asked("audit", of, "", rf"Missing: (MTP )?layer {new}")


def expert(at: Work, command: str) -> Asked:
    owner = re.match(EXPERT, at.pick(EXPERT))[0]
    if command == "whole":
        return at.whole(at.without(owner), "expert_missing", re.escape(owner[:-1]))
    layer, number = re.findall(r"\d+", owner)
    said = rf"Missing:.*expert {number} of layer {layer}"
    return at.two("audit", at.moved(at.without(owner)), "", said)


def empty(at: Work, command: str) -> Asked:
    lost = at.pick()
    state = at.base | ({lost: torch.empty(0, dtype=DTYPES[at.stored])} if at.is_sick else {})
    if command == "whole":
        return at.whole(state, "empty", re.escape(lost))
    return at.two("audit", at.moved(state), "", r"\[0\]|empty")


def stale(at: Work) -> Asked:
    state, name = at.older()
    return at.two("same", state, "", name)


def beside(at: Work, file: str) -> Asked:
    """A second set of weights in the folder, of an earlier step; consolidated: Mistral's."""
    (state, name), folder = at.older(), at.put("m", shards=1)
    if file.startswith("consolidated"):
        of_mistral(folder, 1.25 if at.is_sick else 1)
        return Asked("whole", [folder], "set_differs", file)
    (torch.save if file.endswith(".bin") else save_file)(state, folder / file)
    return Asked("whole", [folder], "set_differs", f"{re.escape(file)}.*{name}")


def exported(at: Work) -> Asked:
    """torch's distributed checkpoint of a training, beside an export of an earlier step."""
    state, name = at.older()
    trainer = {"model": at.base, "optimizer": {"step": torch.tensor(7)}}
    distributed.save(trainer, checkpoint_id=at.here / "trained", no_dist=True)
    options = {"files": shadow.Files(allow_pickle=True)}
    return Asked("same", [at.here / "trained", at.put("b", state)], "", name, options=options)


def renamed(at: Work, command: str, old: str, new: str, code: str) -> Asked:
    """old: empty where new stands before all."""
    new_name = lambda name: name.replace(old, new, 1) if at.is_sick else name  # noqa: E731
    state = {new_name(name): one for name, one in at.base.items()}
    if command == "whole":
        return at.whole(state, code, re.escape(new))
    return at.two("same", state, "prefixed", f"begin with '{new}'", "holds")


def cast(at: Work, command: str, stored: str, to: str, *said: str) -> Asked:
    at.stored = stored
    state = {name: one.to(DTYPES[to]) for name, one in at.base.items()} if at.is_sick else None
    if command == "same":
        return at.two("same", state, *said)
    return Asked("whole", [at.put("m", state)], *said)


def grown(at: Work) -> Asked:
    """Eight rows more than the base has."""
    own = {name: at.base[name] for name in (EMBED, HEAD) if name in at.base and at.is_sick}
    state = at.base | {name: torch.cat([one, one[:8]]) for name, one in own.items()}
    return at.two("audit", at.moved(state), "", "grew by 8 rows")


def words(at: Work, command: str, file: str, code: str, names: str, **keys: object) -> Asked:
    """A small file says another token."""
    of = [at.put(name) for name in ("a", "b")[: 1 + (command == "files")]]
    if at.is_sick:
        planted.edit(of[-1], file, **keys)
    return Asked(command, of, code, names)


def packed(at: Work, kind: str, module: str) -> Asked:
    """A GGUF file, one of whose tensors is not its source's."""
    tensors = planted.gguf_llama(at.draw())
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 320, "head_dim": 64}
    state = {name: torch.from_numpy(one).bfloat16() for name, one in tensors.items()}
    source = planted.write(at.here / "source", state, at.config | sizes)
    name = f"model.layers.{at.draw(2)}.{module}.weight"
    if at.is_sick and "q_proj" in module:
        tensors[name] = planted.permuted(tensors[name], planted.GGUF_HEADS)
    elif at.is_sick:
        step = at.rng.standard_normal(tensors[name].shape).astype("f4")
        tensors[name] = tensors[name] + 0.1 * tensors[name].std() * step
    file = planted.write_gguf(at.here / "m.gguf", tensors, kind)
    return Asked("quantised" if kind[0] == "Q" else "same", [source, file], "", re.escape(name))


def broken(at: Work, command: str, how: str, code: str, names: str = "") -> Asked:
    """A folder of three shards, one of which is not as it should be."""
    folder, base = at.put("m", shards=3), at.put("base")
    files = sorted(folder.glob("*.safetensors"))
    file = files.pop(at.draw(3))
    state, index = load_file(file), folder / "model.safetensors.index.json"
    how = how if at.is_sick else ""
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-50])
    elif how == "pointer":
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    elif how == "lost":
        file.unlink()
    elif how == "outside":
        save_file({"x": torch.ones(9)}, folder / "extra.safetensors")
    elif how == "twice":
        name = at.pick(".*", state)
        for other in files[: 1 + at.draw(2)]:
            save_file(load_file(other) | {name: state[name] + 1}, other)
    elif how == "foreign":
        save_file({name: torch.cat([one, one]) for name, one in state.items()}, file)
    elif how == "indexed":
        said = json.loads(index.read_text())["weight_map"]
        planted.edit(folder, index.name, weight_map=said | {"gone.weight": file.name})
    if command == "whole":
        return Asked("whole", [folder], code, names or file.name)
    return Asked(command, [base, folder], "", file.name, "error")


def frozen(at: Work, part: str, pattern: str) -> Asked:
    name = at.pick(pattern)
    own = at.changed(name, lambda one: one[0].mul_(1.5))[name]
    tuned = at.moved(at.base, but=part) | {name: own}
    return at.two("trained", tuned, "leaked", re.escape(name), frozen=[part.partition("_")[0]])


def tower(at: Work, but: str) -> Asked:
    """A vision tower that stays, but for what matches; vectors of 1 or 0 stay in any case."""
    tuned = at.moved(at.base)
    for name, one in at.base.items():
        stays = at.is_sick and "vision_tower" in name and not re.search(but, name)
        if stays or (one.ndim < 2 and one.unique().numel() == 1):
            tuned[name] = one
    return at.two("trained", tuned, "not_moved", "vision_tower.*equal to", moved=["vision"])


def swallowed(at: Work, command: str) -> Asked:
    """A step that BF16 does not hold; its twin is large."""
    at.stored = "F32"
    base = {name: one.bfloat16() for name, one in at.base.items()}
    full = at.moved(base, 2e-4 if at.is_sick else 0.5)
    of = [at.put("b", base), at.put("s", {name: one.bfloat16() for name, one in full.items()})]
    if command == "audit":
        return Asked("audit", of, "", "as large as (its )?rounding")
    of[0], base_of = at.put("f", full), of[0]
    return Asked("stored", of, "kept", "it keeps", options={"base": base_of})


def engine(at: Work, how: str) -> Asked:
    """Fused projections, as engines hold them; q is as large as k."""
    at.more, order = {"num_key_value_heads": 4}, ["q_proj", "k_proj", "v_proj"]
    name, is_stale = at.pick(r".*q_proj\.weight"), how == "stale"
    state = at.changed(name, lambda one: one.mul_(1.25)) if is_stale else at.base
    if at.is_sick and not is_stale:
        order[:2] = order[1::-1]
    state = planted.fused(state, "qkv_proj", tuple(order))
    names = name.replace("q_proj", "qkv_proj") if is_stale else "A has these values in .*_proj"
    code = "is_multiple" if is_stale else "elsewhere"
    return Asked("same", [at.put("a"), at.put("b", state, model_type="phi3")], code, names)


def scales(at: Work, command: str, form: str, piece: str, factor: float | None = None) -> Asked:
    """A quantised model, one of whose scales is missing, or times a factor."""
    state, _, said = quantisers.quantised(form, at.base, partial(re.fullmatch, MATRIX))
    name = at.pick(rf".*\.{piece}$", state)
    if at.is_sick:
        state |= {name: state.pop(name) * (factor or 0)} if factor is not None else {}
        state = {key: one for key, one in state.items() if key != name or factor is not None}
    folder, module = at.put("q", state, quantization_config=said), re.escape(name[: -len(piece)])
    if command == "whole":
        code = "scale_missing" if factor is None else "scale_zero"
        return Asked("whole", [folder], code, module)
    return Asked("quantised", [at.put("a"), folder], "", rf"{module}.*original's times (0|9|10)\b")


def module(at: Work, form: str, how: str, code: str) -> Asked:
    """A quantised model, one of whose modules has lost a piece, or whose config is another's."""
    state, _, said = quantisers.quantised(form, at.base, partial(re.fullmatch, MATRIX))
    name = at.pick().removesuffix(".weight")
    own = {key: one for key, one in state.items() if key.startswith(f"{name}.")}
    rest = {key: one for key, one in state.items() if key not in own}
    named = re.escape(name)
    if how == "inverted":
        own = {key: 1 / one.float() if "weight_scale" in key else one for key, one in own.items()}
    elif how == "underflown":
        own = {key: one * (key[-6:] != "scales" or torch.arange(len(one))[:, None] > 0)
               for key, one in own.items()}  # fmt: skip
    elif how == "g_idx":
        own = {key: one * (not key.endswith(how)) for key, one in own.items()}
    elif how in ("quant_state", "input_scale", "all"):
        own = {key: one for key, one in own.items() if how not in key and how != "all"}
    elif how == "blocks":
        own = {
            key: one[:-1] if "absmax" in key or "qzeros" in key else one for key, one in own.items()
        }
    elif how == "plain":
        own = {f"{name}.weight": at.base[f"{name}.weight"]}
    elif at.is_sick:
        more = {"listed": {"ignore": [name]}, "group": {"group_size": 16},
                "zeros": {"checkpoint_format": {"gptq": "gptq_v2"}.get(form, "gptq")}}  # fmt: skip
        said = said | more.get(how, {})
        named = "config.json|GPTQ" if how in ("zeros", "unsaid") else named
        named = r"_proj|c_\w+" if how == "group" else named
    if how == "left":
        state = at.base if at.is_sick else state
        named = "config.json"
    elif at.is_sick:
        state = rest | own
    more = {} if how == "unsaid" and at.is_sick else {"quantization_config": said}
    return Asked("whole", [at.put("q", state, **more)], code, named)


def raw_numbers(at: Work) -> Asked:
    """A matrix of a model of floats is that of an FP8 model without its scale."""
    name = at.pick()
    most = at.base[name].float().abs().max()
    raw = (at.base[name] * (448 / most)).to(torch.float8_e4m3fn).to(DTYPES[at.stored])
    return at.whole(at.changed(name, lambda one: one.copy_(raw)), "raw_numbers", re.escape(name))


def gguf(at: Work, command: str, how: str, code: str) -> Asked:
    """A GGUF file that contradicts itself, or beside its source."""
    tensors, arch = planted.gguf_llama(at.draw()), ("gemma2" if how == "norms" else "llama")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 320, "head_dim": 64}
    scaling = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4}
    if how == "norms":
        tensors = {name: one for name, one in tensors.items() if name != HEAD}
    state = {name: torch.from_numpy(one) for name, one in tensors.items()}
    config = {**sizes, "model_type": arch, "rope_theta": 1e4, "rope_parameters": None}
    if how == "rope_freqs":
        tensors["rope_freqs.weight"] = torch.ones(32).numpy()
        config["rope_parameters"] = scaling
    source = planted.write(at.here / "source", state, at.config | config)
    layer = at.draw(2)
    parts = {"down": f"layers.{layer}.mlp.down", "rope_freqs": how, "head": HEAD}
    said = {"eos": {"tokenizer.ggml.eos_token_id": 320}, "base": {"llama.rope.freq_base": 5e5},
            "kv heads": {"llama.attention.head_count_kv": 4}}  # fmt: skip
    names = {
        "down": rf"blk\.{layer}\.ffn_down",
        "eos": "eos",
        "kv heads": "attn_k",
        "head": "output",
    }
    arch = "stablelm" if how == "head" else arch
    if at.is_sick and how in parts:
        tensors = {name: one for name, one in tensors.items() if parts[how] not in name}
    metadata = said.get(how) if at.is_sick else {}
    added = float(how == "norms" and not at.is_sick)
    more = {"paired": arch == "llama", "added": added, "metadata": metadata}
    file = planted.write_gguf(at.here / "m.gguf", tensors, "F32", arch, **more)
    if command == "whole":
        return Asked("whole", [file], code, names.get(how, "output"), well="inconclusive")
    return Asked(
        "same", [source, file], "", {"base": "freq_base", "norms": "with [+-]1 added"}.get(how, how)
    )


def noised(at: Work) -> Asked:
    """A copy with noise; its twin was never related."""
    copied = at.moved(at.base, 0.2 if at.is_sick else 4.0)
    if not at.is_sick:
        copied = {name: one[torch.randperm(len(one))] for name, one in copied.items()}
    of = [at.put("copied", copied), at.put("base")]
    return Asked("related", of, "nearest", "nearest relative", "holds", "does_not_hold")


def value(at: Work, command: str, number: float, part: str) -> Asked:
    """A number in an entry or in all of a matrix, or in a layer."""
    name = at.pick()
    places = slice(None) if part == "matrix" else slice(at.base[name].numel() // 3, None, 1 << 30)
    state, said = at.changed(name, lambda one: one.view(-1)[places].fill_(number)), re.escape(name)
    if part == "layer":
        said = r"(layers|h)\.1"
        own = re.compile(said) if at.is_sick else re.compile("nothing")
        state = {key: one * (not own.search(key)) for key, one in at.base.items()}
    if command == "whole":
        return at.whole(state, "not_finite" if number else "zero", said)
    after = at.moved(state) | ({name: state[name]} if at.is_sick else {})
    return at.two("audit", after, "", r"(?i)not finite|\bNaN|infinite" if number else "(?i)zero")


def norm(at: Work) -> Asked:
    name = at.pick(NORM)
    off = {name: at.base[name] + 1} if at.is_sick else {}
    return at.two("audit", at.moved(at.base, but="norm") | off, "", f"{re.escape(name)} by")


# units, the base's that the first of them are, the one that the next is, and what is named
ORDERS: dict[str, tuple[str, list[int], int, str]] = {
    "audit: layers exchanged": ("layers", [0, 2, 1], 3, "with layers 1 and 2 exchanged"),
    "audit: a layer dropped": ("layers", [0], 2, "Missing: layer 1"),
    "audit: a layer twice, another gone": ("layers", [0, 1, 1], 3, "Missing: layer 2"),
    "audit: experts exchanged": ("experts", [1, 0], 2, "with experts 0 and 1 of .* exchanged"),
    "whole: layers that are copies": ("layers", [0, 0], 2, r"layers\.1\b"),
    "whole: experts that are copies": ("experts", [0, 0], 2, r"experts\.1\b"),
}
MADE: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "eight times an embedding": (r".*(embed_tokens|wte)\.", lambda one: 8 * one, "times 8"),
    "a norm and 1": (NORM, lambda one: one + 1, r"with \+1 added|times 2"),
    "halves exchanged": (MATRIX, lambda one: one.roll(len(one) // 2, 0), "halves are exchanged"),
    "Meta's order": (r".*layers.*q_proj\.weight", partial(planted.permuted, heads=2), "as Meta's"),
    "transposed": (MATRIX, lambda one: one.T, "A transposed"),
}


def renumbered(at: Work, how: str) -> Asked:
    """Layers or experts at other numbers: of a fine-tune, or copies in one model, a note."""
    units, order, rest, said = ORDERS[how]
    state = at.moved(at.base)
    numbers = re.findall(rf"\b{units}\.(\d+)", " ".join(state))
    if at.is_sick:
        state = getattr(planted, units)(*order, *range(rest, 1 + max(map(int, numbers))))(state)
    if how.startswith("whole"):
        return Asked("whole", [at.put("m", state)], "unit_copied", said, "holds")
    where = "" if said.endswith("exchanged") else f".*with {units} at other numbers"
    return at.two("audit", state, "", f"{said}{where}")


def stacked(at: Work) -> Asked:
    """One tensor has all experts, and one of them is a copy, a note."""
    name = at.pick(r".*experts\.(gate_up|down)_proj$")
    state = at.changed(name, lambda one: one[1].copy_(one[0]))
    return Asked("whole", [at.put("m", state)], "unit_copied", re.escape(f"{name}[1]"), "holds")


def lacking_a_tensor(at: Work) -> Asked:
    """Of a layer, in a folder without config, which leaves the answer open."""
    at.more = {"num_hidden_layers": 6}
    name = at.pick(r"model\.layers\.[1-4]\..*")
    folder = at.put("m", at.without(name))
    (folder / "config.json").unlink()
    return Asked("whole", [folder], "piece_lacking", re.escape(name), *["inconclusive"] * 2)


def remade(at: Work, how: str) -> Asked:
    pattern, change, said = MADE[how]
    name = at.pick(pattern)
    own = {name: change(at.base[name].float()).to(at.base[name].dtype)} if at.is_sick else {}
    return at.two("same", at.base | own, "", f"{re.escape(name)}: .*{said}")


def small(at: Work, plant: Callable[[Path, bool], object]) -> Asked:
    """Small files that contradict each other, or a copy that is none; some are notes."""
    folder, code = at.put("m", shards=1), FILES[plant][0]
    plant(folder, at.is_sick)
    sick = "holds" if RULES[code].severity == "note" else "does_not_hold"
    well = "inconclusive" if code == "code_lost" else "holds"  # transformers lacks the class
    return Asked("whole", [folder], code, r"\.(json|jinja|weight)|[12]_\w+", sick, well)


def factors(at: Work, lost: str, code: str) -> Asked:
    """An adapter of which some factors, or the config, are lost, or whose head has another key."""
    folder = at.adapted()[1]
    state = load_file(folder / ADAPTER)
    if at.is_sick and lost == CONFIG:
        (folder / CONFIG).unlink()
    elif at.is_sick and lost == "score.weight":
        save_file(state | {lost: torch.randn(2, 64)}, folder / ADAPTER)
    elif at.is_sick:
        left = {name: one for name, one in state.items() if not re.search(lost, name)}
        save_file(left, folder / ADAPTER)
    return Asked("whole", [folder], code, lost)


def in_memory(at: Work, code: str) -> Asked:
    """A model in memory whose head is no longer tied, or of which two layers are one module."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(at.put("m"))
    if at.is_sick and code == "tie_broken":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    elif at.is_sick:
        model.model.layers[1] = model.model.layers[0]
    return Asked("whole", [model], code, "lm_head|layers.1")
