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
from shadow.checkpoints.gguf_files import model_of
from shadow.checkpoints.listing import (
    AGAIN,
    Listing,
    listing_of_file,
    listing_of_folder,
    top_of_folder,
)
from shadow.checkpoints.pickles import DISTRIBUTED
from shadow.checkpoints.safetensors_files import (
    Header,
    Packing,
    TensorInfo,
    Tensors,
    has_too_many_values,
    usable_name,
)
from shadow.checkpoints.sources import Shard, Shards, Source
from shadow.checkpoints.transfers import OnBytes, Say, Transfer, in_threads, unheard
from shadow.checkpoints.weight_files import ADAPTER_CONFIG, Adapter, Weights, choose_weights
from shadow.dtypes import FLOATS
from shadow.errors import FileError, PointerError, ShadowError, naming
from shadow.places.names import Config
from shadow.text import several

if TYPE_CHECKING:
    from threading import Event

    from shadow.checkpoints.held_files import HeldFile
    from shadow.checkpoints.stored_tensors import DecodedTensor, StoredTensor

PARAMS = "params.json"  # of Mistral's and Meta's own files, in place of a config
HEADS = {"num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads"}
PAIRED = re.compile(
    r"(?P<head>(?:model\.)?layers\.\d+\.attention\.)w(?P<kind>[qk])\.(?P<what>weight|bias)"
)
CONFIG = "config.json"
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
        """True if the bytes of two tensors are known to differ; on the Hub they
        are unknown.
        """
        if first.dtype != second.dtype or first.shape != second.shape:
            return True
        if first.packing or second.packing:
            return False
        file = self._held(first)
        other = self._held(second)
        if file is None or other is None:
            return False
        size = first.end - first.start
        are_same = file.holds_same(first.start, other, second.start, size)
        return not are_same

    def _held(self, info: TensorInfo) -> HeldFile | None:
        """The open file that holds a tensor; None of one that is not in a folder."""
        source = self.sources.get(info.shard)
        return source.held if source else None

    def _stored(self, info: TensorInfo) -> StoredTensor:
        return self.sources[info.shard].tensor(info)


@dataclass(frozen=True)
class Located:
    """A checkpoint whose files are known, before any header is read."""

    listing: Listing
    weights: Weights
    config: Config  # its config.json; empty where there is none
    fingerprint: str  # a sha256 over names, sizes and checksums of the files

    @property
    def reference(self) -> str:
        """`org/name`, with the subfolder if it lies in one."""
        return self.listing.name

    @property
    def commit(self) -> str | None:
        """40 hexadecimal digits; None for a folder."""
        return self.listing.commit

    @property
    def access(self) -> str | None:
        """`open`, `gated` or `private`; None when nothing was asked."""
        return self.listing.access


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
        if not any(commits):
            return None
        return self._said([commit or "a folder" for commit in commits])

    @property
    def fingerprint(self) -> str:
        """A sha256 that changes when that of any part does."""
        fingerprints = self._said([part.fingerprint for _, part in self.parts])
        return hashlib.sha256(fingerprints.encode()).hexdigest()

    @property
    def access(self) -> str | None:
        """The access to all parts: `private` before `gated` before `open`; None for
        folders.
        """
        located = [part for _, part in self.parts if isinstance(part, Located)]
        of_parts = {part.access for part in located}
        for access in ("private", "gated", "open"):
            if access in of_parts:
                return access
        return None

    def _said(self, texts: Iterable[str]) -> str:
        names = [name for name, _ in self.parts]
        pairs = zip(names, texts, strict=True)
        return " ".join(f"{name}={text}" for name, text in pairs)


AnyCheckpoint = Checkpoint | Located | Assembled


def listings_of(side: AnyCheckpoint, skipped: Sequence[Path] = ()) -> list[tuple[str, Listing]]:
    """The files of each part of a side: by component for a base with one part per component,
    otherwise of the one part "". skipped: folders to pass over, such as that of the report.
    """
    if isinstance(side, Assembled):
        return [(name, _listing_of(part, skipped)) for name, part in side.parts]
    return [("", _listing_of(side, skipped))]


def _listing_of(part: Checkpoint | Located, skipped: Sequence[Path]) -> Listing:
    if isinstance(part, Located):
        return replace(part.listing, read_from=frozenset(part.weights.shards))
    root = Path(part.reference)
    listing = listing_of_file(root) if root.is_file() else listing_of_folder(root, skipped)
    return replace(listing, read_from=frozenset(part.sources))


