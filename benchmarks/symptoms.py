"""What owners of checkpoints report, planted anew, and how often the first command names it.

    python benchmarks/symptoms.py                         # the final seed; writes docs/verify.md
    python benchmarks/symptoms.py --seed 1                # another seed, printed: to develop with
    python benchmarks/symptoms.py --seed 1 --only head    # cases with this in their name

Each case has a healthy twin that is asked the same, and of which the same must not be said. Models
are tiny and built by transformers, adapters and merges are peft's, GGUF files gguf's
(symptom_plants.py). A run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices only wait for each other

import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import symptom_plants as do
import torch
import typer
from claims import method
from command import run_shadow
from evidence.evidence_parts import FOLDER, interval, put
from symptom_plants import HEAD, Asked, Work

import shadow
from shadow.checkpoints import expected as loader
from shadow.errors import ShadowError

FINAL = 20261221  # asked once, after all was developed with others
CACHE = Path(tempfile.gettempdir()) / "shadow-symptoms"
LEAST = 4  # times that a plant is made, of each of its models and then again in other sizes
TEXT = ("llama", "qwen2", "phi3", "gpt2", "mixtral", "llava")
FEW, OWN, MOE = ("llama", "gpt2", "llava"), ("llama", "mixtral", "llava"), ("mixtral", "qwen3_moe")
ROWS = {
    1: "merged twice, or not at all", 2: "a head that is lost or tied", 3: "MTP layers, experts",
    4: "an adapter whose B is zero", 5: "empty or flat tensors", 6: "an older copy",
    7: "names that no loader finds", 8: "another dtype", 9: "rows of a vocabulary",
    10: "tokens that end a text", 11: "GGUF beside its source", 12: "files that are cut or lost",
    13: "identical stages", 14: "frozen parts that moved", 15: "a tower that did not move",
    16: "an update that BF16 swallowed", 17: "an engine's weights", 18: "the scale of an adapter",
    19: "quantised modules", 20: "copied and noised", 21: "NaN and infinity",
    22: "zeros", 23: "a norm vector that is off", 24: "a folder that contradicts itself",
    25: "small files, copies, modules in memory", 26: "layers, experts, orders and factors",
}  # fmt: skip
BOTH, TWO = ("whole", "audit"), ("llama", "gemma2")
NO_B, NO_B_OF_A_LAYER = {"zero": "lora_B"}, {"zero": r"\.1\..*lora_B"}
LAYER, EOS = ("layers.1.", "h.1."), {"eos_token_id": 3}
# row of the symptom, what is planted, the models, how: a function of Work and what it takes
Plant = tuple[int, str, Sequence[str], Callable[..., Asked]]
PLANTS: list[Plant] = [
    (1, "merged: the base", TEXT, partial(do.merged, code="not_applied", change=lambda b, *_: b)),
    (1, "merged: twice", TEXT[:5], partial(do.merged, code="twice", change=do.again)),
    (1, "merged: without a layer", TEXT[:5],
     partial(do.merged, code="not_applied", change=partial(do.lacking, "a layer"))),
    (2, "whole: the head is lost", ("phi3", *OWN),
     lambda at: at.whole(at.without("lm_head"), "missing", "lm_head")),
    (2, "audit: the head is lost", OWN,
     lambda at: at.two("audit", at.moved(at.without("lm_head")), "", "Missing: the head")),
    (2, "whole: another head than is tied", ("qwen2", "gemma2", "smollm3"), lambda at: at.whole(
        at.base | {HEAD: at.base[do.EMBED] * (1 + at.is_sick)}, "head_differs", HEAD)),
    (2, "whole: config ties another head", ("llama", "mixtral"),
     lambda at: at.whole(None, "head_differs", HEAD, tie_word_embeddings=True)),
    (2, "same: the head became the embedding", ("llama", "mixtral", "phi3"), lambda at: at.two(
        "same", at.changed(HEAD, lambda one: one.copy_(at.base[do.EMBED])), "elsewhere",
        "lm_head.*A has these values in .*embed")),
    *((3, f"{by}: MTP layers are lost", ["deepseek_v3"], partial(do.mtp, command=by))
      for by in BOTH),
    *((3, f"{by}: an expert is lost", MOE, partial(do.expert, command=by)) for by in BOTH),
    (3, "whole: a layer is lost", TEXT,
     lambda at: at.whole(at.without(*LAYER), "layer_lost", r"(layers|h)\.1")),
    (3, "audit: a layer is lost", FEW,
     lambda at: at.two("audit", at.moved(at.without(*LAYER)), "", r"Missing:.*layer 1")),
    (4, "trained: B is zero", TEXT, lambda at: do.adapter(
        at, "trained", "not_moved", r"does nothing in (\d+) of \1 modules", **NO_B)),
    (4, "trained: B of a layer is zero", TEXT, lambda at: do.adapter(
        at, "trained", "not_moved", r"\.1\.[\s\S]*does nothing in", **NO_B_OF_A_LAYER)),
    (4, "whole: B is zero", TEXT,
     lambda at: do.adapter(at, "whole", "does_nothing", "does nothing", **NO_B)),
    (4, "whole: B of a layer is zero", TEXT,
     lambda at: do.adapter(at, "whole", "zero_factor", r"\.1\.", **NO_B_OF_A_LAYER)),
    (4, "audit: B is zero", TEXT,
     lambda at: do.adapter(at, "audit", "", "adapter does nothing in", **NO_B)),
    *((5, f"{by}: shape [0]", OWN, partial(do.empty, command=by)) for by in BOTH),
    (5, "whole: flat parameters", FEW, lambda at: at.whole({"_fsdp_wrapped_module.flat_param":
        torch.cat([one.flatten() for one in at.base.values()])} if at.is_sick else None,
        "flat", "flat_param")),
    (6, "same: saved from another step", TEXT, do.stale),
    (6, "same: distributed, exported from another step", FEW, do.exported),
    (6, "whole: another .bin beside", FEW, partial(do.beside, file="pytorch_model.bin")),
    (6, "whole: Mistral's own files beside", ["mistral"],
     partial(do.beside, file="consolidated.safetensors")),
    (6, "whole: other shards beside", TEXT,
     partial(do.beside, file="model-00001-of-00001.safetensors")),
    *((7, f"{by}: names begin with {new}", OWN,
       partial(do.renamed, command=by, old="", new=new, code=code))
      for new, code in (("_orig_mod.", "prefix"), ("module.", "prefix"), ("policy.", "unexpected"))
      for by in ("whole", "same")),
    (7, "whole: other names", OWN,
     partial(do.renamed, command="whole", old="v_proj", new="value", code="missing")),
    (8, "same: saved as F32", FEW,
     lambda at: do.cast(at, "same", "BF16", "F32", "equal", "BF16 -> F32", "holds")),
    (8, "same: saved as F16", TEXT,
     lambda at: do.cast(at, "same", "F32", "F16", "rounded", "rounded to F16")),
    (8, "files: another dtype", FEW,
     lambda at: do.words(at, "files", "config.json", "", "dtype", dtype="float64")),
    (9, "audit: rows were added", ("llama", "qwen2", "mixtral"), do.grown),
    (9, "merged: rows of the adapter are gone", ("llama", "mixtral"),
     partial(do.merged, code="rows_only_in", change=partial(do.lacking, "rows"), grown=8)),
    (9, "whole: vocab_size", ("gpt2", *OWN), lambda at: at.whole(
        None, "mismatched", "embed|wte|lm_head", **at.promising("vocab_size", 8))),
    (10, "whole: eos of generation", TEXT, lambda at: do.words(
        at, "whole", "generation_config.json", "eos_apart", "eos is", **EOS)),
    (10, "whole: eos of the tokenizer", FEW, lambda at: do.words(
        at, "whole", "tokenizer_config.json", "eos_apart", r"tokenizer_config", eos_token="t9")),
    (10, "files: eos of generation", FEW, lambda at: do.words(
        at, "files", "generation_config.json", "", "eos_token_id", **EOS)),
    *((11, f"GGUF {kind}: {module}", ["llama"] * 2, partial(do.packed, kind=kind, module=module))
      for kind in ("BF16", "F32", "Q8_0", "Q4_0")
      for module in ("self_attn.q_proj", "input_layernorm", "mlp.down_proj")),
    *((12, f"{by}: {how}", OWN, partial(do.broken, command=by, how=how, code=code))
      for how, code in (("cut", "unreadable"), ("pointer", "pointer"), ("lost", "shard_missing"))
      for by in ("whole", "same", "audit")),
    *((12, f"whole: {how}", OWN,
       partial(do.broken, command="whole", how=how, code=code, names=names))
      for how, code, names in (
          ("outside", "shard_outside", "extra"), ("twice", "twice_differs", "other values"),
          ("indexed", "absent", "gone.weight"), ("foreign", "", "its shape is"))),
    (13, "same: two stages", TEXT, lambda at: at.two(
        "same", None if at.is_sick else at.moved(at.base), "", "are equal", "holds",
        "does_not_hold")),
    (14, "trained: the frozen tower moved", ["llava"] * 2, partial(
        do.frozen, part="vision_tower", pattern=r"(model\.)?vision_tower\..*weight")),
    (14, "trained: frozen embeddings moved", FEW,
     partial(do.frozen, part="embed", pattern=r".*(embed_tokens|wte)\.weight")),
    (15, "trained: the tower did not move", ["llava"] * 2, partial(do.tower, but="nothing")),
    (15, "trained: its last layer alone did", ["llava"] * 2,
     partial(do.tower, but=r"layers\.1")),
    *((16, f"{by}: BF16 swallowed the update", FEW, partial(do.swallowed, command=by))
      for by in ("audit", "stored")),
    *((17, f"same: fused, {how}", ("llama", "mistral"), partial(do.engine, how=how))
      for how in ("stale", "q and k exchanged")),
    (18, "merged: half the scale", TEXT,
     partial(do.merged, code="half", change=partial(do.scaled, 2))),
    (18, "merged: 1.5 times the scale", TEXT,
     partial(do.merged, code="rescaled", change=partial(do.scaled, 2 / 3))),
    (18, "whole: alpha 0", FEW,
     lambda at: do.adapter(at, "whole", "alpha", "lora_alpha is 0", lora_alpha=0)),
    *((19, f"{by}: {form}, {piece} times {factor}", OWN[:2],
       partial(do.scales, command=by, form=form, piece=piece, factor=factor))
      for by, form, piece, factor in (
          ("whole", "fp8", "weight_scale", None), ("whole", "fp8", "weight_scale", 0),
          ("quantised", "fp8", "weight_scale", 10),
          ("quantised", "nvfp4", "weight_global_scale", 10))),
    *((19, f"whole: {form}, {how}", kinds, partial(do.module, form=form, how=how, code=code))
      for form, how, code, kinds in (
          ("fp8", "inverted", "scale_inverted", FEW), ("int4", "inverted", "scale_inverted", TWO),
          ("awq", "underflown", "scales_lost", TWO), ("gptq", "g_idx", "groups_lost", TWO),
          ("nf4", "quant_state", "module_broken", FEW), ("nf4", "blocks", "module_broken", TWO),
          ("gptq", "blocks", "module_broken", TWO), ("gptq", "group", "group_size", TWO),
          ("mlx", "all", "missing", ["llama"]), ("w8a8", "all", "missing", TWO),
          ("gptq", "zeros", "zeros_off", TWO), ("gptq-v2", "zeros", "zeros_off", TWO),
          ("fp8", "input_scale", "piece_missing", ["mixtral"]),
          ("w8a8", "plain", "plain_unlisted", TWO), ("w8a8", "listed", "packed_listed", TWO),
          ("gptq", "left", "nothing_packed", TWO), ("fp8", "unsaid", "method_unsaid", TWO))),
    (19, "whole: raw FP8 numbers", TEXT, do.raw_numbers),
    *((11, f"whole: GGUF, {how}", ["llama"], partial(do.gguf, command="whole", how=how, code=code))
      for how, code in (("eos", "token_beyond"), ("kv heads", "metadata_shape"),
                        ("down", "block_part"), ("head", "output_absent"))),
    *((11, f"same: GGUF, {how}", ["llama"], partial(do.gguf, command="same", how=how, code=""))
      for how in ("rope_freqs", "base", "norms")),
    (20, "related: copied and noised", OWN, do.noised),
    *((21, f"{by}: one {number}", TEXT,
       partial(do.value, command=by, number=float(number), part="entry"))
      for number in ("nan", "-inf") for by in BOTH),
    *((22, f"{by}: a {part} of zeros", TEXT,
       partial(do.value, command=by, number=0.0, part=part))
      for by, part in (("whole", "matrix"), ("audit", "matrix"), ("whole", "layer"))),
    (23, "audit: a norm vector is off", ("gpt2", *OWN), do.norm),
    (24, "whole: a layer that config promises", TEXT, lambda at: at.whole(
        None, "", rf"(layers|h)\.{at.text('num_hidden_layers')}",
        **at.promising("num_hidden_layers", 1))),
    (24, "whole: heads", ("llama", "qwen2", "mixtral"),
     lambda at: at.whole(None, "mismatched", "k_proj", num_key_value_heads=4)),
    (24, "whole: a token beyond the rows", FEW, lambda at: at.whole(
        None, "token_beyond", "pad is token", pad_token_id=at.text("vocab_size"))),
    (24, "whole: rank of an adapter", TEXT,
     lambda at: do.adapter(at, "whole", "rank", "config says 64", r=64)),
    *((25, f"whole: {plant.__name__}", kinds, partial(do.small, plant=plant))
      for plant, (_, kinds) in do.FILES.items()),
    *((25, f"whole: an adapter without {lost}", OWN[:2],
       partial(do.factors, lost=lost, code=code))
      for lost, code in ((do.CONFIG, "adapter_config_lost"), (r"layers\.1\.\S*v_proj",
                         "factors_lost"), ("score.weight", "key_unread"))),
    *((26, how, MOE if "expert" in how else ("llama", "qwen2", "mixtral"),
       partial(do.renumbered, how=how)) for how in do.ORDERS),
    (26, "whole: stacked experts that are copies", ["gpt_oss"], do.stacked),
    (3, "whole: no config, and a tensor is lost", TEXT[:3], do.lacking_a_tensor),
    *((26, f"same: {how}", OWN, partial(do.remade, how=how)) for how in do.MADE),
    (25, "memory: a tie broke", ("qwen2", "gemma2"), partial(do.in_memory, code="tie_broken")),
    (25, "memory: one module twice", OWN[:2], partial(do.in_memory, code="module_twice")),
]  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What came of a case."""

    name: str
    row: int
    is_sick: bool
    command: str
    outcome: str
    verdict: str
    """Of a sick one: named, obscure, refused, missed or wrong; of a twin: quiet, refused, alarm."""
    said: str


