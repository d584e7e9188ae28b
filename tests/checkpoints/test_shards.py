"""safetensors files as hostile input: what is read, what is refused, values bit for bit."""

import json
import math

import numpy as np
import pytest
import safetensors
import torch
from effort import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shadow.checkpoints import safetensors_files
from shadow.checkpoints.safetensors_files import held_shard
from shadow.checkpoints.sources import LocalFile, read_header
from shadow.dtypes import FLOATS, INTEGERS
from shadow.errors import ShadowError

BITS = {name: form.bits for name, form in FLOATS.items()} | INTEGERS
FUZZ = settings(
    max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def file_bytes(header, data: bytes = b"") -> bytes:
    """A safetensors file of any header: an object to dump, or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def parse(tmp_path, content: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    return read_header(held_shard(path, path.name), "x.safetensors").tensors


@st.composite
def contents(draw):
    """Tensors of a file in the order of their data: name -> (dtype, shape, bytes)."""
    printable = st.text(min_size=1, max_size=12).filter(str.isprintable)
    printable = printable.filter(lambda name: name != "__metadata__")
    names = draw(st.lists(printable, min_size=1, max_size=5, unique=True))
    tensors = {}
    for name in names:
        dtype = draw(st.sampled_from(sorted(BITS)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = math.prod(shape) * BITS[dtype] // 8
        tensors[name] = (dtype, shape, draw(st.binary(min_size=size, max_size=size)))
    return tensors


def packed(tensors, order, indent) -> bytes:
    """The file of these tensors, its header in any order and spacing."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = entry(dtype, shape, (len(data), len(data) + len(raw)))
        data += raw
    header = {name: header[name] for name in order} | {"__metadata__": {"format": "pt"}}
    return file_bytes(json.dumps(header, indent=indent).encode(), data)


@FUZZ
@given(data=st.data(), tensors=contents(), indent=st.sampled_from([None, 0, 3]))
def test_a_valid_file_reads_as_the_library_reads_it(tmp_path, data, tensors, indent):
    """In any valid order: names, dtypes, shapes and bytes are those that `safetensors` finds."""
    content = packed(tensors, data.draw(st.permutations(list(tensors))), indent)
    found = {
        name: (info.dtype, info.shape, content[info.start : info.end])
        for name, info in parse(tmp_path, content).items()
    }
    library = {
        name: (one["dtype"], tuple(one["shape"]), bytes(one["data"]))
        for name, one in safetensors.deserialize(content)
    }
    assert found == library


@FUZZ
@given(st.data(), contents(), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4))
def test_changed_bytes_give_a_refusal_or_a_tight_file(tmp_path, data, tensors, noise):
    """ShadowError, or tensors that fill the data; where the library reads it, the same."""
    content = bytearray(packed(tensors, list(tensors), None))
    header_end = 8 + int.from_bytes(content[:8], "little")
    for where, value in noise:  # three in four hit the header
        content[where % (header_end if where % 4 else len(content))] = value
    try:
        found = parse(tmp_path, bytes(content))
    except ShadowError:
        return
    header_end = 8 + int.from_bytes(content[:8], "little")
    spans = sorted((info.start, info.end) for info in found.values())
    edges = [header_end, *(end for _, end in spans)]
    assert [start for start, _ in spans] == edges[:-1]
    assert edges[-1] == len(content)
    try:
        read = safetensors.deserialize(bytes(content))
    except safetensors.SafetensorError:
        return
    library = {name: (one["dtype"], tuple(one["shape"])) for name, one in read}
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == library


@FUZZ
@given(tensors=contents(), cut=st.integers(0), more=st.binary(min_size=1, max_size=9))
def test_a_file_of_another_length_is_refused(tmp_path, tensors, cut, more):
    """Every strict prefix of a valid file is refused, and so is the file with anything after it."""
    content = packed(tensors, list(tensors), None)
    with pytest.raises(ShadowError):
        parse(tmp_path, content[: cut % len(content)])
    with pytest.raises(ShadowError, match="longer than its header says"):
        parse(tmp_path, content + more)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["F32", 2**63, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)  # fmt: skip
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys(("dtype", "shape", "data_offsets"), JSON))


@FUZZ
@given(header=st.dictionaries(st.text(max_size=3), JSON | ENTRY, max_size=3))
def test_any_json_for_a_header_is_read_or_refused(tmp_path, header):
    """Whatever JSON stands in the header, the only fault is ShadowError."""
    try:
        found = parse(tmp_path, file_bytes(header))
    except ShadowError:
        return
    assert set(found) == header.keys() - {"__metadata__"}


