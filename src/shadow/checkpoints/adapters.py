"""A PEFT LoRA adapter: adapter_config.json -> how each pair of factors is scaled. Reads no weights.

Layout and scaling are those of the `peft` library (Hu et al. 2021; rsLoRA: Kalajdzievski 2023): the
delta of a module is scaling * B @ A with A (r, in) and B (out, r), scaling = alpha / r, or alpha /
sqrt(r) with `use_rslora`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.errors import ShadowError

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # of every name in an adapter
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.(?!bias$)\w+)?(?:\.weight)?"
)
# ways to initialise that take B @ A out of the base
CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
Factors = tuple[TensorInfo, TensorInfo, bool]  # left, right, and whether both are stored transposed
MAX_ALPHA = 1e6
PLAIN = re.compile(r"[\w.-]{1,500}", re.ASCII)


@dataclass(frozen=True)
class Adapter:
    """What scales an adapter's factors.

    `fan_in_fan_out` (Conv1D) needs no word: it is about how the base stores a matrix, and B @ A is
    (out, in) always.
    """

    alpha: float  # above 0, at most MAX_ALPHA
    alpha_pattern: Mapping[str, float]  # by the name of a module, or its end
    rank_stabilised: bool  # alpha is divided by the square root of the rank
    dora: bool = False  # rows of base plus update are given the norms that the adapter holds

    def scaling(self, module: str, rank: int) -> float:
        """What B @ A of a module is multiplied by."""
        divisor = math.sqrt(rank) if self.rank_stabilised else rank
        for name, alpha in self.alpha_pattern.items():
            if module == name or module.endswith(f".{name}"):
                return alpha / divisor
        return self.alpha / divisor


def read_adapter(where: str, config: Mapping[str, object], *, dora: bool = False) -> Adapter:
    """The adapter of an adapter_config.json (of where). Raises ShadowError unless a plain LoRA.

    dora: DoRA will do as well, for those who read its norms.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ShadowError(
            f"{where}: an adapter of type {str(kind)[:40]!r}; only LORA is read",
            "merge it into its base",
        )
    if config.get("use_dora") and not dora:
        raise ShadowError(
            f"{where}: a DoRA adapter, whose delta is not low-rank",
            "merge it into its base, and audit the result",
        )
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(CHANGING_BASE):
        raise ShadowError(
            f"{where}: an adapter whose initialisation changes the base ({start[:20]!r}): B @ A is"
            " not its delta",
            "merge it into its base, and audit the result",
        )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(PLAIN.fullmatch(name) for name in patterns):
        raise ShadowError(
            f"{where}: alpha_pattern has keys that are not module names",
            "merge it into its base first",
        )
    return Adapter(
        alpha=_alpha(where, config.get("lora_alpha")),
        alpha_pattern={name: _alpha(where, alpha) for name, alpha in patterns.items()},
        rank_stabilised=config.get("use_rslora") is True,
        dora=bool(config.get("use_dora")),
    )


def adapter_factors(
    tensors: Mapping[str, TensorInfo],
) -> tuple[dict[str, Factors], dict[str, TensorInfo], list[tuple[TensorInfo, str]]]:
    """Sort the tensors of an adapter.

    Returns by module the (left, right, transposed) factors of its update, by name in the model the
    tensors that the adapter holds whole (`modules_to_save`, biases), and the rest with what is
    wrong with it.
    """
    sides_of: defaultdict[str, dict[str, TensorInfo]] = defaultdict(dict)  # by module: A and B
    embeddings: set[str] = set()
    whole: dict[str, TensorInfo] = {}
    rest: list[tuple[TensorInfo, str]] = []
    for name, info in tensors.items():
        match = FACTOR.fullmatch(name)
        if match and match["which"] not in sides_of[match["module"]]:
            sides_of[match["module"]][match["which"]] = info
            if match["embedding"]:
                embeddings.add(match["module"])
        elif ".base_layer." in name:
            rest.append(
                (info, "a copy of a layer of the base; the update is added to the base's own")
            )
        elif ".lora_" in name or ".token_adapter." in name:
            rest.append((info, "a part of the adapter that is not read"))
        else:
            whole[name.removeprefix(PREFIX).replace(".modules_to_save.", ".")] = info
    factors: dict[str, Factors] = {}
    for module, sides in sides_of.items():
        a = sides.get("A")
        b = sides.get("B")
        if not a or not b or not _multiply(a, b):
            rest += [(info, "factors that do not multiply to a matrix") for info in sides.values()]
        elif module in embeddings:
            factors[module.removeprefix(PREFIX)] = a, b, True
        else:
            factors[module.removeprefix(PREFIX)] = b, a, False
    return factors, whole, rest


def _multiply(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether A and B are matrices of one rank, above 0."""
    return len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] > 0


def product_shape(left: TensorInfo, right: TensorInfo, *, transposed: bool) -> tuple[int, int]:
    """(out, in) of the update left @ right; transposed: both factors are stored so."""
    if transposed:
        return left.shape[1], right.shape[0]
    return left.shape[0], right.shape[1]


def _alpha(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_ALPHA:
        raise ShadowError(
            f"{where}: lora_alpha is {str(value)[:40]!r}, which is no scale",
            "merge it into its base",
        )
    return float(value)