def verdict(asked: Asked, is_sick: bool, outcome: str, codes: set[str], said: str) -> str:
    """What an answer is worth: obscure where it is right and names nothing."""
    is_named = bool(re.search(asked.names, said)) and (not asked.code or asked.code in codes)
    right, is_silent = asked.sick if is_sick else asked.well, outcome == "holds"
    if asked.command == "audit" and right != "error":
        right, is_silent = "audited", True
    if not is_sick and outcome == right:
        return "alarm" if asked.command == "audit" and is_named else "quiet"
    if is_sick and (outcome == right or (outcome == "error" and is_named)):
        return "named" if is_named else ("missed" if is_silent else "obscure")
    if outcome in ("error", "inconclusive"):
        return "refused"
    return "alarm" if not is_sick else ("missed" if is_silent else "wrong")


def answer(asked: Asked, here: Path) -> tuple[str, set[str], str]:
    """The outcome, the codes, and all that is said."""
    if asked.command == "audit":
        done = run_shadow("audit", *asked.of, "-o", here / "report", cwd=here)
        text = " ".join(f"{done.out} {done.err}".split())
        return "audited" if done.code in (0, 3) else "error", set(), text
    try:
        found = shadow.verify(asked.command, *asked.of, jobs=1, **asked.options)
    except ShadowError as error:
        return "error", set(), f"{error.message}\n{error.hint}"
    codes = {one.code for one in (*found.answer.reasons, *found.answer.notes, *found.against)}
    lines = [found.reason, *(f"{one.name}: {one.what}" for one in found.against), *found.notes]
    return str(found.outcome), codes, "\n".join(lines)


