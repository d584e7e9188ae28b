"""References -> Checkpoint: its tensors and where each lies. Reads no weights."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checkpoints.formats import with_matrices
from shadow.checkpoints.gguf_files import KIND as REORDERED
from shadow.checkpoints.gguf_files import SUFFIX as GGUF
from shadow.checkpoints.gguf_files import model_of, read_gguf
from shadow.checkpoints.pickles import DISTRIBUTED
from shadow.checkpoints.safetensors_files import (
    Header,
    Packing,
    TensorInfo,
    Tensors,
    has_too_many_values,
    held_shard,
    read_safetensors,
    usable_name,
)
from shadow.checkpoints.sources import (
    LocalFile,
    Source,
    WholeFile,
    digest_of,
    read_header,
)
from shadow.checkpoints.transfers import OnBytes, Say, Transfer, in_threads
from shadow.checkpoints.weight_files import ADAPTER_CONFIG, Adapter, Weights, choose_weights
from shadow.dtypes import FLOATS
from shadow.errors import FileError, ShadowError, naming
from shadow.files import read_start
from shadow.places.names import Config
from shadow.text import several

if TYPE_CHECKING:
    from threading import Event

    from shadow.checkpoints.held_files import HeldFile
    from shadow.checkpoints.hub import Snapshot
    from shadow.checkpoints.stored_tensors import DecodedTensor, StoredTensor

PARAMS = "params.json"  # of Mistral's and Meta's own files, in place of a config
HEADS = {"num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads"}
PAIRED = re.compile(
    r"(?P<head>(?:model\.)?layers\.\d+\.attention\.)w(?P<kind>[qk])\.(?P<what>weight|bias)"
)
MAX_JSON = 64_000_000  # bytes; the largest real index (Kimi-K2, 1.16 M tensors) has under half
CONFIG = "config.json"
OWNER = (
    "the file on the Hub is like this: tell its owner, or name another revision (org/name@revision)"
)
CONNECTIONS = 8  # headers read at a time


@dataclass(frozen=True)
class Checkpoint:
    """One side of a pair."""

    reference: str  # what was asked for
    commit: str | None  # 40 hexadecimal digits; None for a folder
    fingerprint: str  # a sha256 that changes when any file does
    config: Config  # its config.json; empty where there is none
    tensors: Tensors  # by name, in the order of the shards
    sources: Mapping[str, Source]  # by shard
    adapter: Adapter | None = None  # scales the tensors of a LoRA adapter
    parts: tuple[tuple[str, Checkpoint], ...] = ()  # by component, of a base that was put together
    # by module: a quantised format that is not decoded, and why
    refused: Mapping[str, str] = field(default_factory=dict)
    gguf: Header | None = None  # of GGUF files: tensors by their own names, and the metadata

    def tensor(self, info: TensorInfo) -> StoredTensor | DecodedTensor:
        """Open the tensor, whose parts are read on demand. Raises ShadowError if it is gone."""
        if info.packing is None:
            return self._stored(info)
        from shadow.checkpoints.decoders import packed_tensor

        return packed_tensor(info, self._stored)

    def differ(self, first: TensorInfo, second: TensorInfo) -> bool:
        """Return whether the bytes of two tensors are known to differ; on the Hub they
        are unknown.
        """
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return True
        sources = [self.sources.get(info.shard) for info in (first, second)]
        one, other = (source and source.held for source in sources)
        if not one or not other or first.packing or second.packing:
            return False
        return not one.holds_same(first.start, other, second.start, first.end - first.start)

    def _stored(self, info: TensorInfo) -> StoredTensor:
        return self.sources[info.shard].tensor(info)


@dataclass(frozen=True)
class Located:
    """A checkpoint of the Hub whose files are known, before any header is read."""

    snapshot: Snapshot
    weights: Weights
    config: Config  # its config.json; empty where there is none
    reference: str  # `org/name`, with the subfolder if it lies in one
    commit: str  # 40 hexadecimal digits
    access: str | None  # `open`, `gated` or `private`; None when nothing was asked
    fingerprint: str  # a sha256 over names, sizes and checksums of the files


@dataclass(frozen=True)
class Assembled:
    """A base put together from another checkpoint for each component."""

    parts: tuple[tuple[str, Checkpoint | Located], ...]  # by component

    @property
    def reference(self) -> str:
        """The name of each part: `language=org/name vision=./tower`."""
        return self._said([part.reference for _, part in self.parts])

    @property
    def commit(self) -> str | None:
        """The commit of each part; None if all are folders."""
        commits = [part.commit for _, part in self.parts]
        return self._said([one or "a folder" for one in commits]) if any(commits) else None

    @property
    def fingerprint(self) -> str:
        """A sha256 that changes when that of any part does."""
        said = self._said([part.fingerprint for _, part in self.parts])
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def access(self) -> str | None:
        """Return who may read all parts: `private` before `gated` before `open`; None for
        folders.
        """
        of_parts = {part.access for _, part in self.parts if isinstance(part, Located)}
        return next((access for access in ("private", "gated", "open") if access in of_parts), None)

    def _said(self, texts: Iterable[str]) -> str:
        return " ".join(f"{name}={text}" for (name, _), text in zip(self.parts, texts, strict=True))


Found = Checkpoint | Located | Assembled
Shard = tuple[Header, Source]  # a file of weights whose header has been read
Shards = dict[str, Shard]


def combine(assembled: Assembled, parts: Sequence[tuple[str, Checkpoint]]) -> Checkpoint:
    """Put the opened parts of a base together.

    A shard is called `component/shard`, and a tensor whose name occurs in two parts
    `component/tensor`. The config is that of the language component, or of the first part.
    """
    renamed = {
        component: replace(
            part,
            tensors={name: _moved(info, component) for name, info in part.tensors.items()},
            sources={f"{component}/{shard}": source for shard, source in part.sources.items()},
        )
        for component, part in parts
    }
    every = renamed.values()
    names = Counter(name for part in every for name in part.tensors)
    tensors = {
        name if names[name] == 1 else f"{component}/{name}": info
        for component, part in renamed.items()
        for name, info in part.tensors.items()
    }
    return Checkpoint(
        assembled.reference,
        assembled.commit,
        assembled.fingerprint,
        renamed.get("language", next(iter(every))).config,
        tensors,
        sources={shard: source for part in every for shard, source in part.sources.items()},
        parts=tuple(renamed.items()),
        refused={module: why for part in every for module, why in part.refused.items()},
    )


def _moved(info: TensorInfo, folder: str) -> TensorInfo:
    packing = info.packing
    if packing is not None:
        raw, *beside = (_moved(one, folder) for one in (packing.raw, *packing.beside))
        packing = replace(packing, raw=raw, beside=tuple(beside))
    return replace(info, shard=f"{folder}/{info.shard}", packing=packing)


def in_order(info: TensorInfo, config: Config) -> TensorInfo:
    """Undo the order of rows in q and k of Mistral's and Meta's own files, if config has their
    heads: rotary embeddings turn neighbouring rows there, but halves of a head in transformers.

    A reordered tensor has the name of a projection in transformers.
    """
    found = PAIRED.fullmatch(info.name)
    heads = config.get("num_attention_heads")
    if found and found["kind"] == "k":
        heads = config.get("num_key_value_heads") or heads
    is_plain = info.packing is None and info.dtype in FLOATS and len(info.shape) in (1, 2)
    if not found or not is_plain or type(heads) is not int or heads < 1:
        return info
    if info.shape[0] % (2 * heads):
        return info
    raw = replace(info, shape=(info.shape[0], math.prod(info.shape[1:])))
    name = f"{found['head']}{found['kind']}_proj.{found['what']}"
    return replace(info, name=name, packing=Packing(REORDERED, raw, facts=(heads, 0)))


def open_folder(
    reference: str,
    *,
    allow_pickle: bool = False,
    scratch: Path | None = None,
    file: str | None = None,
) -> Checkpoint:
    """Open the checkpoint in a local folder: safetensors first, torch `.bin` only with
    allow_pickle; or in a file.

    scratch: a folder for raw copies of `.bin` files of the old format. file: a pattern that chooses
    among several GGUF files. Raises ShadowError if the folder is not a trustworthy checkpoint.
    """
    root, alone = Path(reference), ""
    try:
        with naming(reference):
            if root.is_file() and root.suffix == GGUF:
                root, file = root.parent, glob.escape(root.name)
            elif root.is_file():
                root, alone = root.parent, root.name
            if not root.is_dir():
                hint = "name the folder that holds the .safetensors files"
                raise ShadowError(f"no such folder: {reference}", hint)
            names = {path.name for path in root.iterdir()}

            def read(name: str) -> Config:
                return _read_json(root / name, name)

            weights = choose_weights(
                reference, names, read, allow_pickle=allow_pickle, file=file, alone=alone
            )
            return _opened_folder(reference, root, weights, scratch)
    except OSError as error:
        raise ShadowError(
            f"{reference}: {error.strerror or error}", "check that the folder can be read"
        ) from error


def _opened_folder(
    reference: str, root: Path, weights: Weights, scratch: Path | None
) -> Checkpoint:
    # a GGUF file has its config inside: one that lies beside it may be of another model
    has_config = (root / CONFIG).exists() and not weights.are_gguf
    config = _read_json(root / CONFIG, CONFIG) if has_config else {}
    shards: Shards = {}
    fingerprint = hashlib.sha256()
    for shard in weights.shards:
        if not usable_name(shard):
            message = f"{reference}: the name of a file is not UTF-8: {shard!r}"
            raise ShadowError(message, "rename the file")
        if not (root / shard).exists():
            message = f"{reference}: shard {shard} is missing"
            raise ShadowError(message, "check that the download is complete")
        held = held_shard(root / shard, shard)
        header, data = _read_shard(held, shard, scratch)
        shards[shard] = header, LocalFile(data.path, data)
        said = json.dumps([shard, held.size, held.modified, header.text])
        # no more of Python than this for a tensor, of which there may be a million
        starts = [info.start for info in header.tensors.values()]
        sizes = [info.end - info.start for info in header.tensors.values()]
        fingerprint.update(said.encode() + data.sample(starts, sizes))
        held.require_unchanged()
    is_paired = any(
        PAIRED.fullmatch(one) for header, _ in shards.values() for one in header.tensors
    )
    if is_paired and not has_config and (root / PARAMS).is_file():
        params = _read_json(root / PARAMS, PARAMS)
        config = {ours: params[theirs] for ours, theirs in HEADS.items() if theirs in params}
    fingerprint.update(json.dumps(config, sort_keys=True).encode())
    if weights.adapter:
        fingerprint.update(repr(weights.adapter).encode())
    return _opened(reference, None, fingerprint.hexdigest(), config, weights, shards)


def _opened(
    reference: str,
    commit: str | None,
    fingerprint: str,
    config: Config,
    weights: Weights,
    shards: Shards,
    say: Say = lambda line: None,
) -> Checkpoint:
    """Make a checkpoint of its shards, with an entry a packed matrix and transformers' names."""
    sources = {name: source for name, (_, source) in shards.items()}
    stored: Tensors = {}
    for header, _ in shards.values():
        for name, info in header.tensors.items():
            if name in stored:
                message = f"tensor {name!r} is in {stored[name].shard} and in {info.shard}"
                raise FileError(message, "keep one set of weight files in the folder")
            stored[name] = info
    for name, shard in weights.weight_map.items():
        problem = f"the index puts it in {shard}, which has no such tensor"
        stored.setdefault(name, TensorInfo(name, "unknown", (), shard, 0, 0, problem=problem))
    if not stored:
        raise FileError("its weight files hold no tensors", "check that this is the right folder")
    tensors, refused = with_matrices(
        stored, config, lambda info: small_tensor(sources[info.shard], info, say)
    )
    moved = (in_order(info, config) for info in tensors.values())
    own = {one.name: one for one in moved}
    if len(own) == len(tensors):  # otherwise two would have one name
        tensors = own
    gguf = None
    if weights.are_gguf:
        headers = [header for header, _ in shards.values()]
        tensors, config = model_of(headers, weights.shards[0])
        gguf = replace(headers[0], tensors=stored)
    return Checkpoint(
        reference,
        commit,
        fingerprint,
        config,
        tensors,
        sources,
        adapter=weights.adapter,
        refused=refused,
        gguf=gguf,
    )


