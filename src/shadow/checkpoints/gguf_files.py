"""GGUF files: the header, checked as hostile input, and what it holds in transformers' terms.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian: `GGUF`,
version, counts of tensors and of metadata; the metadata by key; name, dimensions (the fastest
first), type and offset of each tensor; then the data, aligned. The reader of the `gguf` package
maps the file and trusts its counts, so the header is read here.

llama.cpp's converter renames tensors, stores rows of q and k in pairs for some architectures, and
adds 1 to some norms. The package's tables undo the names; `gguf` of names.yaml, which follows the
converter's classes, names other changes. `decoders` reads the numbers.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from shadow.checkpoints.safetensors_files import (
    MAX_ELEMENTS,
    MAX_ENTRIES,
    MAX_HEADER,
    Header,
    Packing,
    TensorInfo,
    Tensors,
    usable_name,
)
from shadow.dtypes import FLOATS
from shadow.errors import FileError, ShadowError
from shadow.extras import require
from shadow.places.names import name_rules
from shadow.text import several, short

SUFFIX = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
BESIDE = "mmproj"  # how files begin that hold the vision tower beside the model
KIND = "gguf"  # of packings
VERSIONS = (2, 3)
FIRST = 1 << 20  # bytes that are read at first; a vocabulary has some millions
HINT = "fetch the file again"
MAX_KEYS = 65_536
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
STRING = 8
LIST = 9
NUMBERS = {  # types of values, as struct calls them
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
# what llama.cpp or older versions of transformers compute from the config and store, and what
# transformers computes when it loads
COMPUTED = re.compile(
    r"(rope_freqs|rope_factors_(long|short))(\.weight)?"
    r"|(.+\.)?(inv_freq|rotary\w*\.(cos|sin)_cached|position_ids|masked_bias)"
)
STATE_SPACE = "blk.{bid}.ssm_"
# names that the tables have for other models, or for old versions
ODD = re.compile(
    r"model\.(layers\.layers|transformer|decoder|vision\w*)\.|.*_no_perm$|.*_expert_|.*\.(q|k|query|key)_layernorm$"
)

Value = str | int | float | bool | None
"""A value of the metadata: the length for a list of texts, None for a list of numbers."""


class _CutError(Exception):
    """The header continues beyond the bytes that were read."""


def read_gguf(read: Callable[[int], bytes], file_size: int, shard: str) -> Header:
    """Read the header of a GGUF file of file_size bytes, like `read_safetensors`: tensors by the
    names of GGUF, shapes with the fastest dimension last, dtypes as in ggml.

    Raises FileError if the header cannot be trusted, ShadowError without the `gguf` package.
    """
    require("quantised")
    for count in (FIRST, 16 * FIRST, MAX_HEADER):
        header = _Header(read(count), file_size, shard)
        with suppress(_CutError):
            return header.read()
    raise header.fault(f"its header has more than {MAX_HEADER:,} bytes")


def chosen_files(where: str, names: Iterable[str], pattern: str | None) -> tuple[str, ...]:
    """The GGUF file of a folder or repository, or all parts of a split one, in order.

    pattern: as for `fnmatch`, matched with the name or the last part of the path; None if there
    should be only one. Raises ShadowError if none matches, several do, or a part is missing.
    """
    stored = sorted(names)
    models: dict[str, list[str]] = {}
    for name in stored:
        last = PurePosixPath(name).name
        if pattern is None:
            is_chosen = not last.startswith(BESIDE)
        else:
            is_chosen = fnmatchcase(name, pattern) or fnmatchcase(last, pattern)
        if is_chosen:
            stem = PART.sub(r"\g<stem>", name)
            models.setdefault(stem, []).append(name)
    if not models:
        called = "as a model" if pattern is None else short(pattern)
        message = f"{where}: no GGUF file is called {called}"
        raise ShadowError(message, f"it has: {several(stored, 6)}")
    if len(models) > 1:
        listed = several([parts[0] for parts in models.values()], 6)
        hint = "choose one with --file, such as --file '*Q8_0*'"
        raise ShadowError(f"{where}: {len(models)} GGUF files: {listed}", hint)
    ((stem, parts),) = models.items()
    match = PART.fullmatch(parts[0])
    if match:
        count = match["count"]
        numbers = range(1, int(count) + 1)
        parts = [f"{stem}-{number:05}-of-{count}.gguf" for number in numbers]
        missing = sorted(set(parts) - set(stored))
        if missing:
            lacks = f"{len(missing)} of {len(parts):,} parts are missing: {several(missing, 2)}"
            raise ShadowError(f"{where}: {lacks}", "check that the download is complete")
    return tuple(parts)


class _Header:
    """A header that is being read."""

    def __init__(self, raw: bytes, file_size: int, shard: str) -> None:
        self.raw = raw
        self.size = file_size
        self.shard = shard
        self.at = 0

    def fault(self, reason: str) -> FileError:
        return FileError(f"{self.shard}: not a valid GGUF file: {reason}", HINT)

    def take(self, count: int) -> bytes:
        """Read the next count bytes."""
        start = self.at
        self.at += count
        if self.at > self.size:
            raise self.fault("it ends inside its header, or a length in it is wrong")
        if self.at > len(self.raw):
            raise _CutError
        return self.raw[start : self.at]

    def numbers(self, form: str) -> tuple[Any, ...]:
        """Read numbers of these types, in struct's notation."""
        packed = struct.Struct(f"<{form}")
        return packed.unpack(self.take(packed.size))

    def text(self) -> str:
        (length,) = self.numbers("Q")
        return self.take(length).decode(errors="backslashreplace")

    def read(self) -> Header:
        if self.raw[:4] != b"GGUF":
            is_pointer = self.raw.startswith(b"version ")
            other = "a Git-LFS pointer (run `git lfs pull`)" if is_pointer else "another file"
            raise self.fault(f"it is {other if self.raw else 'empty'}")
        _, version = self.numbers("4sI")
        if version not in VERSIONS:
            message = f"{self.shard}: GGUF version {version:,}; shadow reads 2 and 3, little-endian"
            raise FileError(message, "convert the model again with a current llama.cpp")
        tensors, keys = self.numbers("QQ")
        if tensors > MAX_ENTRIES or keys > MAX_KEYS:
            raise self.fault(f"it claims {tensors:,} tensors and {keys:,} keys")
        metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = self.text()
            if key in metadata:
                raise self.fault(f"the key {key[:80]!r} occurs twice")
            (kind,) = self.numbers("I")
            metadata[key] = self.value(kind, key)
        entries = [self.tensor() for _ in range(tensors)]
        align = metadata.get("general.alignment", 32)
        if type(align) is not int or not 0 < align <= MAX_ALIGNMENT or align & (align - 1):
            raise self.fault(f"its alignment is {str(align)[:20]}")
        data = -(-self.at // align) * align
        position = 0
        placed = []
        for info in entries:
            start = data + info.start
            end = data + info.end
            placed.append(replace(info, start=start, end=end))
        for info in sorted(placed, key=lambda info: (info.start, info.end)):
            if info.end > self.size:
                raise self.fault(f"it is cut short, or tensor {info.name!r} has a wrong offset")
            if info.start < position:
                raise self.fault(f"tensor {info.name!r} overlaps another")
            position = info.end
        by_name = {info.name: info for info in placed}
        if len(by_name) < tensors:
            raise self.fault("a tensor occurs twice")
        digest = hashlib.sha256(self.raw[: self.at])
        return Header(by_name, digest.hexdigest(), metadata)

    def value(self, kind: int, key: str) -> Value:
        if kind in NUMBERS:
            number: Value
            (number,) = self.numbers(NUMBERS[kind])
            return number
        if kind == STRING:
            return self.text()
        if kind != LIST:
            raise self.fault(f"{key[:80]!r} has a value of unknown type {kind}")
        kind, count = self.numbers("IQ")
        if kind in NUMBERS:
            self.take(count * struct.calcsize(f"<{NUMBERS[kind]}"))
            return None
        if kind != STRING:
            raise self.fault(f"{key[:80]!r} is a list of values of type {kind}")
        end = self.at
        length = struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):  # of which there may be a million
                (letters,) = length(self.raw, end)
                end += 8 + letters
        except (struct.error, OverflowError):
            end = max(end, len(self.raw)) + 8  # which is not there
        self.take(end - self.at)
        return int(count)

    def tensor(self) -> TensorInfo:
        """Read an entry, which begins at its offset in the data; its fastest dimension is last."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.text()
        if not usable_name(name):
            raise self.fault(f"tensor {name[:80]!r} has an unusable name")
        (dimensions,) = self.numbers("I")
        if dimensions > MAX_DIMENSIONS:
            raise self.fault(f"tensor {name!r} has {dimensions:,} dimensions")
        sizes = self.numbers(f"{dimensions}Q")
        shape = sizes[::-1]
        if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
            raise self.fault(f"tensor {name!r} has no valid shape")
        kind, start = self.numbers("IQ")
        try:
            known = GGMLQuantizationType(kind)
        except ValueError:  # newer than the package: its size is unknown
            return TensorInfo(name, f"GGML_{kind}", shape, self.shard, start, start)
        block, size = GGML_QUANT_SIZES[known]
        fast = shape[-1] if shape else 1
        if fast % block:
            raise self.fault(f"tensor {name!r} has rows of {fast:,}, no multiple of {block}")
        end = start + math.prod(shape) // block * size
        return TensorInfo(name, known.name, shape, self.shard, start, end)


def model_of(headers: Sequence[Header], shard: str) -> tuple[Tensors, dict[str, object]]:
    """Tensors by their names in transformers, and the equivalent of config.json, from the
    headers of one file or of all its parts in order.

    shard: the first file's name. Raises FileError for an architecture that the `gguf` package does
    not know.
    """
    metadata = headers[0].metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise FileError(f"{shard}: it does not name its architecture", "convert the model again")
    rules = name_rules().gguf
    names = _names(architecture, shard)
    heads: dict[str, Value] = {}
    if architecture in rules["paired"]:
        of_q = metadata.get(f"{architecture}.attention.head_count")
        of_k = metadata.get(f"{architecture}.attention.head_count_kv", of_q)
        heads = {"blk.{bid}.attn_q": of_q, "blk.{bid}.attn_k": of_k}
    tensors: Tensors = {}
    has_head = False
    for header in headers:
        has_head = has_head or "output.weight" in header.tensors
        for info in header.tensors.values():
            translated = _translated(info, architecture, names, heads)
            if translated.name in tensors:
                raise FileError(f"{shard}: {translated.name!r} occurs twice", HINT)
            tensors[translated.name] = translated
    config: dict[str, object] = {}
    for key, word in rules["keys"].items():
        value = metadata.get(f"{architecture}.{key}")
        if word == "vocab_size":
            value = value or metadata.get("tokenizer.ggml.tokens")
        if value is not None:
            config[word] = value
    usual = architecture.replace("-", "_")
    config["model_type"] = rules["model_types"].get(architecture, usual)
    config["tie_word_embeddings"] = not has_head
    return tensors, config


def _names(architecture: str, shard: str) -> dict[str, str]:
    """Map `blk.{bid}.attn_q` to `model.layers.{bid}.self_attn.q_proj`, for an architecture."""
    from gguf import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES, TensorNameMap

    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    if architecture not in kinds:
        message = f"{shard}: the architecture {architecture[:60]!r} is unknown to the gguf package"
        raise FileError(message, "update it with: pip install -U gguf")
    own = TensorNameMap.arch_block_mappings_cfg.get(kinds[architecture], {})
    tables = (own, TensorNameMap.block_mappings_cfg, TensorNameMap.mappings_cfg)
    rules = name_rules().gguf
    styles = rules["styles"]
    in_order = (*styles.get(architecture, ()), *styles["usual"])
    names: dict[str, str] = {}
    for tensor in MODEL_TENSORS[kinds[architecture]]:
        stored = TENSOR_NAMES[tensor]
        known = next((table[tensor] for table in tables if tensor in table), ())
        if not known or COMPUTED.fullmatch(stored):
            continue
        # of all that converters know, the one in transformers today
        plain = [name for name in known if not ODD.match(name)] or known
        styled = [name for style in in_order for name in plain if name.startswith(style)]
        names[stored] = (styled or plain)[0]
    names.update(rules["own"].get(architecture, {}))
    return names


def _translated(
    info: TensorInfo, architecture: str, names: Mapping[str, str], heads: Mapping[str, Value]
) -> TensorInfo:
    """An entry of a GGUF file under its name in transformers, with what must be undone.
    heads: of the projections whose rows are stored in pairs.
    """
    stem, dot, kind = info.name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem = info.name
        dot = ""
        kind = ""
    parts = stem.split(".")
    number = next((part for part in parts if part.isdecimal()), "")
    pattern = ".".join("{bid}" if part == number else part for part in parts)
    rules = name_rules().gguf
    translated = info
    known = names.get(pattern)
    if known:
        # the correction of a router is a parameter of its own in transformers
        if known.endswith("e_score_correction"):
            dot = "_"
        own = known.replace("{bid}", number)
        translated = replace(info, name=f"{own}{dot}{kind}")
    is_moved = parts[-1] in rules["rearranged"].get(architecture, ())
    if is_moved or pattern.startswith(STATE_SPACE):
        problem = "llama.cpp stores it in another order than transformers"
        return replace(translated, problem=problem)
    paired = heads.get(pattern, 0)
    shape = info.shape
    has_heads = type(paired) is int and paired > 0 and len(shape) > 0
    if pattern in heads and (not has_heads or shape[0] % (2 * int(paired or 1))):
        problem = "the file does not say how many heads its rows belong to"
        return replace(translated, problem=problem)
    assert isinstance(paired, int)
    is_norm = info.name.endswith("_norm.weight")
    added = int(is_norm and architecture in rules["added"])
    if info.dtype in FLOATS and (paired or added):
        rows = math.prod(shape[:1])
        raw = replace(info, shape=(rows, math.prod(shape[1:])))
    elif info.dtype not in FLOATS and _is_decoded(info.dtype):  # bytes of blocks
        rows = math.prod(shape[:-1])
        of_row = (info.end - info.start) // max(1, rows)
        raw = replace(info, dtype="U8", shape=(rows, of_row))
    else:
        return translated
    packing = Packing(KIND, raw, facts=(paired, added))
    return replace(translated, packing=packing)


@cache
def _is_decoded(dtype: str) -> bool:
    """True if the numbers of a type can be decoded."""
    from gguf import quants

    return dtype in FLOATS or "dequantize_blocks" in vars(getattr(quants, dtype, object))
