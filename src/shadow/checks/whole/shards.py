"""`whole`: open a checkpoint as far as its files can be read, and compare index, shards, headers
and other sets of weights in its folder.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.checks.whole.configs import ADAPTER_CONFIG
from shadow.checks.whole.part import DOUBT, FAULT, NOTE, SMALL, FindingRule, Findings, json_object
from shadow.errors import FileError, ShadowError

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.checkpoints.sources import Source
    from shadow.run.runtime import Runtime
    from shadow.targets.references import Reference

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
NUMBERED = re.compile(r".+-[0-9]{5}-of-[0-9]{5}\.safetensors")
OWN = re.compile(
    r"(?!consolidated|adapter_|optimizer|training|scheduler|random|rng).*\.safetensors"
)
CONSOLIDATED = re.compile(r"consolidated.*\.safetensors")
PICKLED = re.compile(r"pytorch_model.*\.bin|consolidated.*\.pth")
CUTTING = ("config.json", INDEX)  # files beside the weights without which a loader is not asked
LFS = b"version https://git-lfs"
NEWER = 2  # seconds
RULES: Mapping[str, FindingRule] = {
    "pointer": FindingRule(
        FAULT,
        "a Git-LFS pointer, not the file itself",
        "The file has the address of the content, so a loader finds nothing to read.",
        "Run `git lfs pull` in the checkout, or download the file again.",
    ),
    "shard_missing": FindingRule(
        FAULT,
        "the index names it, and it is not there, with {tensors:count tensor|tensors}",
        "A loader stops, or initialises these tensors at random.",
        "Download or copy the file, or save the model again.",
    ),
    "unreadable": FindingRule(
        FAULT,
        "{why}",
        "A loader stops at it; the file was cut off, overwritten or written by hand.",
        "Download or copy the file again, and compare its SHA-256 with the original's.",
    ),
    "nothing_opened": FindingRule(
        DOUBT,
        "no tensor can be read, so values, names and tokens are not looked at",
        "Everything but the files stays unseen.",
        "Mend the files that cannot be read, and run the command again.",
    ),
    "no_tensors": FindingRule(
        FAULT,
        "there are no tensors in it",
        "Every weight of the model would be random.",
        "Save the model again, and check that its state dict has tensors.",
    ),
    "layer_absent": FindingRule(
        FAULT,
        "{tensors:all tensor|tensors} of it are absent ({first}): the index puts them in {shards}",
        "transformers initialises at random what a file lacks.",
        "Restore the file from a whole copy, or save the model again.",
    ),
    "absent": FindingRule(
        FAULT,
        "the index puts it in {shard}, which has no such tensor",
        "transformers initialises at random what a file lacks.",
        "Restore the file from a whole copy, or save the model again.",
    ),
    "twice_differs": FindingRule(
        FAULT,
        "in {shard} and in {other}, with other values; transformers takes that of {other}",
        "Loaders choose by the order of the files, so two tools run two different models.",
        "Delete the copy that is out of date, and write the index again.",
    ),
    "twice_unknown": FindingRule(
        DOUBT,
        "in {shard} and in {other}; values are not compared",
        "If the copies differ, two tools run two different models.",
        "Run the command again without `--headers`.",
    ),
    "elsewhere": FindingRule(
        FAULT,
        "the index puts it in {shard}, and it is in {other}",
        "A loader that opens the file of the index does not find the tensor.",
        "Write the index again from the headers of the files.",
    ),
    "unindexed": FindingRule(
        FAULT,
        "in {shard}, but not in the index",
        "A loader that goes by the index does not read it.",
        "Add it to `weight_map` of the index, or remove it from the file.",
    ),
    "shard_outside": FindingRule(
        FAULT,
        "the index does not name it, so no loader reads it; it has {tensors:count tensor|tensors}",
        "The weights in it are in no model that is loaded.",
        "Add its tensors to the index, or move the file to another folder.",
    ),
    "no_index": FindingRule(
        FAULT,
        "shards without an index, which loaders look for",
        "Loaders look for model.safetensors or an index, and stop without both.",
        "Copy the index from the source, or save the model again.",
    ),
    "set_differs": FindingRule(
        FAULT,
        "a second set of weights, with other values in {tensors:count tensor|tensors}, such as"
        " {first}; transformers reads {read}",
        "A tool that reads the other set runs another model.",
        "Delete the set that is out of date, or move it to another folder.",
    ),
    "set_unknown": FindingRule(
        NOTE,
        "a second set of weights, which is not compared; transformers reads {read}",
        "A tool that reads the other set may run another model.",
        "Compare both with `shadow verify same`, or delete the one that nobody needs.",
    ),
    "set_newer": FindingRule(
        DOUBT,
        "newer than {read}, which transformers reads, and not compared",
        "A training or a conversion may have updated this set alone.",
        "Compare both with `shadow verify same`, and delete the one that is out of date.",
    ),
    "adapter_beside": FindingRule(
        FAULT,
        "an adapter beside a whole model: transformers adds it to the model",
        "The model that is loaded is not the one that its files of weights have.",
        "Move the adapter to a folder of its own.",
    ),
}


@dataclass(frozen=True)
class OtherSet:
    """Weights other than those that are read."""

    file: str  # the first of its files
    differing: Sequence[str] | None = None
    """Tensors whose values differ; None where they are not compared."""
    newer: bool = False


@dataclass(frozen=True)
class FileFacts:
    """Contents of index, files and headers of a checkpoint, separately."""

    read: Sequence[str]  # the files of weights that transformers reads
    headers: Mapping[str, Mapping[str, TensorInfo]] = field(default_factory=dict)
    """Of every file of weights that can be read."""
    weight_map: Mapping[str, str] = field(default_factory=dict)
    """Of the index; empty where it is not what names the files that are read."""
    names: Collection[str] = ()  # all files
    pointers: Sequence[str] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    equal: Mapping[str, bool] = field(default_factory=dict)
    """By a tensor that two files hold, whether its values are equal; without those not compared."""
    others: Sequence[OtherSet] = ()

    @property
    def missing(self) -> dict[str, int]:
        """The missing shards, and how many tensors the index puts in them."""
        counts = Counter(self.weight_map.values())
        return {name: counts[name] for name in self.read if name not in self.names}

    @property
    def are_cut(self) -> bool:
        """Return whether tensors may be missing because a file is."""
        lacking = (*self.pointers, *self.unreadable, *self.missing)
        return any(name in CUTTING or name.endswith(".safetensors") for name in lacking)


def judge_files(findings: Findings, found: FileFacts) -> None:
    """Report contradictions, a row a file or tensor; oddities are notes."""
    for name in found.pointers:
        findings.add(name, "pointer")
    for name, count in found.missing.items():
        findings.add(name, "shard_missing", tensors=count)
    for name, why in found.unreadable.items():
        findings.add(name, "unreadable", why=why)
    if found.read and not any(found.headers.get(shard, True) for shard in found.read):
        findings.add(found.read[0], "no_tensors")
    holders: defaultdict[str, list[str]] = defaultdict(list)
    for shard in found.read:
        for name in found.headers.get(shard, ()):
            holders[name].append(shard)
    for name, shards in holders.items():
        if len(shards) > 1 and not found.equal.get(name):
            code = "twice_differs" if name in found.equal else "twice_unknown"
            findings.add(name, code, shard=shards[0], other=shards[-1])
    if found.weight_map:
        _judge_index(findings, found, holders)
    elif INDEX not in found.names and any(map(NUMBERED.fullmatch, found.read)):
        findings.add(found.read[0], "no_index")
    for other in found.others:
        if other.differing:
            first, count = other.differing[0], len(other.differing)
            findings.add(other.file, "set_differs", read=found.read[0], first=first, tensors=count)
        elif other.differing is None:
            code = "set_newer" if other.newer else "set_unknown"
            findings.add(other.file, code, read=found.read[0])
    if {ADAPTER_CONFIG, ADAPTER} <= {*found.names} and ADAPTER not in found.read:
        findings.add(ADAPTER, "adapter_beside")


def _judge_index(
    findings: Findings, found: FileFacts, holders: Mapping[str, Sequence[str]]
) -> None:
    from shadow.checkpoints.expected import owners_of

    owners = {owner for name in holders for owner in owners_of(name)}
    absent: defaultdict[str, list[str]] = defaultdict(list)  # those of a lost layer by its name
    for name, shard in found.weight_map.items():
        if shard in found.headers and name not in holders:
            owner = next((owner for owner in owners_of(name) if owner not in owners), name)
            absent[owner].append(name)
        elif shard in found.headers and shard not in holders[name]:
            findings.add(name, "elsewhere", shard=shard, other=holders[name][-1])
    for owner, names in absent.items():
        shards = [*dict.fromkeys(found.weight_map[name] for name in names)]
        if len(names) > 1:
            findings.add(owner, "layer_absent", tensors=len(names), first=names, shards=shards)
        else:
            findings.add(names[0], "absent", shard=shards[0])
    for name in holders.keys() - found.weight_map.keys():
        findings.add(name, "unindexed", shard=holders[name][-1])
    for name, header in found.headers.items():
        if OWN.fullmatch(name) and name not in found.read and not header.keys() & holders.keys():
            findings.add(name, "shard_outside", tensors=len(header))


# a checkpoint without those of its files that cannot be read, None where none can; its tensors as
# the files have them, packed ones in pieces; its config, tokenizer and other small files
Opened = tuple["Checkpoint | None", Mapping[str, "TensorInfo"], Mapping[str, bytes], FileFacts]


def open_whole(
    reference: Reference, runtime: Runtime, scratch: Path, *, with_values: bool
) -> Opened:
    """Open a checkpoint. Errors in safetensors files of a folder are evidence; for all others it
    raises ShadowError.
    """
    root = Path(reference.repo)
    if reference.is_folder and root.is_dir() and reference not in runtime.found:
        names = {path.name for path in root.iterdir() if path.is_file()}
        if any(name.endswith((".safetensors", INDEX)) for name in names):
            return Folder(root, names, with_values=with_values).opened()
    return _found(reference, runtime, scratch)


def _found(reference: Reference, runtime: Runtime, scratch: Path) -> Opened:
    """Open a checkpoint of the Hub, of GGUF or `.bin` files, of one file, or in memory."""
    from shadow.checkpoints.listing import Listing, listings_of, read_small
    from shadow.run.sides import find_checkpoint, open_found, require_gguf

    found = find_checkpoint(reference, runtime, scratch / "whole")
    require_gguf(runtime.access.file, [found])
    opened = open_found(found, runtime, scratch / "whole")
    if reference in runtime.found:
        listing = Listing({}, is_complete=True)
    else:
        ((_, listing),) = listings_of(found)
    own = {path: file for path, file in listing.files.items() if "/" not in path}
    said = {"config.json": opened.config}
    if opened.adapter:
        said[ADAPTER_CONFIG] = {"peft_type": "LORA", "lora_alpha": opened.adapter.alpha}
    small = {name: json.dumps(one).encode() for name, one in said.items()} | {
        path: read_small(listing, file, runtime.say)
        for path, file in own.items()
        if file.kind in ("config", "generation", "tokenizer", "chat_template")
        if path.endswith((".json", ".jinja")) and (file.size or 0) <= SMALL
    }
    every: dict[str, TensorInfo] = {}
    for name, info in opened.tensors.items():
        is_apart = info.packing and not info.shard.endswith(".gguf")
        pieces = (info.packing.raw, *info.packing.beside) if info.packing and is_apart else ()
        every |= {one.name: one for one in pieces} or {name: info}
    stored = {name: info for name, info in every.items() if not info.problem}
    headers: defaultdict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in stored.items():
        headers[info.shard][name] = info
    # the index knows more; what a GGUF file holds and cannot be read has a dtype
    is_short = any(one.problem and one.dtype == "unknown" for one in every.values())
    weight_map = {name: info.shard for name, info in every.items()} if is_short else {}
    files = FileFacts([*opened.sources], headers, weight_map, {*own, *opened.sources})
    return opened, stored, small, files


class Folder:
    """A folder of safetensors files, any of which may be broken."""

    def __init__(self, root: Path, names: set[str], *, with_values: bool) -> None:
        self.root, self.names, self.with_values = root, names, with_values
        self.pointers: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.headers: dict[str, dict[str, TensorInfo]] = {}
        self.sources: dict[str, Source] = {}
        self.small: dict[str, bytes] = {}
        for name in sorted(names):
            try:
                self._read(name)
            except OSError as error:
                self.unreadable[name] = str(error.strerror)
            except ShadowError as error:
                self.unreadable[name] = error.message.removeprefix(f"{name}: ")
        for path in root.iterdir():
            if self._is_read(path.name) and not (path.is_file() or path.is_dir()):
                self.unreadable[path.name] = "neither a regular file nor a link to one"

    def opened(self) -> Opened:
        """The weights that transformers reads, and everything that may contradict them."""
        from shadow.checkpoints.formats import with_matrices
        from shadow.checkpoints.opening import Checkpoint, small_tensor

        read, weight_map = self._chosen()
        tensors: dict[str, TensorInfo] = {}
        equal: dict[str, bool] = {}
        for shard in read:
            for name, info in self.headers.get(shard, {}).items():
                if name in tensors and self.with_values:
                    is_equal = self._are_equal(tensors[name], info)
                    equal[name] = is_equal and equal.get(name, True)
                tensors[name] = info
        config = json_object(self.small.get("config.json"))
        matrices, refused = with_matrices(
            tensors, config, lambda info: small_tensor(self.sources[info.shard], info)
        )
        sources = {shard: self.sources[shard] for shard in read if shard in self.sources}
        checkpoint = Checkpoint(
            str(self.root), None, "", config, matrices, sources, refused=refused
        )
        facts = self.headers, weight_map, self.names, self.pointers, self.unreadable, equal
        files = FileFacts(read, *facts, [*self._others(read, tensors)])
        return checkpoint if tensors else None, tensors, self.small, files

    @staticmethod
    def _is_read(name: str) -> bool:
        from shadow.checkpoints.listing import kind_of

        others = ("weights", "pickle", "document", "code", "other")
        return name.endswith(".safetensors") or kind_of(name) not in others

    def _read(self, name: str) -> None:
        """Read a small file, or the header of a weights file. Raises OSError and ShadowError."""
        from shadow.checkpoints.safetensors_files import held_shard
        from shadow.checkpoints.sources import LocalFile, read_header
        from shadow.files import read_start

        if not self._is_read(name):
            return
        is_weights = name.endswith(".safetensors")
        content = read_start(self.root / name, len(LFS) if is_weights else SMALL) or b""
        if content.startswith(LFS):
            self.pointers.append(name)
        elif is_weights:
            held = held_shard(self.root / name, name)
            self.headers[name] = read_header(held, name).tensors
            self.sources[name] = LocalFile(held.path, held)
        elif name.endswith((".json", ".jinja")):
            self.small[name] = content
            if name.endswith("config.json"):
                self._require_object(content)

    @staticmethod
    def _require_object(content: bytes) -> None:
        from shadow.checkpoints.safetensors_files import strict_json

        try:
            is_object = isinstance(strict_json(content), dict)
        except ValueError as error:
            raise ShadowError(str(error)) from error
        if not is_object:
            raise ShadowError("not a JSON object")

    def _chosen(self) -> tuple[list[str], Mapping[str, str]]:
        """The files that transformers reads, in order, and what an index says about them."""
        from shadow.checkpoints.weight_files import checked_weight_map

        weights = {name for name in self.names if name.endswith(".safetensors")}
        said: Mapping[str, str] = {}
        if INDEX in self.small:
            try:
                said = checked_weight_map(json_object(self.small[INDEX]), INDEX, ".safetensors")
            except FileError as error:
                self.unreadable[INDEX] = error.message.removeprefix(f"{INDEX}: ")
        shards = sorted(set(said.values()))
        if SINGLE in weights and shards != [SINGLE]:  # whatever an index says; other tools read it
            if absent := [shard for shard in shards if shard not in weights]:
                self.unreadable[INDEX] = f"it names {absent[0]}, which is not there"
            return [SINGLE], {}
        if said:
            return shards, said
        if ADAPTER in weights and ADAPTER_CONFIG in self.names:
            return [ADAPTER], {}
        numbered = sorted(filter(NUMBERED.fullmatch, weights))
        return numbered or sorted(filter(OWN.fullmatch, weights)) or sorted(weights), {}

    def _are_equal(self, one: TensorInfo, other: TensorInfo) -> bool:
        from shadow.run.scan import same_values

        return same_values(lambda info: self.sources[info.shard].tensor(info), one, other)

    def _others(self, read: Sequence[str], tensors: Mapping[str, TensorInfo]) -> Iterator[OtherSet]:
        """Compare every other set of weights whose values can be read."""
        rest = [name for name in sorted(self.headers) if name not in read]
        consolidated = [*filter(CONSOLIDATED.fullmatch, rest)]
        copies = [name for name in rest if self.headers[name].keys() & tensors.keys()]
        copies = [name for name in copies if name not in consolidated]
        for files in (copies, consolidated):
            if files and not files[0].startswith("adapter_"):
                own = [info for file in files for info in self.headers[file].values()]
                differing = None
                if self.with_values and all(info.name in tensors for info in own):
                    pairs = [(info, tensors[info.name]) for info in own]
                    differing = [one.name for one, info in pairs if not self._are_equal(one, info)]
                elif self.with_values and len(files) == 1:
                    differing = self._differing_by_place(files[0], read)
                yield OtherSet(files[0], differing, self._is_newer(files, read))
        pickled = sorted(filter(PICKLED.fullmatch, self.names))
        if pickled and read:
            differing = self._differing_from_pickles(pickled, tensors) if self.with_values else None
            yield OtherSet(pickled[0], differing, self._is_newer(pickled, read))

    def _differing_by_place(self, file: str, read: Sequence[str]) -> list[str] | None:
        """Return tensors without an equal one in a file with other names, such as Mistral's. None
        if they cannot be read, or are not those that transformers reads.
        """
        from shadow.checkpoints.opening import open_folder
        from shadow.run.aligned import align_all
        from shadow.run.scan import is_raw, scanned

        try:
            first, second = open_folder(str(self.root)), open_folder(str(self.root / file))
            aligned = align_all(first, second, ("A", "B"))
            pairs = aligned.pair.pairs
            if {*first.sources} != {*read} or aligned.unread or any(map(is_raw, pairs)):
                return None
            rows = [scanned(pair, aligned.pair.base, aligned.pair.tuned) for pair in pairs]
        except ShadowError:
            return None
        differing = [row.tuned for row in rows if row.changed]
        return differing if differing or not aligned.unmatched else None

    def _is_newer(self, *sets: Sequence[str]) -> bool:
        """Return whether the first set of files was written after the second."""
        paths = [[self.root / name for name in some if name in self.names] for some in sets]
        first, second = (max((one.stat().st_mtime for one in own), default=0.0) for own in paths)
        return first > second + NEWER

    def _differing_from_pickles(
        self, files: Sequence[str], tensors: Mapping[str, TensorInfo]
    ) -> list[str] | None:
        """Return tensors without an equal one in pickles, which are not opened: their archives have
        the size and checksum of each storage. None if these cannot decide.
        """
        stored: set[tuple[int, int]] = set()
        for name in files:
            try:
                with zipfile.ZipFile(self.root / name) as archive:
                    members = [one for one in archive.infolist() if "/data/" in one.filename]
            except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError):
                return None  # as zipfile says of a damaged one, of a name too
            stored |= {(one.file_size, one.CRC) for one in members}
        sizes = {size for size, _ in stored}
        differing = []
        for name, info in tensors.items():
            if info.end - info.start not in sizes:  # another dtype, or a part of a storage
                return None
            held, there = self.sources[info.shard].located(info)
            content = bytearray(there.end - there.start)
            held.read(there.start, memoryview(content))
            if (len(content), zlib.crc32(content)) not in stored:
                differing.append(name)
        return differing if any(crc for _, crc in stored) else None
