"""Readers of files that others write, against bytes that nobody thought of: `make fuzz`, or

    python tests/fuzz.py [--seconds 60] [--seed 0] [TARGET ...]
    python tests/fuzz.py --processes 500 [--seed 0]

Whatever a file holds, its reader gives a value or raises ShadowError: in little time and memory, in
words that can be printed. Each target changes files that are right, as bytes and as JSON. A
counterexample is shrunk and printed.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz_models
import fuzz_processes
import numpy as np
import planted
import pyarrow.parquet as pq
import quantisers
import reports
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import save

import shadow
from shadow.checkpoints import expected as loader
from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter, pair_checkpoints
from shadow.checkpoints.safetensors_files import held_shard
from shadow.checkpoints.sources import read_header
from shadow.checkpoints.stored_tensors import PackedTensor
from shadow.checks.registry import pair_claim
from shadow.cli.verify import _listed as read_claims
from shadow.comparing.scores import read_scores
from shadow.dtypes import FLOATS
from shadow.errors import ShadowError
from shadow.gates.measured import read_measured
from shadow.gates.rules import parse_moved, parse_rule, read_policy
from shadow.gates.verdicts import judge_report
from shadow.lists.index import MARK, read_index
from shadow.targets import families as families_files
from shadow.targets.families import load_families
from shadow.targets.lists import read_list

SECONDS = 5.0  # of CPU for one file of a few KB: the slowest of them takes a tenth
MEMORY = 2 << 30  # bytes beyond what is in use
ROUND = 200  # examples between two looks at the clock
LONGEST = 2000  # characters of a message with its hint
SETTINGS = settings(
    max_examples=ROUND, deadline=None, database=None, report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
)  # fmt: skip

ODD = st.sampled_from(
    [
        None, True, False, 0, -1, 1, 0.5, 2**31, 2**53, 2**63, 2**64, 10**30, -(10**30), 1e308,
        float("nan"), float("inf"), "", "~", "/", "..", "../x", "a/b", "\x1b[2J", "\x00", "\ud800",
        "\n::error::x", "x" * 3000, "F32", "1", "nan", "٣", [], {}, [[]], [None], {"": ""},
        {"a": {"b": {}}}, [-1], [2**63, 2**63], [0, 10**30],
    ]
)  # fmt: skip
TOKENS = st.sampled_from(
    [
        b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\n", b"\r", b"\x00", b"\xff",
        b"\xef\xbb\xbf", b"\\ud800", b"&a ", b"*a", b"!!python/object/apply:os.system", b"? ",
        b"- ", b"---\n", b"...", b"~", b"|", b">", b"%YAML 9.9\n", b"\t", b"#", b"null", b"NaN",
        b"1e999", b"-0", b"9" * 5000, b"[" * 3000, b"{a: " * 1500, b"a: " * 50, b"<<: ", b"*", b"?",
        b"@", b"..", b"'", b"\xe2\x80\xa8", b"\x85", b"\x1b[2J",
    ]
)  # fmt: skip


@st.composite
def changed_bytes(draw: st.DrawFn, originals: tuple[bytes, ...]) -> bytes:
    """One of the originals with a few cuts, copies, insertions and other bytes."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["cut", "end", "copy", "insert", "other"])):
            case "cut":
                del content[at:to]
            case "end":
                del content[at:]
            case "copy":
                content[at:at] = content[at:to] * draw(st.integers(1, 5))
            case "insert":
                content[at:at] = draw(TOKENS)
            case _:
                content[at:to] = draw(st.binary(max_size=to - at))
    return bytes(content)


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a JSON value."""
    yield at
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from places(value, (*at, key))


@st.composite
def changed_json(draw: st.DrawFn, originals: tuple[Any, ...]) -> bytes:
    """One of the originals with a few values replaced, left out, moved or under another key."""
    tree = json.loads(json.dumps(draw(st.sampled_from(originals))))
    for _ in range(draw(st.integers(1, 4))):
        *path, last = draw(st.sampled_from([place for place in places(tree) if place] or [(None,)]))
        parent = tree
        for key in path:
            parent = parent[key]
        if last is None:
            break
        match draw(st.sampled_from(["replace", "replace", "leave out", "swap", "rename"])):
            case "replace":
                parent[last] = deepcopy(draw(ODD))
            case "leave out":
                del parent[last]
            case "swap":
                keys = list(parent) if isinstance(parent, dict) else range(len(parent))
                other = draw(st.sampled_from(keys))
                parent[last], parent[other] = parent[other], parent[last]
            case _ if isinstance(parent, dict):
                parent[draw(st.text(max_size=8)) or "shadow"] = parent.pop(last)
    return json.dumps(tree).encode()


DTYPES = {
    "U8": 1, "I8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
}  # fmt: skip
MODULE = "model.layers.0.mlp.up_proj"


def layouts() -> list[Any]:
    """A module in each quantised format: what config.json says, and its tensors by name."""
    weight, made = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), []
    formats = {key: (make(weight)[0], said) for key, (make, _, said) in quantisers.FORMATS.items()}
    raw = weight.to(torch.float8_e4m3fn)
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    formats["fp8-blocks"] = {"weight": raw, "weight_scale_inv": torch.ones(1, 1)}, blocks
    stacked, said = quantisers.mxfp4(weight.view(1, 8, 64).mT)[0], {"quant_method": "mxfp4"}
    formats["mxfp4"] = {piece: one.contiguous() for piece, one in stacked.items()}, said
    for pieces, said in formats.values():
        content = save({name: one.contiguous() for name, one in pieces.items()})
        size = int.from_bytes(content[:8], "little")
        data, tree = content[8 + size :], {}
        for name, entry in json.loads(content[8 : 8 + size]).items():
            start, stop = entry["data_offsets"]
            recorded = {"dtype": entry["dtype"], "shape": entry["shape"]}
            tree[name] = {**recorded, "hex": data[start:stop].hex()}
        made.append({"config": said, "pieces": tree})
    return made


@st.composite
def changed_layout(draw: st.DrawFn, originals: tuple[Any, ...]) -> bytes:
    """One of the originals with pieces left out or of other shapes and dtypes, and other words."""
    tree = deepcopy(draw(st.sampled_from(originals)))
    pieces, config = tree["pieces"], tree["config"]
    words = ("quant_method", "bits", "group_size", "checkpoint_format", "version", "mode")
    for _ in range(draw(st.integers(0, 3))):
        piece = pieces[draw(st.sampled_from(list(pieces)))] if pieces else {}
        match draw(st.sampled_from(["config", "leave out", "dtype", "shape", "numbers"])):
            case "leave out" if pieces:
                del pieces[draw(st.sampled_from(list(pieces)))]
            case "dtype" if piece:
                piece["dtype"] = draw(st.sampled_from(list(DTYPES)))
            case "shape" if piece:
                shape, sizes = piece["shape"], st.sampled_from([0, 1, 2, 3, 7, 16, 63, 128])
                others = [shape[::-1], [1, *shape], shape[1:], *[[draw(sizes), *shape[1:]]]]
                others += [[*shape[:-1], draw(sizes)], [2 * size for size in shape]]
                piece["shape"] = draw(st.sampled_from(others))
            case "numbers" if piece:
                piece["hex"] = draw(st.sampled_from(["ff", "00", "7f", "80", "010000", "ffff7f"]))
            case _:
                key = draw(st.sampled_from([*words, "weight_block_size", "config_groups", MODULE]))
                config[key] = deepcopy(draw(ODD))
    return json.dumps(tree).encode()


def as_file(pieces: Mapping[str, Any]) -> bytes:
    """The safetensors file of pieces, whose bytes are repeated as often as their shapes need."""
    header, data = {}, b""
    for name, piece in pieces.items():
        size = DTYPES[piece["dtype"]] * int(np.prod(piece["shape"], dtype=np.int64))
        raw = bytes.fromhex(piece["hex"]) or bytes(1)
        raw = (raw * (size // len(raw) + 1))[:size]
        at = [len(data), len(data) + size]
        recorded = {"dtype": piece["dtype"], "shape": piece["shape"], "data_offsets": at}
        header[f"{MODULE}{name}" if name.startswith("_") else f"{MODULE}.{name}"] = recorded
        data += raw
    return with_length(json.dumps(header).encode(), data)


@dataclass(frozen=True)
class Target:
    """A kind of file: what it may hold, and what reads it from a folder of its own."""

    content: st.SearchStrategy[bytes]
    read: Callable[[Path, bytes], object]


def with_length(header: bytes, data: bytes = bytes(64)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


WEIGHTS = save(
    {
        "model.layers.0.mlp.up_proj.weight": torch.ones(2, 3),
        "model.norm.weight": torch.ones(3).bfloat16(),
    }
)
HEADER = json.loads(WEIGHTS[8 : 8 + int.from_bytes(WEIGHTS[:8], "little")])
SHARD = "model-00001-of-00001.safetensors"
INDEX = {"metadata": {"total_size": 30}, "weight_map": dict.fromkeys(HEADER, SHARD)}
ADAPTER = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": True,
    "alpha_pattern": {"q_proj": 2},
}  # fmt: skip
ADAPTER |= {"init_lora_weights": "gaussian"}
CONFIG = {
    "model_type": "qwen2_moe", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_experts": 4, "text_config": {"model_type": "llama"},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
REGISTRY = b"""\
toy-1b:
  base: org/toy-1b
  sft: {repo: org/toy-1b-sft, revision: main, subfolder: a/b}
  dpo: ./dpo
  pairs: [base..sft, {from: sft, to: dpo, relation: sibling}]
  tags: [dense, vlm]
  source: https://example.org
  note: nothing