@FUZZ
@given(content=st.binary(max_size=64))
def test_any_bytes_for_a_file_are_refused(tmp_path, content):
    """Random bytes are no safetensors file, and nothing but ShadowError says so."""
    with pytest.raises(ShadowError):
        parse(tmp_path, content)


HUGE = int("9" * 4300)  # the longest number that Python reads from text
# a file, or a header and the number of bytes behind it; and the reason
ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
REFUSED = {
    "empty": (b"", "it is empty"), "seven bytes": (b"\x02\0\0\0\0\0\0", "header length"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git-LFS pointer"
    ),
    "header longer than the file": ((10**6).to_bytes(8, "little") + b"{}", "cut inside the header"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "header length"),
    "not UTF-8": (file_bytes(b'{"\xff":1}'), "not JSON"),
    "not JSON": (file_bytes(b"{'a':1}"), "not JSON"),
    "not an object": (file_bytes([1, 2]), "not a JSON object"),
    "deep nesting": (file_bytes(b"[" * 100_000 + b"]" * 100_000), "not JSON"),
    "deep nesting in a tensor": (file_bytes(b'{"a":' * 50_000 + b"1" + b"}" * 50_000), "not JSON"),
    "a name twice": (file_bytes(b"{%b,%b}" % (ONE, ONE), bytes(4)), "not JSON"),
    "a key twice in a tensor": (
        file_bytes(b"{%b}" % ONE.replace(b'"F32"', b'"F32","dtype":"F32"'), bytes(4)), "not JSON"
    ),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "overlaps another"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, 8, "overlaps another"),
    "hole between": ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "hole"),
    "hole before": ({"a": entry(offsets=(8, 16))}, 16, "hole"),
    "data after": ({"a": entry()}, 9, "longer than its header says"),
    "data missing": ({"a": entry()}, 7, "cut short"),
    "data without tensors": ({}, 4, "longer than its header says"),
    "offsets too long for the shape": ({"a": entry(offsets=(0, 12))}, 12, "do not fill"),
    "offsets too short for the shape": ({"a": entry(offsets=(0, 4))}, 4, "do not fill"),
    "offsets reversed": ({"a": entry(offsets=(8, 0))}, 8, "data_offsets"),
    "one offset": ({"a": entry(offsets=(8,))}, 8, "data_offsets"),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, 8, "data_offsets"),
    "offset is a float": ({"a": entry(offsets=(0, 8.0))}, 8, "data_offsets"),
    "offset is a boolean": ({"a": entry("U8", (1,), (False, True))}, 1, "data_offsets"),
    "offset of 4300 digits": ({"a": entry("X9", (2,), (0, HUGE))}, 0, "cut short|data_offsets"),
    "negative dimension": ({"a": entry(shape=(-2, -1))}, 8, "shape"),
    "dimension is a boolean": ({"a": entry(shape=(True, 2))}, 8, "shape"),
    "dimension of 2^63": ({"a": entry(shape=(2**63, 0), offsets=(0, 0))}, 0, "shape"),
    "thousand dimensions": ({"a": entry(shape=(1,) * 1000, offsets=(0, 4))}, 4, "shape"),
    "shape is text": ({"a": {**entry(), "shape": "2"}}, 8, "shape"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8, "shape"),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8, "dtype"),
    "dtype with an escape": ({"a": entry("\x1b[31m")}, 8, "dtype"),
    "tensor is a number": ({"a": 1}, 0, "not described by an object"),
} | {
    f"name {name[:9]!a}": ({name: entry()}, 8, "unusable name")
    for name in ("", "a" * 2000, "\x1b]0;x\x07", "a\nb", "a\0", "a\u202eb", "a\ud800")
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_file_that_lies_is_refused_with_the_reason(tmp_path, fault):
    """Each break of the format is one ShadowError: a short line with the shard and the fault."""
    content, *size, reason = REFUSED[fault]
    if size:
        content = file_bytes(content, bytes(*size))
    with pytest.raises(ShadowError, match=reason) as caught:
        parse(tmp_path, content)
    assert caught.value.message.startswith("x.safetensors: ")
    assert len(caught.value.message) < 400


def test_a_header_has_at_most_so_many_entries(tmp_path, monkeypatch):
    """One more than the bound is refused, with the bound; the bound itself is read."""
    monkeypatch.setattr(safetensors_files, "MAX_ENTRIES", 3)
    names = {name: entry(shape=(1,), offsets=(4 * i, 4 * i + 4)) for i, name in enumerate("abcd")}
    three = {name: names[name] for name in "abc"}
    assert len(parse(tmp_path, file_bytes(three, bytes(12)))) == 3
    with pytest.raises(ShadowError, match="more than 3 entries") as caught:
        parse(tmp_path, file_bytes(names, bytes(16)))
    assert "shards" in caught.value.hint


def test_a_header_of_millions_of_values_is_refused_unparsed(tmp_path, monkeypatch):
    """Commas and brackets are counted before anything is parsed, also of what is no tensor."""
    raw = b'{"a": [' + b"[]," * 2_000_000 + b"0]}"
    monkeypatch.setattr("json.loads", lambda *text, **options: pytest.fail("parsed"))
    with pytest.raises(ShadowError, match="larger than that of any released model"):
        parse(tmp_path, len(raw).to_bytes(8, "little") + raw)


def test_a_folder_or_nothing_instead_of_a_file_is_refused(tmp_path):
    """A folder called like a shard, and a shard that is not there, are ShadowErrors."""
    (tmp_path / "x.safetensors").mkdir()
    for name in ("x.safetensors", "y.safetensors"):
        with pytest.raises(ShadowError, match=name):
            read_header(held_shard(tmp_path / name, name), name)


def test_an_unknown_dtype_is_named_and_the_rest_goes_on(tmp_path):
    """A dtype of the future is no fault of the file, although `safetensors` refuses all of it."""
    header = {"new": entry("F4_E9", (3, 3), (0, 5)), "old": entry(offsets=(5, 13))}
    content = file_bytes(header, bytes(5) + b"\0\0\x80?" * 2)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(content)
    found = parse(tmp_path, content)
    assert found["new"].dtype == "F4_E9"
    assert LocalFile(tmp_path / "x.safetensors").tensor(found["old"]).whole().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_are_those_of_the_library(tmp_path, dtype):
    """Every bit pattern of narrow formats, and random ones of wide ones."""
    form = FLOATS[dtype]
    width = form.bits // 8
    every = np.arange(2 ** min(form.bits, 16), dtype=np.uint16).astype(f"u{min(width, 2)}")
    raw = every.tobytes() if width <= 2 else np.random.default_rng(0).bytes(width * 4096)
    stored = torch.frombuffer(bytearray(raw), dtype=getattr(torch, form.torch_name)).reshape(16, -1)
    path = tmp_path / "x.safetensors"
    save_file({"first": stored[:3].clone(), "w": stored}, path)
    info = read_header(held_shard(path, path.name), path.name).tensors["w"]
    mine, theirs = LocalFile(path).tensor(info).whole(), load_file(path)["w"]
    assert (info.dtype, mine.dtype, mine.shape) == (dtype, theirs.dtype, theirs.shape)
    assert torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))


