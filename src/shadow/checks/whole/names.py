"""`whole`: the names and shapes that a loader expects, and what config promises."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadow.checkpoints.contents import as_object
from shadow.checks.whole.part import DOUBT, FAULT, NOTE, FindingRule, Findings
from shadow.checks.whole.values import BUFFER, FLAT, role
from shadow.templates import Reason
from shadow.text import shape_text

if TYPE_CHECKING:
    from shadow.checkpoints.expected import Expected
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.run.runtime import Runtime

WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module)\.")
EXPERT = re.compile(r"(?P<owner>.+\.experts\.)(?P<expert>[0-9]+)\.(?P<rest>.+)")
LAYER = re.compile(r"(?:.+\.)?layers\.([0-9]+)\..+")
MTP = re.compile(r"(?:.*[._])?(?:mtp|nextn)(?:[._].*)?")
MTP_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
MOST_LAYERS = 10_000  # that a loader is asked to make
FEW = 8  # experts of a layer, or tensors of an expert, that have a row each
MOST = 100_000  # that a config may promise
AT_RANDOM = "The model runs without an error, and random weights spoil what it says."
NOT_ASKED = "A tensor that is lost, renamed or of another shape stays unseen."
EXPERTS = "The router sends tokens to experts that are random, or a loader stops."
RULES: Mapping[str, FindingRule] = {
    "prefix": FindingRule(
        FAULT,
        "no loader sees through {prefix} in {tensors:count name|names}",
        "A loader finds no weights under such names, and initialises them at random.",
        "Save the module inside the wrapper, or remove the prefix from the names.",
    ),
    "missing": FindingRule(
        FAULT,
        "no file has it, so transformers initialises it at random",
        AT_RANDOM,
        "Restore it from the source; if the model has no such part, correct config.json.",
    ),
    "layer_lost": FindingRule(
        FAULT,
        "{tensors:all tensor|tensors} of it are missing ({first}), so transformers initialises"
        " them at random",
        AT_RANDOM,
        "Restore it from the source; if the model has no such part, correct config.json.",
    ),
    "experts_missing": FindingRule(
        FAULT,
        "{experts/of:all expert|experts} are missing: {which} and {more:count other|others}",
        EXPERTS,
        "Restore the experts, or make all layers and config.json agree on their number.",
    ),
    "expert_cut": FindingRule(
        FAULT,
        "{tensors/of:all tensor|tensors} that others have are missing",
        EXPERTS,
        "Restore the expert from the source.",
    ),
    "expert_missing": FindingRule(
        FAULT,
        "no file has it, in a model of {of:count expert|experts}",
        EXPERTS,
        "Restore the expert, or make all layers and config.json agree on their number.",
    ),
    "expert_shape": FindingRule(
        FAULT,
        "its shape is {shape}, but that of most experts beside it is {other}",
        "Loaders stack the experts of a layer, which takes one shape.",
        "Restore the expert from the source.",
    ),
    "layer_missing": FindingRule(
        FAULT,
        "config promises {of:count layer|layers}, but this one has no tensor",
        AT_RANDOM,
        "Restore the layer, or correct `num_hidden_layers` in config.json.",
    ),
    "mtp_missing": FindingRule(
        FAULT,
        "config promises {of:count layer|layers} to predict further tokens, but the files have"
        " {found:count}",
        "A server that predicts several tokens at once stops, or uses random weights.",
        "Restore these layers, or write the number that is stored into config.json.",
    ),
    "mismatched": FindingRule(
        FAULT,
        "its shape is {shape}, but the model of this config has {other}",
        "A loader stops, or initialises the tensor at random.",
        "Correct the sizes in config.json, or restore the tensor that belongs to them.",
    ),
    "unexpected": FindingRule(
        FAULT,
        "the model has no such tensor, so transformers leaves it out",
        "What was trained in it does nothing; its name or the config is that of another model.",
        "Rename it as the class expects, or correct `architectures` in config.json.",
    ),
    "other_head": FindingRule(
        NOTE,
        "the model has no such tensor, and {spare} has: transformers leaves it out",
        "A head of another task, which the class of config does without.",
        "Name {spare} in `architectures` if the head is to be used.",
    ),
    "head_differs": FindingRule(
        FAULT,
        "stored beside a config that ties it to {embedding}, with other values: transformers 5"
        " takes it, others take {embedding}",
        "Two tools run two different models.",
        "Set `tie_word_embeddings` to false, or delete the stored head.",
    ),
    "head_unknown": FindingRule(
        DOUBT,
        "stored beside a config that ties it to {embedding}; values are not compared",
        "If the values differ, two tools run two different models.",
        "Run the command again without `--headers`.",
    ),
    "mtp": FindingRule(
        NOTE,
        "for further tokens; transformers leaves it out",
        "Only a server that predicts several tokens at once uses it.",
        "Leave it as it is.",
    ),
    "not_asked": FindingRule(
        DOUBT,
        "names and shapes are not compared with what a loader expects: {why}",
        NOT_ASKED,
        "Mend what is named as the reason, and run the command again.",
    ),
    "cut": FindingRule(DOUBT, "files are missing", NOT_ASKED, "Complete the files first."),
    "no_config": FindingRule(
        DOUBT,
        "there is no config.json",
        NOT_ASKED,
        "Copy config.json of the model into the folder.",
    ),
    "no_class": FindingRule(
        DOUBT, "config names no class", NOT_ASKED, "Add `architectures` to config.json."
    ),
    "gguf": FindingRule(
        DOUBT, "it is a GGUF file", NOT_ASKED, "Check the model that it was converted from."
    ),
    "quantised": FindingRule(
        DOUBT,
        "a quantised module is not decoded, or has other names than in transformers",
        NOT_ASKED,
        "Check the model that it was made from, and compare both with `shadow verify quantised`.",
    ),
    "unknown_class": FindingRule(
        DOUBT,
        "transformers has no class {detail}",
        NOT_ASKED,
        "Update transformers, or check the model with the package that has its class.",
    ),
    "no_transformers": FindingRule(
        DOUBT,
        "{detail}; pip install transformers accelerate",
        NOT_ASKED,
        "Install transformers and accelerate.",
    ),
    "config_deep": FindingRule(
        DOUBT,
        "config.json is nested too deeply",
        NOT_ASKED,
        "Restore config.json from the source.",
    ),
    "loader_failed": FindingRule(
        DOUBT,
        "transformers says {detail}",
        NOT_ASKED,
        "Correct config.json, or update transformers.",
    ),
    "loader_died": FindingRule(
        DOUBT,
        "the child that asks transformers died ({detail})",
        NOT_ASKED,
        "Run the command again where more memory is free.",
    ),
    "loader_large": FindingRule(
        DOUBT,
        "the model of this config takes too much memory",
        NOT_ASKED,
        "Check the sizes in config.json.",
    ),
    "loader_slow": FindingRule(
        DOUBT,
        "transformers did not answer in {detail} seconds",
        NOT_ASKED,
        "Check the sizes in config.json, and run the command again on an idle machine.",
    ),
}


# a head that is stored although config ties it to the embedding, and whether both are equal; None
# where values were not read
Tied = tuple[str, str, bool | None]


@dataclass(frozen=True)
class Names:
    """The names and shapes of a checkpoint, and those that a loader expects."""

    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    expected: Expected
    tied: Tied | None = None
    indexed: Collection[str] = ()  # names in the index: what it has and files lack is said of files


def judge_names(findings: Findings, facts: Names) -> None:
    """Judge what a loader would miss, leave out, refuse or ignore."""
    for prefix, count in wrapped(facts.tensors).items():
        findings.add(prefix, "prefix", prefix=prefix, tensors=count)
    layers = _judge_experts(findings, facts)
    if facts.expected.problem != "quantised":  # for which some tools leave them out
        _judge_mtp(findings, facts)
    if problem := facts.expected.problem:
        why = Reason(problem, {"detail": facts.expected.detail})
        findings.add("", "not_asked", why=why)
        layers_held = {int(match[1]) for match in map(LAYER.fullmatch, facts.tensors) if match}
        promised = number_of(facts.config, ("num_hidden_layers",))
        if problem != "cut" and layers_held and promised <= MOST:
            for layer in sorted({*range(promised)} - layers_held):
                findings.add(f"layers.{layer}", "layer_missing", of=promised)
    else:
        _judge_loading(findings, facts, layers)
    head, embedding, equal = facts.tied or ("", "", True)
    if equal is None:
        findings.add(head, "head_unknown", embedding=embedding)
    elif not equal:
        findings.add(head, "head_differs", embedding=embedding)


def wrapped(names: Collection[str]) -> dict[str, int]:
    """Count the names that begin with a prefix of a wrapper, by prefix."""
    counts = Counter(prefix for name in names for prefix in {*WRAPPED.findall(name)})
    # a part of a model may be called module; one that wraps has all of it
    return {
        prefix: count
        for prefix, count in counts.items()
        if prefix == "_orig_mod." or all(name.startswith(prefix) for name in names)
    }


def _judge_loading(findings: Findings, facts: Names, layers: Collection[str]) -> None:
    """layers: those that lack an expert, which is reported already."""
    from shadow.checkpoints.expected import owners_of

    def is_named(name: str) -> bool:
        match = LAYER.fullmatch(name)
        return bool(match and match[1] in layers and "experts" in name)

    missing: defaultdict[str, list[str]] = defaultdict(list)  # those of a lost layer by its name
    for name in sorted({*facts.expected.missing} - {*facts.indexed}):
        if not is_named(name):
            owner = next(filter(facts.expected.lost.get, owners_of(name)), name)
            missing[owner].append(name)
    for owner, names in missing.items():
        if len(names) > 1:
            findings.add(owner, "layer_lost", tensors=len(names), first=names)
        else:
            findings.add(names[0], "missing")
    for name in sorted(facts.expected.unexpected):
        info = facts.tensors.get(name)
        is_judged_elsewhere = BUFFER.fullmatch(name) or FLAT.fullmatch(name)
        if is_of_mtp(name, facts.config):
            findings.add(name, "mtp")
        elif not is_judged_elsewhere and (info is None or info.parameters):
            spare = facts.expected.spare
            findings.add(name, "other_head" if spare else "unexpected", spare=spare)
    for name, shape, other in facts.expected.mismatched:
        if not is_named(name) and shape[:1] != (0,):
            findings.add(name, "mismatched", shape=shape_text(shape), other=shape_text(other))


def _judge_experts(findings: Findings, facts: Names) -> set[str]:
    """Report experts that a layer lacks and similar layers have; return such layers."""
    # by the name before the number, by that after it, by number: the whole name
    experts: defaultdict[str, defaultdict[str, dict[int, str]]]
    experts = defaultdict(lambda: defaultdict(dict))
    for match in filter(None, map(EXPERT.fullmatch, facts.tensors)):
        experts[match["owner"]][match["rest"]][int(match["expert"])] = match[0]
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for owner, tensors in experts.items():
        numbers[role(owner)].update(*tensors.values())
    every = {kind: sorted(own) for kind, own in numbers.items()}
    expected = facts.expected
    wrong = [*expected.missing]
    wrong += [name for name, _, _ in expected.mismatched]
    faulty = {match[1] for match in map(LAYER.fullmatch, wrong) if match and "experts" in match[0]}
    layers = set()
    for owner, tensors in experts.items():
        for names in tensors.values():
            shapes = {name: shape_text(facts.tensors[name].shape) for name in names.values()}
            usual = Counter(shapes.values()).most_common(1)[0][0]
            for name in sorted(name for name, shape in shapes.items() if shape != usual):
                findings.add(name, "expert_shape", shape=shapes[name], other=usual)
        layer = LAYER.fullmatch(owner + "0")
        if layer and not expected.problem and layer[1] not in faulty:
            continue  # whatever the loader expects is there
        lacks = _judge_lost_experts(findings, owner, tensors, every[role(owner)])
        if lacks and layer:
            layers.add(layer[1])
    return layers


def _judge_lost_experts(
    findings: Findings, owner: str, tensors: Mapping[str, Mapping[int, str]], every: Sequence[int]
) -> bool:
    """Report experts of a layer that are lost or lack tensors, many of them in one row; return
    whether there are any. tensors: by the end of a name, by number. every: the numbers that similar
    layers have.
    """
    counts = Counter(number for names in tensors.values() for number in names)
    lost = len(every) - len(counts)
    # no more than are spelt out are looked for
    first = itertools.islice((number for number in every if not counts[number]), FEW)
    if lost > FEW:
        figures = {"experts": lost, "of": len(every), "more": lost - FEW}
        which = ", ".join(map(str, first))
        findings.add(owner.removesuffix("."), "experts_missing", which=which, **figures)
    else:
        for number in first:
            findings.add(f"{owner}{number}", "expert_missing", of=len(every))
    cut = [number for number, count in sorted(counts.items()) if count < len(tensors)]
    for number in cut:
        if (absent := len(tensors) - counts[number]) > FEW:
            findings.add(f"{owner}{number}", "expert_cut", tensors=absent, of=len(tensors))
            continue
        for rest, names in tensors.items():
            if number not in names:
                findings.add(f"{owner}{number}.{rest}", "expert_missing", of=len(every))
    return bool(lost or cut)


def _judge_mtp(findings: Findings, facts: Names) -> None:
    """Report layers that predict further tokens, which config counts and many loaders ignore."""
    promised = number_of(facts.config, MTP_KEYS)
    named = [name for name in facts.tensors if MTP.fullmatch(name)]
    beyond = [name for name in facts.tensors if _is_beyond(name, facts.config)]
    numbers = {match[1] for match in map(LAYER.fullmatch, beyond or named) if match}
    count = len(numbers) or (promised if named else 0)
    if count < promised <= MOST:
        inner = text_config(facts.config)
        key = next(key for key in MTP_KEYS if key in facts.config or key in inner)
        findings.add(key, "mtp_missing", of=promised, found=count)


def is_of_mtp(name: str, config: Mapping[str, Any]) -> bool:
    """True if a tensor is of a layer that predicts further tokens."""
    return bool(MTP.fullmatch(name)) or _is_beyond(name, config)


def _is_beyond(name: str, config: Mapping[str, Any]) -> bool:
    """True if a tensor belongs to a layer after the last that config counts, if it promises
    more.
    """
    match = LAYER.fullmatch(name)
    layers = number_of(config, ("num_hidden_layers",))
    return bool(match and layers and number_of(config, MTP_KEYS) and int(match[1]) >= layers)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model inside; empty if there is none."""
    inner = [as_object(config.get(f"{kind}_config")) for kind in ("text", "llm", "language")]
    return next(filter(None, inner), {})


