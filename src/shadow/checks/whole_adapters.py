"""`whole`: whether the factors of an adapter are those of its config, and do anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shadow.checks.whole_part import Part, json_object

if TYPE_CHECKING:
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.run.scan import Swept

CONFIG = "adapter_config.json"
WORDS = {
    "does_nothing": "the adapter does nothing: a factor is zero in {modules:all module|modules}",
    "zero_factor": "a factor of it is all zero, so that the adapter does nothing here",
    "alpha": "lora_alpha is {alpha}, so that the adapter does nothing",
    "rank": "its factors have rank {rank:count}, where config says {said:count}",
    "half": "only one factor of its update is there",
    "factors_apart": "factors of {left} and {right} do not multiply",
    "target_absent": "config names it in target_modules, and no factor is of it",
    "not_targeted": "config does not name it in target_modules, so that peft leaves it out",
    "saved_absent": "config names it in modules_to_save, and no tensor is of it",
    "dora_absent": "config says DoRA, and no module has its magnitudes",
    "adapter_kind": "an adapter of type {kind}, of which nothing is known",
}


@dataclass(frozen=True)
class Factors:
    """The config of an adapter, and the factors of its modules."""

    config: Mapping[str, Any]
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    """By module, of A and B."""
    others: Sequence[str] = ()
    """Its other tensors."""
    zero: Sequence[str] = ()
    """Modules of which a factor is all zero."""


def judge_adapter(found: Factors) -> Part:
    """The config against factors, module by module."""
    part = Part(figures={"modules": len(found.shapes), "modules_zero": len(found.zero)})
    config, alpha = found.config, found.config.get("lora_alpha")
    if config.get("peft_type") != "LORA":
        part.doubt(CONFIG, "adapter_kind", kind=str(config.get("peft_type"))[:40])
        return part
    if not isinstance(alpha, int | float) or not alpha > 0:
        part.fault(CONFIG, "alpha", alpha=str(alpha)[:40])
    if found.zero and len(found.zero) == len(found.shapes):
        part.fault("lora_B", "does_nothing", modules=len(found.zero))
    else:
        for module in found.zero:
            part.fault(module, "zero_factor")
    for module, shapes in found.shapes.items():
        _judge_module(part, module, shapes, config)
    targets = config.get("target_modules")  # a list, or a pattern, or all-linear
    named = [one for one in targets if isinstance(one, str)] if isinstance(targets, list) else []
    for target in named:
        if not any(_is_named(module, target) for module in found.shapes):
            part.fault(target, "target_absent")
    for module in found.shapes if named and not config.get("target_parameters") else ():
        if not any(_is_named(module, target) for target in named):
            part.fault(module, "not_targeted")
    saved = config.get("modules_to_save")
    for name in saved if isinstance(saved, list) else ():
        if not any(f".{name}." in f".{other}." for other in found.others):
            part.fault(str(name)[:200], "saved_absent")
    if config.get("use_dora") and not any("lora_magnitude_vector" in one for one in found.others):
        part.fault(CONFIG, "dora_absent")
    return part


def _judge_module(
    part: Part, module: str, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> None:
    a, b = shapes.get("A"), shapes.get("B")
    if a is None or b is None:
        part.fault(module, "half")
        return
    if len(a) < 2 or len(b) < 2 or a[0] != b[1]:
        left, right = (" x ".join(map(str, one)) for one in (b, a))
        part.fault(module, "factors_apart", left=left, right=right)
        return
    said, patterns = config.get("r"), config.get("rank_pattern")
    for name, rank in patterns.items() if isinstance(patterns, dict) else ():
        said = rank if _is_named(module, name.lstrip("^")) else said
    if type(said) is int and said != a[0] and not config.get("target_parameters"):
        part.fault(module, "rank", rank=a[0], said=said)


def _is_named(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def read_factors(
    config: bytes | None, stored: Mapping[str, TensorInfo], swept: Sequence[Swept]
) -> Factors:
    """The factors of an adapter that was opened, and which of those that were read are zero."""
    from shadow.checkpoints.adapters import FACTOR, PREFIX

    shapes: defaultdict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    matches = {name: FACTOR.fullmatch(name) for name in stored}
    owners = {name: one["module"].removeprefix(PREFIX) for name, one in matches.items() if one}
    for name, match in matches.items():
        if match:
            shapes[owners[name]][match["which"]] = stored[name].shape
    zero = [one.info.name for one in swept if one.found.is_constant and not one.found.first]
    return Factors(
        json_object(config),
        shapes,
        [name for name in stored if name not in owners],
        [*dict.fromkeys(owners[name] for name in zero if name in owners)],
    )