def locate(snapshot: Snapshot, *, allow_pickle: bool, say: Say, file: str | None = None) -> Located:
    """Find the weight files of a commit of the Hub, reading its config and index but no shard.

    Raises ShadowError if none can be read, or one that the index names is missing.
    """
    from shadow.checkpoints.hub import fetch_whole

    def read(name: str) -> Config:
        return _read_json(fetch_whole(snapshot.files[name], Transfer(say))[0], name)

    usable = [name for name in filter(usable_name, snapshot.files) if name != DISTRIBUTED]
    names = {name for name in usable if "/" not in name or name.endswith(GGUF)}
    ends = (".safetensors", ".bin", ".index.json", GGUF)
    if snapshot.offline and not any(name.endswith(ends) for name in names):
        message = f"{snapshot.name}: none of its weight files is in the cache"
        raise ShadowError(message, "run once without --offline")
    with naming(snapshot.name, OWNER):
        weights = choose_weights(snapshot.name, names, read, allow_pickle=allow_pickle, file=file)
        config = read(CONFIG) if CONFIG in names and not weights.are_gguf else {}
    missing = [shard for shard in weights.shards if shard not in snapshot.files]
    if missing:
        where = "cache" if snapshot.offline else "repository"
        count = f"{len(missing)} of {len(weights.shards)} shards are not in the {where}"
        hint = "run without --offline" if snapshot.offline else "tell its owner"
        raise ShadowError(f"{snapshot.name}: {count}: {several(missing, 3)}", hint)
    digest = hashlib.sha256()
    for name in (*weights.shards, CONFIG, ADAPTER_CONFIG):
        file_there = snapshot.files.get(name)
        facts = [name, file_there.size, file_there.checksum] if file_there else [name]
        digest.update(json.dumps(facts).encode())
    about = snapshot.name, snapshot.commit, snapshot.access, digest.hexdigest()
    return Located(snapshot, weights, config, *about)


