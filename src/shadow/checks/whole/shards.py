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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shadow.checkpoints.contents import json_object
from shadow.checks.whole.configs import ADAPTER_CONFIG, CONFIG
from shadow.checks.whole.part import DOUBT, FAULT, NOTE, SMALL, FindingRule, Findings
from shadow.errors import FileError, PointerError, ShadowError

if TYPE_CHECKING:
    from pathlib import Path
    from threading import Event

    from shadow.checkpoints.listing import Listing
    from shadow.checkpoints.opening import Checkpoint
    from shadow.checkpoints.safetensors_files import TensorInfo
    from shadow.checkpoints.sources import Shard, Source
    from shadow.run.runtime import Runtime
    from shadow.run.scan import Read
    from shadow.targets.references import Reference

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
NUMBERED = re.compile(r".+-[0-9]{5}-of-[0-9]{5}\.safetensors")
OWN = re.compile(
    r"(?!consolidated|adapter_|optimizer|training|scheduler|random|rng).*\.safetensors"
)
CONSOLIDATED = re.compile(r"consolidated.*\.safetensors")
# of modules of sentence-transformers
MODULE_FILE = re.compile(r"[0-9]+_\w+/config\.json|[0-9]+_Dense\w*/model\.safetensors")
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
    "adapter_config_lost": FindingRule(
        FAULT,
        "factors of an adapter without this file",
        "Neither peft nor transformers loads the adapter, and its scale is not known.",
        "Restore the file from the source, or from the code of the training.",
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
    every: Collection[str] | None = None
    """All files, and those of modules with their folder; None where some may not be listed."""

    @property
    def missing(self) -> dict[str, int]:
        """The missing shards, and how many tensors the index puts in them."""
        counts = Counter(self.weight_map.values())
        return {name: counts[name] for name in self.read if name not in self.names}

    @property
    def are_cut(self) -> bool:
        """True if tensors may be missing because a file is."""
        lacking = (*self.pointers, *self.unreadable, *self.missing)
        return any(name in CUTTING or name.endswith(".safetensors") for name in lacking)


def judge_files(findings: Findings, facts: FileFacts) -> None:
    """Report contradictions, a row a file or tensor; oddities are notes."""
    for name in facts.pointers:
        findings.add(name, "pointer")
    for name, count in facts.missing.items():
        findings.add(name, "shard_missing", tensors=count)
    for name, why in facts.unreadable.items():
        findings.add(name, "unreadable", why=why)
    if facts.read and not any(facts.headers.get(shard, True) for shard in facts.read):
        findings.add(facts.read[0], "no_tensors")
    holders: defaultdict[str, list[str]] = defaultdict(list)
    for shard in facts.read:
        for name in facts.headers.get(shard, ()):
            holders[name].append(shard)
    for name, shards in holders.items():
        if len(shards) > 1 and not facts.equal.get(name):
            code = "twice_differs" if name in facts.equal else "twice_unknown"
            findings.add(name, code, shard=shards[0], other=shards[-1])
    if facts.weight_map:
        _judge_index(findings, facts, holders)
    elif INDEX not in facts.names and any(map(NUMBERED.fullmatch, facts.read)):
        findings.add(facts.read[0], "no_index")
    for other in facts.others:
        if other.differing:
            first = other.differing[0]
            count = len(other.differing)
            findings.add(other.file, "set_differs", read=facts.read[0], first=first, tensors=count)
        elif other.differing is None:
            code = "set_newer" if other.newer else "set_unknown"
            findings.add(other.file, code, read=facts.read[0])
    if ADAPTER in facts.read and ADAPTER_CONFIG not in (facts.every or [ADAPTER_CONFIG]):
        findings.add(ADAPTER_CONFIG, "adapter_config_lost")
    if {ADAPTER_CONFIG, ADAPTER} <= {*facts.names} and ADAPTER not in facts.read:
        findings.add(ADAPTER, "adapter_beside")


def _judge_index(
    findings: Findings, facts: FileFacts, holders: Mapping[str, Sequence[str]]
) -> None:
    from shadow.checkpoints.expected import owners_of

    owners = {owner for name in holders for owner in owners_of(name)}
    absent: defaultdict[str, list[str]] = defaultdict(list)  # those of a lost layer by its name
    for name, shard in facts.weight_map.items():
        if shard in facts.headers and name not in holders:
            owner = next((owner for owner in owners_of(name) if owner not in owners), name)
            absent[owner].append(name)
        elif shard in facts.headers and shard not in holders[name]:
            findings.add(name, "elsewhere", shard=shard, other=holders[name][-1])
    for owner, names in absent.items():
        shards = [*dict.fromkeys(facts.weight_map[name] for name in names)]
        if len(names) > 1:
            findings.add(owner, "layer_absent", tensors=len(names), first=names, shards=shards)
        else:
            findings.add(names[0], "absent", shard=shards[0])
    for name in holders.keys() - facts.weight_map.keys():
        findings.add(name, "unindexed", shard=holders[name][-1])
    for name, header in facts.headers.items():
        if OWN.fullmatch(name) and name not in facts.read and not header.keys() & holders.keys():
            findings.add(name, "shard_outside", tensors=len(header))


# a checkpoint without those of its files that cannot be read, None where none can; its tensors as
# the files have them, packed ones in pieces; its config, tokenizer and other small files
Opened = tuple["Checkpoint | None", Mapping[str, "TensorInfo"], Mapping[str, bytes], FileFacts]


def open_whole(
    reference: Reference, runtime: Runtime, scratch: Path, *, with_values: bool
) -> Opened:
    """Open a checkpoint. Errors in safetensors and small files are evidence; for weights of another
    format, and for what cannot be reached, it raises ShadowError.
    """
    from shadow.checkpoints.listing import Listing
    from shadow.run.sides import find_checkpoint, listing_of, open_checkpoint, require_gguf

    listing = Listing("", {})
    if reference not in runtime.checkpoints:  # otherwise it is in memory
        listing = listing_of(reference, runtime)
    contents = Contents(listing, runtime, with_values=with_values)
    if contents.are_judged and runtime.access.file is None:
        return contents.opened()
    if listing.commit:
        runtime = replace(runtime, commits={reference: listing.commit})
    checkpoint = find_checkpoint(reference, runtime, scratch / "whole")
    require_gguf(runtime.access.file, [checkpoint])
    return contents.beside(open_checkpoint(checkpoint, runtime, scratch / "whole"))


class Contents:
    """Files of a folder or a repository, any of which may be broken."""

    def __init__(self, listing: Listing, runtime: Runtime, *, with_values: bool) -> None:
        self.listing = listing
        self.say = runtime.say
        # of what may be compared with the weights that are read
        self.with_values = with_values and listing.folder is not None
        top = [path for path in sorted(listing.files) if "/" not in path]
        self.names = {path for path in top if not listing.files[path].problem}
        self.pointers: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.headers: dict[str, dict[str, TensorInfo]] = {}
        self.sources: dict[str, Source] = {}
        self.small: dict[str, bytes] = {}
        modules = sorted(filter(MODULE_FILE.fullmatch, listing.files))
        self._take([*filter(_is_read, top), *modules])

    def _take(self, paths: Sequence[str]) -> None:
        """Read small files and headers."""
        from shadow.checkpoints.opening import CONNECTIONS
        from shadow.checkpoints.transfers import in_threads

        contents = in_threads(self._read, paths, CONNECTIONS)
        for path, content in zip(paths, contents, strict=True):
            if isinstance(content, PointerError):
                self.pointers.append(path)
            elif isinstance(content, FileError):
                self.unreadable[path] = content.message.removeprefix(f"{path}: ")
            elif isinstance(content, bytes):
                self.small[path] = content
            else:
                header, self.sources[path] = content
                self.headers[path] = header.tensors

    def _read(self, path: str, stop: Event) -> Shard | bytes | FileError:
        """Read a small file or the header of a file of weights."""
        from shadow.checkpoints.safetensors_files import strict_json
        from shadow.checkpoints.transfers import Transfer

        try:
            if path.endswith(".safetensors"):
                by = Transfer(self.say, stop=stop)
                return self.listing.shard(path, by, None)
            if self.listing.files[path].size > SMALL:
                return bytes(SMALL)  # which nobody parses
            content = self.listing.read(path, self.say)
            if content.startswith(LFS):
                return PointerError(path)
            if path.endswith("config.json") and not isinstance(strict_json(content), dict):
                return FileError("not a JSON object")
        except FileError as error:
            return error
        except ValueError as error:
            return FileError(str(error))
        return content

    @property
    def are_judged(self) -> bool:
        """True where there are safetensors files or an index, and no file is unknown."""
        judged = (".safetensors", INDEX)
        is_judged = any(path.endswith(judged) for path in self.names)
        return is_judged and self.listing.is_complete

    def beside(self, checkpoint: Checkpoint) -> Opened:
        """A checkpoint of GGUF or `.bin` files, of one file, or in memory, with the small files."""
        stored: dict[str, TensorInfo] = {}
        for name, info in checkpoint.tensors.items():
            if info.packing and not info.shard.endswith(".gguf"):
                pieces = (info.packing.raw, *info.packing.beside)
                stored |= {piece.name: piece for piece in pieces}
            elif not info.problem:
                stored[name] = info
        headers: defaultdict[str, dict[str, TensorInfo]] = defaultdict(dict)
        for name, info in stored.items():
            headers[info.shard][name] = info
        configs: dict[str, Mapping[str, Any]] = {"config.json": checkpoint.config}
        if checkpoint.adapter:
            alpha = checkpoint.adapter.alpha
            configs[ADAPTER_CONFIG] = {"peft_type": "LORA", "lora_alpha": alpha}
        small = dict(self.small)
        for name, config in configs.items():
            small.setdefault(name, json.dumps(config).encode())
        is_listed = self.listing.is_complete and CONFIG in self.names
        files = FileFacts(
            [*checkpoint.sources],
            headers,
            names={*self.names, *checkpoint.sources},
            pointers=self.pointers,
            unreadable=self.unreadable,
            every={*self.listing.files} if is_listed else None,
        )
        return checkpoint, stored, small, files

    def opened(self) -> Opened:
        """The weights that transformers reads, and everything that may contradict them."""
        from shadow.checkpoints.formats import with_matrices
        from shadow.checkpoints.opening import Checkpoint

        read, weight_map = self._chosen()
        below = [shard for shard in read if "/" in shard]
        below = [*filter(self.listing.holds, below)]
        self._take(below)
        self.names |= {*below}
        tensors: dict[str, TensorInfo] = {}
        equal: dict[str, bool] = {}
        for shard in read:
            for name, info in self.headers.get(shard, {}).items():
                if name in tensors and self.with_values:
                    is_equal = self._are_equal(tensors[name], info)
                    equal[name] = is_equal and equal.get(name, True)
                tensors[name] = info
        config = json_object(self.small.get("config.json"))

        def read_small(info: TensorInfo) -> bytes:
            return self.sources[info.shard].small_tensor(info, self.say)

        matrices, refused = with_matrices(tensors, config, read_small)
        sources = {}
        for shard in read:
            if shard in self.sources:
                sources[shard] = self.sources[shard]
        stored = dict(tensors)
        for file in filter(MODULE_FILE.fullmatch, self.sources):
            sources[file] = self.sources[file]
            for name, info in self.headers.pop(file).items():
                in_module = f"{file.partition('/')[0]}/{name}"
                stored[in_module] = replace(info, name=in_module)
        checkpoint = Checkpoint(
            self.listing.name,
            commit=None,
            fingerprint="",
            config=config,
            tensors=matrices,
            sources=sources,
            refused=refused,
        )
        files = FileFacts(
            read,
            self.headers,
            weight_map,
            self.names,
            self.pointers,
            self.unreadable,
            equal,
            [*self._others(read, tensors)],
            {*self.listing.files},
        )
        return checkpoint if tensors else None, stored, self.small, files

    def _chosen(self) -> tuple[list[str], Mapping[str, str]]:
        """The files that transformers reads, in order, and what an index says about them."""
        from shadow.checkpoints.weight_files import checked_weight_map

        weights = {name for name in self.names if name.endswith(".safetensors")}
        weight_map: Mapping[str, str] = {}
        if INDEX in self.small:
            try:
                index = json_object(self.small[INDEX])
                weight_map = checked_weight_map(index, INDEX, ".safetensors")
            except FileError as error:
                self.unreadable[INDEX] = error.message.removeprefix(f"{INDEX}: ")
        shards = sorted(set(weight_map.values()))
        if SINGLE in weights and shards != [SINGLE]:  # whatever an index says; other tools read it
            if absent := [shard for shard in shards if shard not in weights]:
                self.unreadable[INDEX] = f"it names {absent[0]}, which is not there"
            return [SINGLE], {}
        if weight_map:
            return shards, weight_map
        if ADAPTER in weights and ADAPTER_CONFIG in self.names:
            return [ADAPTER], {}
        for pattern in (NUMBERED, OWN):
            if shards := sorted(filter(pattern.fullmatch, weights)):
                return shards, {}
        return sorted(weights), {}

    def _are_equal(self, first: TensorInfo, other: TensorInfo) -> bool:
        from shadow.run.scan import same_values

        def read(info: TensorInfo) -> Read:
            return self.sources[info.shard].tensor(info)

        return same_values(read, first, other)

    def _others(
        self, files_read: Sequence[str], tensors: Mapping[str, TensorInfo]
    ) -> Iterator[OtherSet]:
        """Compare every other set of weights whose values can be read."""
        rest = [name for name in sorted(self.headers) if name not in files_read]
        consolidated = [*filter(CONSOLIDATED.fullmatch, rest)]
        others = [name for name in rest if name not in consolidated]
        copies = [name for name in others if self.headers[name].keys() & tensors.keys()]
        for files in (copies, consolidated):
            if not files or files[0].startswith("adapter_"):
                continue
            own = [info for file in files for info in self.headers[file].values()]
            differing: list[str] | None = None
            if self.with_values and all(info.name in tensors for info in own):
                pairs = [(info, tensors[info.name]) for info in own]
                differing = [info.name for info, read in pairs if not self._are_equal(info, read)]
            elif self.with_values and len(files) == 1:
                differing = self._differing_by_place(files[0], files_read)
            yield OtherSet(files[0], differing, self._is_newer(files, files_read))
        pickled = sorted(filter(PICKLED.fullmatch, self.names))
        if pickled and files_read:
            differing = None
            if self.with_values:
                differing = self._differing_from_pickles(pickled, tensors)
            yield OtherSet(pickled[0], differing, self._is_newer(pickled, files_read))

    def _differing_by_place(self, file: str, read: Sequence[str]) -> list[str] | None:
        """Tensors without an equal one in a file with other names, such as Mistral's. None
        if they cannot be read, or are not those that transformers reads.
        """
        from shadow.checkpoints.opening import open_folder
        from shadow.run.aligned import align_all, row_of
        from shadow.run.scan import is_raw

        try:
            first = open_folder(self.listing.name)
            second = open_folder(f"{self.listing.name}/{file}")
            aligned = align_all(first, second, ("A", "B"))
            pairs = aligned.pair.pairs
            if {*first.sources} != {*read}:
                return None
            if aligned.unread or any(map(is_raw, pairs)):
                return None
            base = aligned.pair.base
            rows = [row_of(pair, base, aligned.pair.tuned) for pair in pairs]
        except ShadowError:
            return None
        differing = [row.tuned for row in rows if row.changed]
        return differing if differing or not aligned.unmatched else None

    def _is_newer(self, files: Sequence[str], read: Sequence[str]) -> bool:
        """True of files that were written after those that are read; False where not known."""
        return self._written(files) > self._written(read) + NEWER

    def _written(self, files: Sequence[str]) -> float:
        """The time at which the newest of some files was written; 0 where that is not known."""
        root = self.listing.folder
        if root is None:
            return 0.0
        paths = [root / name for name in files if name in self.names]
        return max((path.stat().st_mtime for path in paths), default=0.0)

    def _differing_from_pickles(
        self, files: Sequence[str], tensors: Mapping[str, TensorInfo]
    ) -> list[str] | None:
        """Tensors without an equal one in pickles, which are not opened: their archives have
        the size and checksum of each storage. None if these cannot decide.
        """
        stored: set[tuple[int, int]] = set()
        for name in files:
            try:
                with zipfile.ZipFile(f"{self.listing.name}/{name}") as archive:
                    members = [
                        member for member in archive.infolist() if "/data/" in member.filename
                    ]
            except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError):
                return None  # as zipfile says of a damaged one, of a name too
            for member in members:
                stored.add((member.file_size, member.CRC))
        sizes = {size for size, _ in stored}
        differing = []
        for name, info in tensors.items():
            if info.end - info.start not in sizes:  # another dtype, or a part of a storage
                return None
            source = self.sources[info.shard]
            held, info_there = source.located(info)
            content = bytearray(info_there.end - info_there.start)
            held.read(info_there.start, memoryview(content))
            crc = zlib.crc32(content)
            if (len(content), crc) not in stored:
                differing.append(name)
        return differing if any(crc for _, crc in stored) else None


def _is_read(name: str) -> bool:
    from shadow.checkpoints.stored_files import kind_of

    if name.endswith(".safetensors"):
        return True
    if not name.endswith((".json", ".jinja")):
        return False
    return kind_of(name) in ("index", "config", "generation", "chat_template", "tokenizer")