def number_of(config: Mapping[str, Any], keys: Sequence[str]) -> int:
    """The first of these keys that is a whole number above 0; 0 if none is."""
    values = [part.get(key) for part in (config, text_config(config)) for key in keys]
    return next((value for value in values if type(value) is int and value > 0), 0)


def is_quantised(checkpoint: Checkpoint) -> bool:
    """True if config says so, or tensors are packed."""
    keys = ("quantization_config", "compression_config", "quantization")
    parts = (checkpoint.config, text_config(checkpoint.config))
    is_said = any(part.get(key) for part in parts for key in keys)
    is_packed = any(info.packing for info in checkpoint.tensors.values())
    return is_said or is_packed or bool(checkpoint.refused)


def gather_expected(
    checkpoint: Checkpoint,
    cache: Path | None,
    scratch: Path,
    *,
    is_cut: bool,
    begins: Callable[[], None] = lambda: None,
) -> Expected:
    """Ask a loader about names and shapes, if one can be asked. cache: a folder of answers;
    begins: called when a child starts.
    """
    from shadow.checkpoints.expected import Expected, expected
    from shadow.run.file_cache import FileCache

    classes = checkpoint.config.get("architectures")
    problems = (
        ("gguf", any(name.endswith(".gguf") for name in checkpoint.sources)),
        ("cut", is_cut),
        ("no_config", not checkpoint.config),
        ("quantised", bool(checkpoint.refused)),
        ("loader_large", number_of(checkpoint.config, ("num_hidden_layers",)) > MOST_LAYERS),
        ("no_class", not (isinstance(classes, list) and classes and isinstance(classes[0], str))),
    )
    if problem := next((problem for problem, holds in problems if holds), ""):
        return Expected(problem=problem)
    stored_names = {name: name for name in checkpoint.tensors}  # by the name that a loader knows
    for prefix in wrapped(checkpoint.tensors):
        anywhere = prefix == "_orig_mod."
        stored_names = {
            name.replace(prefix, "") if anywhere else name.removeprefix(prefix): stored
            for name, stored in stored_names.items()
        }
    named = {name: checkpoint.tensors[stored] for name, stored in stored_names.items()}
    answers = None if cache is None else FileCache(cache, ".json")
    answer = expected(checkpoint.config, named, scratch, answers, begins)
    inputs = [stored_names[name] for name in answer.inputs if name in stored_names]
    outputs = [stored_names[name] for name in answer.outputs if name in stored_names]
    return replace(answer, inputs=inputs, outputs=outputs)