@pytest.mark.parametrize("shift", [1, 2, 3, 4, 4091])
def test_a_tensor_at_an_odd_offset_has_its_values(tmp_path, shift):
    """The format lets F64 data begin at any byte, on any page."""
    wanted = np.random.default_rng(shift).standard_normal((3, 5))
    pad, w = entry("U8", (shift,), (0, shift)), entry("F64", (3, 5), (shift, shift + 120))
    found = parse(tmp_path, file_bytes({"pad": pad, "w": w}, bytes(shift) + wanted.tobytes()))
    values = LocalFile(tmp_path / "x.safetensors").tensor(found["w"]).whole().numpy()
    assert (values == wanted).all()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2), (0, 2**40)])
def test_a_tensor_without_elements_is_read(tmp_path, shape):
    """A tensor of no elements has its shape and no bytes."""
    found = parse(tmp_path, file_bytes({"w": entry(shape=shape, offsets=(0, 0))}))
    assert LocalFile(tmp_path / "x.safetensors").tensor(found["w"]).whole().shape == shape


@pytest.mark.parametrize("shape", [(0, 2**48, 2**48), (2**48, 2**40, 0)])
def test_an_empty_tensor_with_huge_dimensions_is_refused_or_read(tmp_path, shape):
    """Dimensions whose product overflows behind a 0 do no harm: ShadowError, or no elements."""
    try:
        found = parse(tmp_path, file_bytes({"w": entry(shape=shape, offsets=(0, 0))}))
        assert LocalFile(tmp_path / "x.safetensors").tensor(found["w"]).numel() == 0
    except ShadowError as refused:
        assert "shape" in refused.message  # noqa: PT017


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path):
    """Tensors are read into memory: not even a bug could change a checkpoint."""
    content = file_bytes({"w": entry()}, bytes(8))
    found = parse(tmp_path, content)
    LocalFile(tmp_path / "x.safetensors").tensor(found["w"])[:,].fill_(7)
    assert (tmp_path / "x.safetensors").read_bytes() == content