toy-vl:
  base: {language: org/toy-1b, vision: {repo: org/clip, revision: v1}}
  instruct: org/toy-vl
"""
LISTS = (
    b"toy-1b\ntoy-1b:base..sft  # why\n'qwen2.5-*'\n",
    b"- toy-1b\n- target: toy-*\n- {base: ./a, tuned: org/b@main}\n",
    json.dumps(["toy-1b", {"base": "org/a", "tuned": "org/b"}]).encode(),
)
POLICY = b"""\
narrow:
  fail_on: language.mlp.up.concentration > 0.5
  message: why
  severity: warning
steady:
  moved: "*.attn.*.concentration"
  allow_missing: true
frozen:
  fail_on: language.embed.layers.0-7 unchanged
files:
  fail_on: files.config.rope_* changed
claim:
  fail_on: not gate.lineage
"""
RULES = (
    b"language.mlp.up.concentration > 0.5", b"*.attn.*.concentration >= 1e-3",
    b"vision.energy_share != .5", b"language.embed.layers.0-7 unchanged",
    b"files.config.rope_* changed", b"not verify.trained --moved layers.0-7 --frozen embed",
    b"gate.lineage", b"not gate.lineage", b"nonfinite", b"verify.same", b"spiked == 0",
)  # fmt: skip
CLAIMS = (
    b"- same ./base ./tuned\n- claim: trained\n  checkpoints: [./base, ./tuned]\n",
    b"tuned:\n  claim: trained --moved layers.0-7 --frozen embed\n",
    b"trained --moved layers.0-7 --frozen=embed",
    b"related",
)
WHOLE = {  # files of a folder; a list of them under "left out" is not written
    "config.json": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1,
        "vocab_size": 16, "intermediate_size": 16, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": [2, 3],
        "auto_map": {"AutoModel": "x.X"}, "image_token_id": 3, "decoder_start_token_id": 1,
    },
    "modules.json": [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}],
    "generation_config.json": {"eos_token_id": 2, "pad_token_id": None, "temperature": 0.6},
    "tokenizer_config.json": {
        "eos_token": {"content": "</s>"}, "bos_token": "<s>", "image_token": "<s>",
        "chat_template": "<|im_start|>{{ messages }}<|im_end|>", "tokenizer_class": "XFast",
        "added_tokens_decoder": {"2": {"content": "</s>"}}, "model_max_length": 10**30,
    },
    "tokenizer.json": {
        "model": {"type": "BPE", "vocab": {"<s>": 1, "</s>": 2}, "merges": ["a b", ["c", "d"]]},
        "added_tokens": [{"id": 2, "content": "</s>", "special": True}],
    },
    "model.safetensors.index.json": {
        "metadata": {"total_size": 30},
        "weight_map": {
            "model.layers.0.mlp.up_proj.weight": "model-00001-of-00001.safetensors",
            "model.norm.weight": "model-00001-of-00001.safetensors",
        },
    },
    "special_tokens_map.json": {"eos_token": "</s>"},
    "header": None,
}  # fmt: skip
CSV = (
    b"model,benchmark,score,group,metric,unit\n"
    b"org/a,gsm8k,0.5,maths,acc,fraction\n"
    b"org/b,gsm8k,61.5,maths,acc,percent\n"
)
HARNESS = {
    "results": {"gsm8k": {"alias": "gsm8k", "acc,none": 0.5, "acc_stderr,none": 0.01}},
    "configs": {"gsm8k": {"num_fewshot": 5, "metadata": {"version": 1.0}}},
    "versions": {"gsm8k": 1}, "n-shot": {"gsm8k": 5}, "higher_is_better": {"gsm8k": {"acc": True}},
    "n-samples": {"gsm8k": {"original": 10, "effective": 10}},
    "config": {"model": "hf", "model_args": "pretrained=org/a"}, "model_name": "org/a",
    "group_subtasks": {"maths": ["gsm8k"]},
}  # fmt: skip
ROW = {
    "position": 0, "family": "toy", "pair": "base..sft", "relation": "tuned",
    "folder": "toy/base..sft",
}  # fmt: skip
ROW |= {
    "base": "org/a", "tuned": "org/b", "state": "done", "seconds": 1.0, "bytes": 5,
}  # fmt: skip
BATCH = {
    "shadow": MARK, "schema": 1, "version": "0.2.0", "list": None, "pairs": [ROW],
}  # fmt: skip
BATCH |= {"settings": {"method": {"level": "full"}}}


def write_whole(folder: Path, content: bytes) -> None:
    """Write the files of a folder, and a shard with the header among them."""
    tree = json.loads(content)
    if not isinstance(tree, dict):
        return
    header = tree.get("header") or HEADER
    (folder / SHARD).write_bytes(with_length(json.dumps(header).encode(), bytes(30)))
    for name in WHOLE:
        if name in tree and name != "header":
            (folder / name).write_text(json.dumps(tree[name]))


def targets(top: Path) -> Mapping[str, Target]:
    """Every target by its name; top is a folder for files that are made once."""
    whole = reports.write(
        top / "report", [reports.delta(0.3, where) for where in reports.places(1, ("mlp.up",))]
    )
    tables = {
        name: pq.read_table(whole / f"{name}.parquet") for name in ("matrices", "tensors", "files")
    }
    recorded = json.loads(tables["matrices"].schema.metadata[b"shadow"])

    def weights(folder: Path, content: bytes) -> None:
        (folder / SHARD).write_bytes(content)
        read_header(held_shard(folder / SHARD, SHARD), SHARD)

    def packed(folder: Path, content: bytes) -> None:
        (folder / "a.gguf").write_bytes(content)
        found = open_folder(str(folder))
        for info in found.tensors.values():
            if not info.problem and (info.packing or info.dtype in FLOATS):
                found.tensor(info).whole()

    # without the loader, which is another process
    alone = mock.patch.object(
        loader, "expected", return_value=loader.Expected(problem="no_transformers")
    )

    def checked(folder: Path, content: bytes) -> None:
        (folder / "a.gguf").write_bytes(content)
        with alone:
            shadow.check(folder)

    def check_whole(folder: Path, content: bytes) -> None:
        write_whole(folder, content)
        with alone:
            shadow.check(folder)

    measured = read_measured(whole)

    def rule(folder: Path, content: bytes) -> None:
        text = content.decode(errors="surrogateescape")
        parse = parse_rule if set("<>= ") & {*text} else parse_moved
        parsed = parse(text)
        if "verify" not in text:  # which reads checkpoints
            assert judge_report((parsed,), measured).code in (0, 1, 4, 5)

    def claim(folder: Path, content: bytes) -> None:
        (folder / "claims.yaml").write_bytes(content)
        with contextlib.suppress(ShadowError):
            pair_claim(content.decode(errors="surrogateescape"))
        read_claims(folder / "claims.yaml")

    weights_of = {f"{MODULE}.weight": torch.ones(8, 64)}
    original = open_folder(str(planted.write(top / "original", weights_of, planted.LLAMA)))

    def layout(folder: Path, content: bytes) -> None:
        tree = json.loads(content)
        (folder / "model.safetensors").write_bytes(as_file(tree["pieces"]))
        key = "quantization_config" if "quant_method" in tree["config"] else "quantization"
        (folder / "config.json").write_text(json.dumps({**planted.LLAMA, key: tree["config"]}))
        found = open_folder(str(folder))
        pairs, skipped = pair_checkpoints(original, found, Filter())
        assert pairs or skipped
        assert all(skip.detail is None or skip.detail.isprintable() for skip in skipped)
        for pair in pairs:
            matrix = found.tensor(pair.tuned.info)
            matrix.whole()
            if isinstance(matrix, PackedTensor):
                matrix.cells((slice(None),))

    def beside(name: str, shard: str = SHARD) -> Callable[[Path, bytes], object]:
        def read(folder: Path, content: bytes) -> None:
            (folder / shard).write_bytes(WEIGHTS)
            (folder / name).write_bytes(content)
            open_folder(str(folder))

        return read

    def one(name: str, reader: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
        def read(folder: Path, content: bytes) -> None:
            (folder / name).write_bytes(content)
            reader(folder / name)

        return read

    def families(path: Path) -> None:
        # without the shipped ones: 10 ms
        with mock.patch.object(families_files, "registry_folder", return_value=top):
            load_families(path.parent)

    def metadata(folder: Path, content: bytes) -> None:
        for name, table in tables.items():
            pq.write_table(
                table.replace_schema_metadata({b"shadow": content}), folder / f"{name}.parquet"
            )
        (folder / "summary.json").write_text("{}")
        read_measured(folder)

    def file_of_report(name: str) -> Callable[[Path, bytes], object]:
        def read(folder: Path, content: bytes) -> None:
            shutil.copytree(whole, folder, dirs_exist_ok=True)
            (folder / name).write_bytes(content)
            read_measured(folder)

        return read

    def like(*trees: Any) -> st.SearchStrategy[bytes]:
        return changed_json(trees) | changed_bytes(
            tuple(json.dumps(tree).encode() for tree in trees)
        )

    def read_named(path: Path) -> object:
        return read_list(str(path))

    summary = {"schema": 1, "family": "toy", "figures": {}}
    matrices = (whole / "matrices.parquet").read_bytes()
    return {
        "header": Target(like(HEADER).map(with_length) | changed_bytes((WEIGHTS,)), weights),
        "gguf": Target(changed_bytes((small_gguf(top),)), packed),
        "gguf-whole": Target(changed_bytes((small_gguf(top),)), checked),
        "whole": Target(changed_json((WHOLE | {"header": HEADER},)), check_whole),
        "rule": Target(changed_bytes(RULES), rule),
        "claims": Target(changed_bytes(CLAIMS), claim),
        "models": Target(fuzz_models.described(), lambda folder, content: fuzz_models.ask(content)),
        "layout": Target(changed_layout(tuple(layouts())), layout),
        "index": Target(like(INDEX), beside("model.safetensors.index.json")),
        "config": Target(like(CONFIG), beside("config.json", "model.safetensors")),
        "adapter": Target(
            like(ADAPTER), beside("adapter_config.json", "adapter_model.safetensors")
        ),
        "registry": Target(changed_bytes((REGISTRY,)), one("a.yaml", families)),
        "list": Target(changed_bytes(LISTS), one("l", read_named)),
        "yaml-list": Target(changed_bytes(LISTS[1:]), one("l.yaml", read_named)),
        "policy": Target(changed_bytes((POLICY,)), one("policy.yaml", read_policy)),
        "csv": Target(changed_bytes((CSV,)), one("a.csv", read_scores)),
        "harness": Target(like(HARNESS), one("a.json", read_scores)),
        "batch": Target(like(BATCH), one("index.json", lambda path: read_index(path.parent))),
        "metadata": Target(like(recorded), metadata),
        "summary": Target(like(summary), file_of_report("summary.json")),
        "parquet": Target(changed_bytes((matrices,)), file_of_report("matrices.parquet")),
    }


def small_gguf(top: Path) -> bytes:
    """A GGUF file with every kind of value, and tensors of several types."""
    tensors = {
        "model.embed_tokens.weight": np.ones((4, 64), np.float32),
        "model.layers.0.self_attn.q_proj.weight": np.ones((8, 64), np.float32),
        "model.layers.0.input_layernorm.weight": np.ones(64, np.float32),
    }
    kinds = {"model.embed_tokens.weight": "F16"}
    return planted.write_gguf(
        top / "small.gguf", tensors, "Q4_0", kinds=kinds, tokens=3
    ).read_bytes()


def attempt(target: Target, content: bytes) -> bool:
    """True if a file is taken. Raises AssertionError or the reader's error, a broken word."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            target.read(Path(folder), content)
            taken = True
        except ShadowError as error:
            recorded = f"{error.message} {error.hint or ''}"
            assert recorded.isprintable(), f"cannot be printed: {recorded!r}"
            assert len(recorded) <= LONGEST, f"{len(recorded)} characters: {recorded[:100]!r}..."
            taken = False
    seconds = time.process_time() - began
    assert seconds < SECONDS, f"took {seconds:.1f} s of CPU"
    return taken


