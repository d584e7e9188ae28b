"""Files of a folder or a repository that hold its weights, and the scales of those of a PEFT LoRA
adapter. Reads no weights.

Layout and scaling of adapters are those of the `peft` library (Hu et al. 2021; rsLoRA:
Kalajdzievski 2023): the delta of a module is scaling * B @ A with A (r, in) and B (out, r), scaling
= alpha / r, or alpha / sqrt(r) with `use_rslora`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.gguf_files import chosen_files
from shadow.checkpoints.pickles import CONVERTER, DISTRIBUTED
from shadow.checkpoints.safetensors_files import TensorInfo, Tensors, usable_name
from shadow.errors import FileError, ShadowError
from shadow.places.names import Config
from shadow.text import several

ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # of every name in an adapter
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.(?!bias$)\w+)?(?:\.weight)?"
)
# ways to initialise that take B @ A out of the base
CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
Factors = tuple[TensorInfo, TensorInfo, bool]  # left, right, and whether both are stored transposed
MAX_ALPHA = 1e6
# types that peft merges, and whose update is known without the weights that they started from
MERGED_BY_PEFT = (
    "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LOHA",
    "LOKR", "MISS", "OFT", "PEANUT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "VERA",
    "WAVEFT",
)  # fmt: skip
MERGE = "merge it into its base, and audit the result"
PLAIN = re.compile(r"[\w.-]{1,500}", re.ASCII)
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
PICKLES = "only torch .bin files, which are pickles"
DISTRIBUTED_PICKLE = "torch's distributed checkpoint, whose .metadata is a pickle"
PICKLED = (".bin", ".pt", ".pth")  # files of torch
# what trainings write for themselves, and what makes a model of it
OF_TRAINING = (
    (r".*\.distcp|\.metadata", "torch's distributed checkpoint", CONVERTER),
    (r"model_world_size_\d+_rank_\d+\.pt", "parts of FSDP as verl writes them",
     "python -m verl.model_merger merge --backend fsdp --local_dir FOLDER --target_dir OUT"),
    (r"(zero_pp_rank_|bf16_zero_pp_rank_|mp_rank_).*\.pt|zero_to_fp32\.py|global_step\d+",
     "parts of DeepSpeed ZeRO", "python zero_to_fp32.py FOLDER OUT --safe_serialization"),
)  # fmt: skip
PICKLES_HINT = "--allow-pickle reads them in a child process that loads tensors only"


@dataclass(frozen=True)
class Adapter:
    """Scales of an adapter's factors.

    `fan_in_fan_out` (Conv1D) does not matter: it says how the base stores a matrix, and B @ A is
    always (out, in).
    """

    alpha: float  # above 0, at most MAX_ALPHA
    alpha_pattern: Mapping[str, float]  # by the name of a module, or its end
    rank_stabilised: bool  # alpha is divided by the square root of the rank
    dora: bool  # rows of base plus update are given the norms that the adapter holds
    base: str  # the model that the config names as its base
    config: Config = field(repr=False, compare=False)
    kind: str = "LORA"

    @property
    def is_merged_by_peft(self) -> bool:
        """True of types whose update peft makes of the base's weights."""
        return self.kind != "LORA"

    def scaling(self, module: str, rank: int) -> float:
        """The factor of B @ A of a module."""
        divisor = math.sqrt(rank) if self.rank_stabilised else rank
        for name, alpha in self.alpha_pattern.items():
            if module == name or module.endswith(f".{name}"):
                return alpha / divisor
        return self.alpha / divisor


@dataclass(frozen=True)
class Weights:
    """Files that hold the weights."""

    shards: tuple[str, ...]  # names of files, in reading order
    # what an index says: tensor -> shard. A hint; empty without an index
    weight_map: Mapping[str, str] = field(default_factory=dict)
    pickled: bool = False  # `.bin` files of torch
    adapter: Adapter | None = None  # scales the tensors of a LoRA adapter

    @property
    def are_gguf(self) -> bool:
        return self.shards[0].endswith(GGUF)


