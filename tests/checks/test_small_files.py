"""`verify whole`: small files against each other, copies that files name, modules in memory. Each
fault is planted in two architectures, and its healthy twin beside it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import planted
import pytest
import torch
from planted import edit
from safetensors.torch import load_file
from small_plants import CHATML, END, FILES, LLAMA_3, NAMED, START, rows_zero, spelt
from wholes import FILE, HOLDS, OPEN, codes, verified

import shadow
from shadow.checkpoints.held_files import HeldFile
from shadow.checks.whole import RULES, copies
from shadow.checks.whole.configs import read_words
from shadow.checks.whole.part import Findings
from shadow.checks.whole.small_files import SmallFiles, judge_small_files

pytestmark = pytest.mark.usefixtures("in_this_process")


def is_named(found, code: str) -> bool:
    """Of a note the longest part of its text is looked for."""
    words = max(re.split(r"\{[^}]*\}", RULES[code].text), key=len)
    return code in codes(found) or words in " ".join(found.notes)


@pytest.mark.parametrize("sick", [True, False], ids=["sick", "healthy"])
@pytest.mark.parametrize(
    ("plant", "code", "kind"),
    [(plant, code, kind) for plant, (code, kinds) in FILES.items() for kind in kinds],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_files_name_exists_in_the_others(plant, code, kind, sick, healthy, tmp_path):
    """A sick folder is named by its code, and its twin holds without a word of it."""
    folder = Path(shutil.copytree(healthy(kind), tmp_path / "m"))
    plant(folder, sick)
    found = verified(folder)
    assert is_named(found, code) is sick, found.reason
    if sick and RULES[code].severity == "fault":
        assert code in codes(found)
    elif not sick:
        assert found.outcome is (OPEN if code == "code_lost" else HOLDS), found.reason


def roles(folder):
    """Roles that a model writes as ordinary text, as Zephyr does; its end of a turn is eos."""
    edit(
        folder, NAMED, chat_template="{% for m in messages %}<|user|>{{m + eos_token}}{% endfor %}"
    )


def of_llama_3(folder):
    spelt(folder, {"<|start_header_id|>": 4, "<|eot_id|>": 6}, "<|eot_id|>", LLAMA_3)
    for name in ("config.json", "generation_config.json"):
        edit(folder, name, eos_token_id=[3, 6])


def older(folder):
    """A tokenizer of which only merges, or a model of sentencepiece, is there."""
    (folder / "tokenizer.json").unlink()
    edit(folder, NAMED, tokenizer_class="GPT2Tokenizer", chat_template=CHATML % (START, END))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def alone(folder):
    for name in ("tokenizer.json", NAMED):
        (folder / name).unlink()


def remote(folder):
    edit(folder, auto_map={"AutoModel": "org/x--modeling_x.XModel"})
    edit(folder, NAMED, auto_map={"AutoTokenizer": ["x.Slow", None]}, tokenizer_class="XFast")
    (folder / "tokenizer.json").rename(folder / "x.py")


def text_of_images(folder):
    """A text model that was cut out of one of images keeps the name of its processor."""
    edit(folder, NAMED, processor_class="XProcessor", image_token="<image>")
    edit(folder, vision_config=None)


def rank_of_modules(folder):
    """A module that sentence-transformers does not have, and one that leads out of the folder."""
    types = {"../up": "sentence_transformers.models.Dense", "1_Own": "own.Module"}
    modules = [{"path": path, "type": kind} for path, kind in types.items()]
    (folder / "modules.json").write_text(json.dumps([*modules, "text", {"path": 3}]))


SILENT = (roles, of_llama_3, older, alone, remote, text_of_images, rank_of_modules)


@pytest.mark.parametrize("plant", SILENT, ids=lambda value: value.__name__)
@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_what_released_folders_look_like_is_healthy(kind, plant, healthy, tmp_path):
    folder = Path(shutil.copytree(healthy(kind), tmp_path / "m"))
    plant(folder)
    found = verified(folder)
    assert found.outcome is HOLDS, found.reason


PAIRS = {f"model.layers.{layer}.self_attn.{name}_proj.weight": (torch.ones(8, 4), torch.ones(4, 8))
         for layer in range(5) for name in "qkv"}  # fmt: skip
MAGNITUDE = "base_model.model.{}.lora_magnitude_vector"
EVERY = {MAGNITUDE.format(name[:-7]): torch.ones(8) for name in PAIRS}
LOST, LAST = "model.layers.1.self_attn.k_proj", "model.layers.4.self_attn.v_proj"
SCORE = "base_model.model.score.weight"
# factors that are lost, other tensors, config, code, its name
ADAPTERS = {
    "whole": ("none", {}, {}, None, ""),
    "a layer lacks a module": (LOST, {}, {}, "factors_lost", LOST),
    "a layer for two that have it": (r"[134]\..*k_proj", {}, {}, "factors_lost", LOST),
    "two layers for three": (r"[12]\..*k_proj", {}, {}, None, ""),
    "the last lacks one": (LAST, {}, {}, None, ""),
    "chosen by layer": (
        r"layers\.1\.", {},
        {"target_modules": [f"{n}.self_attn.{m}_proj" for n in (0, 2, 3, 4) for m in "qkv"]}, None,
        ""),
    "excluded": (LOST, {}, {"exclude_modules": ["x"]}, None, ""),
    "a layer that config names": (
        r"layers\.2\.", {}, {"layers_to_transform": [*range(5)]}, "factors_lost", "layers.2"),
    "a layer between others": (r"layers\.2\.", {}, {}, "factors_lost", "layers.2"),
    "every second layer": (r"layers\.[13]\.", {}, {}, None, ""),
    "layers that config leaves out": (
        r"layers\.2\.", {}, {"layers_to_transform": [0, 1, 3, 4]}, None, ""),
    "DoRA": ("none", EVERY, {"use_dora": True}, None, ""),
    "DoRA in part": (
        "none", {name: one for name, one in EVERY.items() if LOST not in name}, {"use_dora": True},
        "dora_absent", LOST),
    "a head": ("none", {SCORE: torch.randn(2, 8)}, {"modules_to_save": ["score"]}, None, ""),
    "a head of another key": (
        "none", {"score.weight": torch.randn(2, 8)}, {}, "key_unread", "score.weight"),
    "a head as in memory": (
        "none", {SCORE.replace("weight", "modules_to_save.weight"): torch.randn(2, 8)}, {},
        "key_unread", SCORE.replace("weight", "modules_to_save.weight")),
}  # fmt: skip


@pytest.mark.parametrize("case", ADAPTERS)
def test_factors_of_an_adapter_are_those_that_config_and_other_layers_have(case, tmp_path):
    lost, extra, config, code, name = ADAPTERS[case]
    for seed, stack in enumerate(("model.layers", "transformer.h")):
        renamed = {key.replace("model.layers", stack): pair for key, pair in PAIRS.items()
                   if not re.search(lost, key)}  # fmt: skip
        more = {key.replace("model.layers", stack): one for key, one in extra.items()}
        targets = {"target_modules": ["q_proj", "k_proj", "v_proj"]} | config
        folder = planted.adapter(tmp_path / f"{seed}", renamed, more, **targets)
        found = verified(folder)
        assert codes(found) == ({code} if code else set()), found.reason
        if code:
            assert [one.name for one in found.against] == [name.replace("model.layers", stack)]


@pytest.mark.parametrize("seed", [1, 2])
def test_an_adapter_without_its_config_is_named(seed, tmp_path):
    planted.adapter(tmp_path / "a", dict(list(PAIRS.items())[seed:]), target_modules=["q_proj"])
    (tmp_path / "a" / "adapter_config.json").unlink()
    assert codes(verified(tmp_path / "a")) == {"adapter_config_lost"}


class Deep(torch.nn.Module):
    """Layers that are one module, or modules of their own."""

    def __init__(self, name: str, shared: bool) -> None:
        super().__init__()
        first, second = (torch.nn.Sequential(torch.nn.Linear(32, 32)) for _ in range(2))
        layers = torch.nn.ModuleList([first, first if shared else second])
        self.body = torch.nn.ModuleDict({name: layers})


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_a_tie_that_broke_is_named_in_memory(kind):
    model = planted.built(kind)
    assert shadow.check(model).holds, shadow.check(model).lines[0].reason
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    found = shadow.check(model).lines[0]
    assert [(one.name, one.code) for one in found.against] == [("lm_head.weight", "tie_broken")]
    model.config.tie_word_embeddings = False
    assert shadow.check(model).holds


@pytest.mark.parametrize("name", ["layers", "h", "blocks"])
def test_one_module_as_two_layers_is_named_in_memory(name):
    found = shadow.check(Deep(name, shared=True)).lines[0]
    assert [(one.name, one.code) for one in found.against] == [(f"body.{name}.1", "module_twice")]
    assert shadow.check(Deep(name, shared=False)).holds


@pytest.mark.parametrize("name", ["heads", "towers"])
def test_what_is_no_layer_may_be_one_module(name):
    """Some models predict with the same head after each layer."""
    assert shadow.check(Deep(name, shared=True)).holds


def test_files_that_may_not_be_listed_are_not_missed():
    """Of a repository that is read from the cache, it is not known which files there are."""
    keys = {
        "config.json": {"auto_map": {"AutoModel": "x.X"}, "vision_config": {"depth": 1}},
        NAMED: {"processor_class": "X", "tokenizer_class": "XFast"},
    }
    content = {name: json.dumps(one).encode() for name, one in keys.items()}
    for files, missed in ((None, set()), ((), {"code_lost", "processor_lost", "tokenizer_lost"})):
        findings = Findings(RULES, {})
        judge_small_files(findings, SmallFiles(content, files, read_words(content), (), True))
        rows = [row for own in findings.rows.values() for row in own]
        assert {row.why.code for row in rows} == missed


@pytest.mark.parametrize(("most", "is_read"), [(1, False), (2, True)])
def test_rows_of_so_many_tokens_are_read(most, is_read, healthy, tmp_path, monkeypatch):
    """The zero row is that of the second token that the template writes. No other row is read."""
    folder = Path(shutil.copytree(healthy("llama"), tmp_path / "m"))
    rows_zero(folder, True)
    monkeypatch.setattr(copies, "MOST", most)
    weights = sum(one.nbytes for one in load_file(folder / FILE).values())
    read = []
    of_file = HeldFile.read_runs
    monkeypatch.setattr(
        HeldFile, "read_runs", lambda *given: read.append(len(given[-1])) or of_file(*given)
    )
    assert ("token_rows" in codes(verified(folder))) is is_read
    assert sum(read) == weights + most * 256  # bytes of a row