def combine(assembled: Assembled, parts: Sequence[tuple[str, Checkpoint]]) -> Checkpoint:
    """Put the opened parts of a base together.

    A shard is called `component/shard`, and a tensor whose name occurs in two parts
    `component/tensor`. The config is that of the language component, or of the first part.
    """
    renamed: dict[str, Checkpoint] = {}
    names = Counter[str]()
    for _, part in parts:
        names.update([*part.tensors])
    tensors: Tensors = {}
    sources: dict[str, Source] = {}
    refused: dict[str, str] = {}
    for component, part in parts:
        own_tensors = {}
        own_sources = {}
        for name, info in part.tensors.items():
            moved = _moved(info, component)
            own_tensors[name] = moved
            unique = name if names[name] == 1 else f"{component}/{name}"
            tensors[unique] = moved
        for shard, source in part.sources.items():
            own_sources[f"{component}/{shard}"] = source
        renamed[component] = replace(part, tensors=own_tensors, sources=own_sources)
        sources |= own_sources
        refused |= part.refused
    main = renamed.get("language", parts[0][1])
    return Checkpoint(
        assembled.reference,
        assembled.commit,
        assembled.fingerprint,
        main.config,
        tensors,
        sources,
        parts=tuple(renamed.items()),
        refused=refused,
    )


def _moved(info: TensorInfo, folder: str) -> TensorInfo:
    packing = info.packing
    if packing is not None:
        raw = _moved(packing.raw, folder)
        beside = tuple(_moved(piece, folder) for piece in packing.beside)
        packing = replace(packing, raw=raw, beside=beside)
    return replace(info, shard=f"{folder}/{info.shard}", packing=packing)


def in_order(info: TensorInfo, config: Config) -> TensorInfo:
    """Undo the order of rows in q and k of Mistral's and Meta's own files, if config has their
    heads: rotary embeddings turn neighbouring rows there, but halves of a head in transformers.

    A reordered tensor has the name of a projection in transformers.
    """
    match = PAIRED.fullmatch(info.name)
    is_plain = info.packing is None and info.dtype in FLOATS
    if not match or not is_plain or len(info.shape) not in (1, 2):
        return info
    heads = config.get("num_attention_heads")
    if match["kind"] == "k":
        heads = config.get("num_key_value_heads") or heads
    if type(heads) is not int or heads < 1:
        return info
    rows, *others = info.shape
    if rows % (2 * heads):
        return info
    cols = math.prod(others)
    raw = replace(info, shape=(rows, cols))
    packing = Packing(REORDERED, raw, facts=(heads, 0))
    name = f"{match['head']}{match['kind']}_proj.{match['what']}"
    return replace(info, name=name, packing=packing)


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
    root = Path(reference)
    alone = ""
    if root.is_file():
        if root.suffix == GGUF:
            file = glob.escape(root.name)
        else:
            alone = root.name
        root = root.parent
    try:
        if not root.is_dir():
            hint = "name the folder that holds the .safetensors files"
            raise ShadowError(f"no such folder: {reference}", hint)
        listing = replace(top_of_folder(root), name=reference)
        located = locate(listing, allow_pickle=allow_pickle, file=file, alone=alone)
        return open_located(located, scratch)
    except OSError as error:
        raise ShadowError(
            f"{reference}: {error.strerror or error}", "check that the folder can be read"
        ) from error


def locate(
    listing: Listing,
    *,
    allow_pickle: bool,
    say: Say = unheard,
    file: str | None,
    alone: str = "",
) -> Located:
    """Find the weight files in a listing, reading its config and index but no shard. alone: a file
    that was named itself.

    Raises ShadowError if none can be read, or one that the index names is missing.
    """

    def read(name: str) -> Config:
        return read_object(listing.read(name, say), name)

    usable = filter(usable_name, listing.files)
    names = {name for name in usable if "/" not in name or name.endswith(GGUF)}
    if listing.commit:  # it needs other files beside it
        names.discard(DISTRIBUTED)
    ends = (".safetensors", ".bin", ".index.json", GGUF)
    has_weights = any(name.endswith(ends) for name in names)
    if not listing.is_complete and not has_weights:
        message = f"{listing.name}: none of its weight files is in the cache"
        raise ShadowError(message, "run once without --offline")
    with naming(listing.name, listing.hint):
        weights = choose_weights(
            listing.name, names, read, allow_pickle=allow_pickle, file=file, alone=alone
        )
        # a GGUF file has its config inside: one that lies beside it may be of another model
        config = read(CONFIG) if CONFIG in names and not weights.are_gguf else {}
    missing = [shard for shard in weights.shards if not listing.holds(shard)]
    if missing:
        where, hint = listing.absent
        count = f"{len(missing)} of {len(weights.shards)} shards are not in the {where}"
        raise ShadowError(f"{listing.name}: {count}: {several(missing, 3)}", hint)
    digest = hashlib.sha256()
    for name in (*weights.shards, CONFIG, ADAPTER_CONFIG):
        facts: list[object] = [name]
        if stored := listing.files.get(name):
            facts += stored.size, stored.checksum
        digest.update(json.dumps(facts).encode())
    return Located(listing, weights, config, digest.hexdigest())