def choose_weights(
    where: str,
    names: set[str],
    read: Callable[[str], Config],
    *,
    allow_pickle: bool,
    file: str | None,
    alone: str,
) -> Weights:
    """Choose files: those of an index, `model.safetensors`, an adapter's, safetensors, GGUF or
    `.bin`.

    file: GGUF files that match it come first. alone: a file that was named itself, whatever lies in
    its folder.
    """
    if alone:
        suffix = PurePosixPath(alone).suffix
        if suffix not in (".safetensors", *PICKLED):
            hint = f"name a folder, or a file: .safetensors, {GGUF}, {', '.join(PICKLED)}"
            raise ShadowError(f"{where} is not a file of weights", hint)
        if suffix in PICKLED and not allow_pickle:
            raise ShadowError(f"{where}: a file of torch, which is a pickle", PICKLES_HINT)
        has_config = ADAPTER_CONFIG in names and alone.startswith("adapter_model.")
        adapter = read_adapter(where, read(ADAPTER_CONFIG)) if has_config else None
        return Weights((alone,), pickled=suffix in PICKLED, adapter=adapter)
    packed = {name for name in names if name.endswith(GGUF)}
    if packed and file is not None:
        return Weights(chosen_files(where, packed, file))

    def indexed(index: str, suffix: str) -> Weights:
        weight_map = checked_weight_map(read(index), index, suffix)
        shards = sorted(set(weight_map.values()))
        return Weights(tuple(shards), weight_map, suffix == ".bin")

    single = "model.safetensors"
    if INDEXES[0] in names:
        listed = indexed(INDEXES[0], ".safetensors")
        shards = {*listed.shards}
        if single not in names - shards or not names >= shards:
            return listed
    if single in names:  # of two sets of weights it is the one that transformers reads
        return Weights((single,))
    safetensors = sorted(name for name in names if name.endswith(".safetensors"))
    bins = sorted(name for name in names if re.fullmatch(r"pytorch_model.*\.bin", name))
    adapter = None
    if ADAPTER_CONFIG in names:
        adapter = read_adapter(where, read(ADAPTER_CONFIG))
        safetensors = sorted(names & {"adapter_model.safetensors"})
        bins = sorted(names & {"adapter_model.bin"})
        if not safetensors and not bins:
            message = f"an {ADAPTER_CONFIG} without adapter_model.safetensors"
            raise FileError(message, "check that the download is complete")
    if safetensors:
        return Weights(tuple(safetensors), adapter=adapter)
    if packed and not bins:
        return Weights(chosen_files(where, packed, None))
    has_index = INDEXES[1] in names and adapter is None
    if not bins and not has_index and DISTRIBUTED not in names:
        raise ShadowError(f"{where}: no safetensors files in it", _instead_of_weights(names))
    if not allow_pickle:
        what = PICKLES if bins or has_index else DISTRIBUTED_PICKLE
        raise ShadowError(f"{where}: {what}", PICKLES_HINT)
    if has_index:
        return indexed(INDEXES[1], ".bin")
    return Weights(tuple(bins or [DISTRIBUTED]), pickled=True, adapter=adapter)


def _instead_of_weights(names: set[str]) -> str:
    """The hint about a folder that has only files that hold no weights."""
    for pattern, what, how in OF_TRAINING:
        if any(re.fullmatch(pattern, name) for name in names):
            return f"it holds {what}: {how}"
    if "matrices.parquet" in names:
        what = "it is a report of shadow, which `shadow show` shows"
        return f"{what}; name the folders of two checkpoints"
    if names:
        return f"it has: {several(sorted(names), 6)}"
    return "it is empty; name the folder that holds the .safetensors files"


def checked_weight_map(content: Config, index: str, suffix: str) -> dict[str, str]:
    """The weight_map of an index file, a hint: the shards' headers say what they hold."""
    again = "fetch the index again"
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        hint = "delete the index to read the shards as they are"
        raise FileError(f"{index}: no weight_map in it", hint)
    seen: set[str] = set()
    for name, shard in weight_map.items():
        if not usable_name(name):
            raise FileError(f"{index}: tensor {name[:80]!r} has an unusable name", again)
        if not isinstance(shard, str) or not usable_name(shard):
            raise FileError(f"{index}: tensor {name[:80]!r} has no file name", again)
        if shard in seen:
            continue
        seen.add(shard)
        path = PurePosixPath(shard)
        what = f"{index}: shard"
        if path.is_absolute() or ".." in path.parts or "\\" in shard:
            message = f"{what} name {shard[:80]!r} leaves the folder"
            raise FileError(message, "do not trust this checkpoint")
        if path.suffix != suffix:
            raise FileError(f"{what} {shard[:80]!r} is not a {suffix} file", again)
    return weight_map