def gather_tied(
    checkpoint: Checkpoint, names: tuple[str, str], runtime: Runtime | None, *, is_tied: bool | None
) -> Tied | None:
    """A head and the embedding that the class ties it to. is_tied: None where no loader was asked,
    so that config decides. runtime: None if values are not read.
    """
    tensors = [checkpoint.tensors[name] for name in names]
    # rounding makes a packed copy differ
    kinds = {(info.shape, bool(info.packing)) for info in tensors}
    if is_tied is None:
        is_tied = says_tied(checkpoint.config, default=False)
    if len(kinds) > 1 or not is_tied:
        return None
    return *names, None if runtime is None else are_equal(checkpoint, names, runtime)


def says_tied(config: Mapping[str, Any], *, default: bool) -> bool:
    """True if a config ties the head to the embedding. default: if it does not say."""
    every = {**text_config(config), **config}
    return bool(every.get("tie_word_embeddings", default))


def are_equal(checkpoint: Checkpoint, names: tuple[str, str], runtime: Runtime) -> bool:
    """True if two tensors of a checkpoint hold equal values."""
    from shadow.run.scan import same_values

    first, other = (checkpoint.tensors[name] for name in names)
    fetch(checkpoint, (first, other), runtime)
    return same_values(checkpoint.tensor, first, other)


def fetch(checkpoint: Checkpoint, tensors: Collection[TensorInfo], runtime: Runtime) -> None:
    """Fetch the shards of tensors, so that they can be read."""
    from shadow.checkpoints.transfers import Transfer

    for shard in {info.shard for info in tensors}:
        checkpoint.sources[shard].fetch(Transfer(runtime.say))