def fuzz(target: Target, seconds: float, number: int, most: int = ROUND) -> tuple[int, int]:
    """Try files for so many seconds; how many were read, and how many of them taken.

    most: files that are made from one seed.
    """
    tried, taken, end = 0, 0, time.monotonic() + seconds
    # then the clock no longer counts: a counterexample is tried again while it is shrunk
    found = False

    while time.monotonic() < end:

        @seed(number)
        @settings(SETTINGS, max_examples=most)
        @given(target.content)
        def once(content: bytes) -> None:
            nonlocal tried, taken, found
            if time.monotonic() < end or found:
                tried += 1
                try:
                    taken += attempt(target, content)
                except BaseException:
                    found = True
                    raise

        once()
        number += 1
    return tried, taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all, if none is named")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=0, help="other seeds try other files")
    parser.add_argument("--processes", type=int, default=0, help="so many commands instead")
    options = parser.parse_args()
    if options.processes:
        with tempfile.TemporaryDirectory() as top:
            known = targets(Path(top))
            sys.exit(fuzz_processes.run(known, options.processes, options.seed) > 0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    failed = False
    with tempfile.TemporaryDirectory() as top:
        known = targets(Path(top))
        if unknown := set(options.targets) - set(known):
            parser.error(f"no target {', '.join(unknown)}; there are {', '.join(known)}")
        names = options.targets or list(known)
        for name in names:
            try:
                tried, taken = fuzz(known[name], options.seconds / len(names), options.seed)
                print(f"{name}: {tried:,} files, {taken:,} of them taken", flush=True)
            except Exception as error:  # a counterexample, with its note by hypothesis
                failed = True
                print(
                    f"{name}: {type(error).__name__}: {error}",
                    *getattr(error, "__notes__", ()),
                    sep="\n",
                    flush=True,
                )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