def in_this_process(config: Any, tensors: Any, *_: Any) -> loader.Expected:
    """What transformers expects: a child takes seconds to import it."""
    listed = {
        name: ("BF16" if info.packing else info.dtype, list(info.shape))
        for name, info in tensors.items()
    }
    try:
        return loader.asked(loader.stripped(config), listed, guard=lambda: None)
    except Exception as error:
        return loader.Expected(problem="loader_failed", detail=str(error))


def judged(name: str, plant: Plant, kind: str, key: tuple[object, ...], is_sick: bool) -> Judged:
    """Make a case, and ask."""
    with tempfile.TemporaryDirectory(dir=CACHE) as here:
        asked = plant[3](Work(Path(here), kind, is_sick, key))
        outcome, codes, said = answer(asked, Path(here))
    worth = verdict(asked, is_sick, outcome, codes, said)
    return Judged(name, plant[0], is_sick, asked.command, outcome, worth, said.replace(here, ""))


def all_judged(seed: int, only: str) -> list[Judged]:
    """Of every case; those that this version of everything has judged are read from a file."""
    CACHE.mkdir(parents=True, exist_ok=True)
    own = b"".join(file.read_bytes() for file in (Path(__file__), Path(do.__file__)))
    path = CACHE / f"judged-{seed}-{sha256(method().encode() + own).hexdigest()[:16]}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    there = {one["name"]: Judged(**one) for one in map(json.loads, lines)}
    found = []
    for plant in PLANTS:
        for number, kind in enumerate(([*plant[2]] * LEAST)[: max(LEAST, len(plant[2]))]):
            for is_sick in (True, False):
                name = f"{plant[1]}, {kind}, {number}{'' if is_sick else ', healthy'}"
                if only not in name:
                    continue
                if name not in there:
                    key = (seed, *plant[:2], kind, number)
                    there[name] = judged(name, plant, kind, key, is_sick)
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(there[name])) + "\n")
                found.append(there[name])
    return found