def read_adapter(where: str, config: Config) -> Adapter:
    """Read the adapter of an adapter_config.json (of where). Raises ShadowError unless it is LoRA
    or DoRA.
    """

    def refused(why: str) -> ShadowError:
        return ShadowError(f"{where}: {why}", MERGE)

    kind = config.get("peft_type")
    start = str(config.get("init_lora_weights")).lower()
    base = str(config.get("base_model_name_or_path") or "")
    if kind in MERGED_BY_PEFT:
        return Adapter(1.0, {}, False, False, base, config, str(kind))
    if kind != "LORA":
        why = f"an adapter of type {str(kind)[:40]!r}, which is not read"
        raise refused(why if kind else "adapter_config.json has no `peft_type`")
    if start.startswith(CHANGING_BASE):
        how = f"an adapter whose initialisation changes the base ({start[:20]!r})"
        raise refused(f"{how}: B @ A is not its delta")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(PLAIN.fullmatch, patterns)):
        raise refused("alpha_pattern has keys that are not module names")
    alphas: list[Any] = [config.get("lora_alpha"), *patterns.values()]
    for alpha in alphas:
        if type(alpha) not in (int, float) or not 0 < alpha <= MAX_ALPHA:
            raise refused(f"lora_alpha is {str(alpha)[:40]!r}, which is not a valid scale")
    first, *others = map(float, alphas)
    by_name = dict(zip(patterns, others, strict=True))
    is_stabilised = config.get("use_rslora") is True
    is_dora = bool(config.get("use_dora"))
    return Adapter(first, by_name, is_stabilised, is_dora, base, config)


def adapter_factors(
    tensors: Tensors,
) -> tuple[dict[str, Factors], Tensors, list[tuple[TensorInfo, str]]]:
    """Sort the tensors of an adapter.

    Returns the (left, right, transposed) factors of each update by module, the tensors that the
    adapter holds whole (`modules_to_save`, biases) by their names in the model, and other tensors
    with their errors.
    """
    sides_of: defaultdict[str, Tensors] = defaultdict(dict)  # by module: A and B
    embeddings: set[str] = set()
    whole: Tensors = {}
    rest: list[tuple[TensorInfo, str]] = []
    for name, info in tensors.items():
        match = FACTOR.fullmatch(name)
        if match and match["which"] not in sides_of[match["module"]]:
            sides_of[match["module"]][match["which"]] = info
            if match["embedding"]:
                embeddings.add(match["module"])
        elif ".base_layer." in name:
            why = "a copy of a layer of the base; the update is added to the base's own"
            rest.append((info, why))
        elif ".lora_" in name or ".token_adapter." in name:
            rest.append((info, "a part of the adapter that is not read"))
        else:
            whole[name.removeprefix(PREFIX).replace(".modules_to_save.", ".")] = info
    factors: dict[str, Factors] = {}
    for module, sides in sides_of.items():
        a = sides.get("A")
        b = sides.get("B")
        # matrices of one rank, above 0
        if (
            not a
            or not b
            or not len(a.shape) == len(b.shape) == 2
            or not a.shape[0] == b.shape[1] > 0
        ):
            rest += [(info, "factors that do not multiply to a matrix") for info in sides.values()]
        elif module in embeddings:
            factors[module.removeprefix(PREFIX)] = a, b, True
        else:
            factors[module.removeprefix(PREFIX)] = b, a, False
    return factors, whole, rest


def product_shape(left: TensorInfo, right: TensorInfo, *, transposed: bool) -> tuple[int, int]:
    """The shape (out, in) of the update left @ right. transposed: both are stored transposed."""
    if transposed:
        return left.shape[1], right.shape[0]
    return left.shape[0], right.shape[1]