def open_located(
    located: Located, scratch: Path | None, say: Say, report: OnBytes = lambda count: None
) -> Checkpoint:
    """Read the headers of a checkpoint of the Hub, from the cache or by requests.

    `.bin` files have no header: they are fetched whole, and unpacked into scratch if necessary.
    report gets the number of bytes as they come. Raises ShadowError for a file that is not
    available or not trusted.
    """
    snapshot, weights = located.snapshot, located.weights

    def open_one(shard: str, stop: Event) -> Shard:
        by = Transfer(say, report, stop)
        if weights.pickled:
            return _open_pickled(snapshot, shard, by, scratch)
        return _open_remote(snapshot, shard, by)

    opened = in_threads(open_one, weights.shards, 1 if weights.pickled else CONNECTIONS)
    shards = dict(zip(weights.shards, opened, strict=True))
    with naming(snapshot.name, OWNER):
        name, commit = snapshot.name, snapshot.commit
        return _opened(name, commit, located.fingerprint, located.config, weights, shards, say)


def _open_remote(snapshot: Snapshot, shard: str, by: Transfer) -> Shard:
    """Read a header from the cache, or by requesting the first bytes of the file."""
    from shadow.checkpoints.hub import cached, read_range

    file = snapshot.files[shard]
    if path := cached(file):
        try:
            with naming(snapshot.name, "run once without --offline, to download it again"):
                header = read_header(held_shard(path, shard), shard)
            return header, WholeFile(file, digest_of(header))
        except ShadowError:  # damaged: it is fetched again when its turn comes
            if snapshot.offline:
                raise

    with naming(snapshot.name, OWNER):
        read = read_gguf if shard.endswith(GGUF) else read_safetensors
        header = read(lambda count: read_range(file, 0, count, by), file.size, shard)
    return header, WholeFile(file, digest_of(header))