def open_located(
    located: Located, scratch: Path | None, say: Say = unheard, report: OnBytes = unheard
) -> Checkpoint:
    """Read the headers of a checkpoint: those of files on the Hub from the cache or by requests.

    `.bin` files have no header: they are fetched whole, and unpacked into scratch if necessary.
    report gets the number of bytes as they come. Raises ShadowError for a file that is not
    available or not trusted.
    """
    listing = located.listing
    weights = located.weights

    def open_one(shard: str, stop: Event) -> Shard:
        return listing.shard(shard, Transfer(say, report, stop), scratch)

    threads = 1 if weights.pickled else CONNECTIONS
    with naming(listing.name, listing.hint):
        opened = in_threads(open_one, weights.shards, threads)
        shards = dict(zip(weights.shards, opened, strict=True))
        config = located.config
        if not config and PARAMS in listing.files and are_paired(shards):
            params = read_object(listing.read(PARAMS, say), PARAMS)
            config = {}
            for ours, theirs in HEADS.items():
                if theirs in params:
                    config[ours] = params[theirs]
        fingerprint = located.fingerprint
        if listing.folder is not None:
            fingerprint = _fingerprint(listing.folder, shards, config, weights)
        return _opened(located, fingerprint, config, shards, say)


def are_paired(shards: Shards) -> bool:
    """Look for tensors with Mistral's and Meta's own names of q and k."""
    headers = [header for header, _ in shards.values()]
    return any(any(map(PAIRED.fullmatch, header.tensors)) for header in headers)


def _fingerprint(folder: Path, shards: Shards, config: Config, weights: Weights) -> str:
    """A sha256 over headers and a sample of the weights."""
    fingerprint = hashlib.sha256()
    for shard, (header, source) in shards.items():
        assert source.held is not None, "of a folder"
        state = (folder / shard).stat()
        facts = [shard, state.st_size, state.st_mtime_ns, header.text]
        fingerprint.update(json.dumps(facts).encode())
        # no more of Python than this for a tensor, of which there may be a million
        infos = header.tensors.values()
        starts = [info.start for info in infos]
        sizes = [info.end - info.start for info in infos]
        fingerprint.update(source.held.sample(starts, sizes))
        source.require_unchanged()
    settings = json.dumps(config, sort_keys=True)
    fingerprint.update(settings.encode())
    if weights.adapter:
        fingerprint.update(repr(weights.adapter).encode())
    return fingerprint.hexdigest()


def _opened(
    located: Located, fingerprint: str, config: Config, shards: Shards, say: Say
) -> Checkpoint:
    """Make a checkpoint of its shards, with an entry a packed matrix and transformers' names."""
    weights = located.weights
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
        missing = TensorInfo(name, "unknown", (), shard, 0, 0, problem=problem)
        stored.setdefault(name, missing)
    if not stored:
        raise FileError("its weight files hold no tensors", "check that this is the right folder")

    def read_small(info: TensorInfo) -> bytes:
        return sources[info.shard].small_tensor(info, say)

    tensors, refused = with_matrices(stored, config, read_small)
    moved = (in_order(info, config) for info in tensors.values())
    own = {info.name: info for info in moved}
    if len(own) == len(tensors):  # otherwise two would have one name
        tensors = own
    gguf = None
    if weights.are_gguf:
        headers = [header for header, _ in shards.values()]
        tensors, config = model_of(headers, weights.shards[0])
        gguf = replace(headers[0], tensors=stored)
    return Checkpoint(
        located.reference,
        located.commit,
        fingerprint,
        config,
        tensors,
        sources,
        adapter=weights.adapter,
        refused=refused,
        gguf=gguf,
    )


def read_object(raw: bytes, name: str) -> Config:
    """Parse a JSON file with an object. Raises FileError for any other content."""
    if raw.startswith(b"version https://git-lfs"):
        message = f"{name}: a Git-LFS pointer, not the file itself"
        raise PointerError(message, "run `git lfs pull` in the folder")
    if has_too_many_values(raw):
        raise FileError(f"{name}: larger than that of any released model", AGAIN)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name}: not JSON ({type(error).__name__})", AGAIN) from error
    if not isinstance(content, dict):
        raise FileError(f"{name}: not a JSON object", AGAIN)
    return content