def section(found: Sequence[Judged]) -> str:
    """The generated part of the page."""
    sick, well = ([one for one in found if one.is_sick is which] for which in (True, False))
    worth = Counter(one.verdict for one in found)
    others = [
        f"{word} ({ROWS[row]}) {count}"
        for (row, word), count in Counter((one.row, one.verdict) for one in found).items()
        if word not in ("named", "quiet")
    ]
    held = [one for one in sick if one.command != "audit"]
    false = sum(one.outcome == "holds" and one.verdict == "missed" for one in held)
    cases = Counter(one.row for one in sick)
    return "\n".join([
        f"`python benchmarks/symptoms.py` plants {len(sick)} sick checkpoints of {len(ROWS)} kinds"
        " that owners report, each with a healthy twin, in tiny models of transformers, and asks"
        " the command that they would type first, with a seed that nothing was developed with.",
        "",
        f"- Right, and the tensor, file or number named: {worth['named']} of {len(sick)}"
        f" ({interval(worth['named'], len(sick))}).",
        f"- Falsely *holds*: {false} of {len(held)} ({interval(false, len(held))}).",
        f"- False alarms: {worth['alarm']} of {len(well)} healthy twins"
        f" ({interval(worth['alarm'], len(well))}).",
        f"- What went otherwise: {', '.join(others) or 'nothing'}.",
        "",
        "Every answer is in `docs/lab/symptoms.parquet`.",
        "",
        "| what is reported | cases |",
        "|---|---:|",
        *(f"| {title} | {cases[row]} |" for row, title in ROWS.items()),
    ])  # fmt: skip


def main(
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = FINAL,
    only: Annotated[str, typer.Option(help="Cases with this in their name.")] = "",
) -> None:
    """Plant the symptoms, ask, and write the table."""
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    loader.expected = in_this_process
    found = all_judged(seed, only)
    for one in found:
        if one.verdict not in ("named", "quiet"):
            print(f"{one.name}: {one.verdict}, {one.outcome}: {one.said[:600]}", file=sys.stderr)
    if seed != FINAL or only:
        print(section(found))
        return
    put("verify.md", "symptom-rates", section(found))
    pq.write_table(
        pa.Table.from_pylist([asdict(one) for one in found]), FOLDER / "symptoms.parquet"
    )


if __name__ == "__main__":
    typer.run(main)