def _open_pickled(snapshot: Snapshot, shard: str, by: Transfer, scratch: Path | None) -> Shard:
    """Fetch a `.bin` file and read its layout."""
    source = WholeFile(snapshot.files[shard])
    source.fetched = source.bytes_to_move() > 0
    source.fetch(by)
    assert source.path is not None, "fetched"
    with naming(snapshot.name):
        header, data = _read_shard(held_shard(source.path, shard), shard, scratch)
    return header, replace(source, unpacked=data.path)


def small_tensor(source: Source, info: TensorInfo, say: Say = lambda line: None) -> bytes:
    """Return the bytes of a small tensor of a shard that may not be on this machine."""
    if isinstance(source, WholeFile) and source.path is None:
        from shadow.checkpoints.hub import cached, read_range

        path = cached(source.file)
        if path is None:
            return read_range(source.file, info.start, info.end, Transfer(say))
        source = LocalFile(path)
    held, there = source.located(info)
    return held.bytes_of(there.start, there.end - there.start)


def _read_shard(file: HeldFile, shard: str, scratch: Path | None) -> tuple[Header, HeldFile]:
    """Read the header of a local file, and find the file that its offsets refer to."""
    if shard.endswith((".safetensors", GGUF)):
        return read_header(file, shard), file
    from shadow.checkpoints.pickles import layout

    if scratch is None:
        raise ShadowError(f"{shard}: no place to unpack it", "give an output folder")
    tensors, data = layout(file.path, shard, scratch)
    # a tied head is the same bytes under a second name
    first_names: dict[tuple[object, ...], str] = {}
    for name, info in tensors.items():
        lies = info.dtype, info.start, info.end, info.shape, info.strides
        if lies not in first_names:
            first_names[lies] = name
        elif info.end > info.start:
            tensors[name] = replace(info, alias_of=first_names[lies])
    said = [[info.name, info.dtype, info.shape, info.start] for info in tensors.values()]
    held = file if data == file.path else held_shard(data, shard)
    return Header(tensors, json.dumps(said)), held


def _read_json(path: Path, name: str) -> Config:
    hint = "fetch the file again"
    try:
        raw = read_start(path, MAX_JSON + 1)
        if raw is None:
            raise FileError(f"{name}: not a regular file", hint)
        if len(raw) > MAX_JSON or has_too_many_values(raw):
            raise FileError(f"{name}: larger than that of any released model", hint)
        if raw.startswith(b"version https://git-lfs"):
            message = f"{name}: a Git-LFS pointer, not the file itself"
            raise FileError(message, "run `git lfs pull` in the folder")
        content = json.loads(raw)
    except OSError as error:
        raise FileError(f"{name}: {error.strerror or error}", hint) from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: not JSON ({type(error).__name__})", hint) from error
    if not isinstance(content, dict):
        raise FileError(f"{name}: not a JSON object", hint)
    return content
