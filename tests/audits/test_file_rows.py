"""files.parquet: every file of both sides, what became of it, and what differs inside it."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import planted
import pyarrow.parquet as pq
import pytest
import torch

from shadow.checkpoints import listing
from shadow.checkpoints.opening import Assembled, listings_of, open_folder
from shadow.checkpoints.stored_files import kind_of
from shadow.run.file_rows import file_rows

pytest_plugins = "hub_pairs"


def put(folder: Path, **files: object) -> None:
    """Writes files by name, `__` for a dot; what is neither bytes nor text as JSON."""
    for name, content in files.items():
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(data)


@pytest.fixture
def sides(tmp_path):
    """Two folders of one model."""
    base = planted.toy(tmp_path / "base", 0)
    (base / "config.json").unlink(missing_ok=True)
    shutil.copytree(base, tmp_path / "tuned")
    return base, tmp_path / "tuned"


def rows_of(base, tuned, skipped=()):
    return file_rows(listings_of(base, skipped), listings_of(tuned, skipped), print)


def recorded(base: Path, tuned: Path, **more) -> dict[str, dict]:
    """The row of each file, of the tuned side where it has the file."""
    rows = rows_of(open_folder(str(base)), open_folder(str(tuned)), **more)
    return {row["path"]: row for row in sorted(rows, key=lambda row: row["side"])}


def test_every_file_of_both_folders_has_a_row(sides):
    """State, kind, size, sha256; hidden folders and that of the report are left out."""
    base, tuned = sides
    put(base, README__md="a", LICENSE="x", gone__txt="")
    put(tuned, README__md="b", LICENSE="x", modeling_new__py="import os", extra__bin=b"\x80")
    for folder in (".git", "reports"):
        (tuned / folder).mkdir()
        put(tuned / folder, config="hidden")
    (tuned / "onnx").mkdir()
    put(tuned / "onnx", model__onnx="w")
    rows = recorded(base, tuned, skipped=[tuned / "reports"])
    assert {path: (row["state"], row["kind"]) for path, row in rows.items()} == {
        "model.safetensors": ("same", "weights"), "README.md": ("changed", "document"),
        "LICENSE": ("same", "document"), "gone.txt": ("removed", "other"),
        "modeling_new.py": ("added", "code"), "extra.bin": ("added", "pickle"),
        "onnx/model.onnx": ("added", "weights"),
    }  # fmt: skip
    assert rows["README.md"]["sha256"] == hashlib.sha256(b"b").hexdigest()
    assert rows["LICENSE"]["bytes"] == 1
    assert rows["modeling_new.py"]["differs"] == "code"
    assert rows["extra.bin"]["differs"] == "pickle"


def vocab(tokens):
    return {"model": {"vocab": tokens}}


def added(*more, **flags):
    return {"added_tokens": [{"id": 1, "content": "x", **flags}, *more]}


def merges(pairs):
    return {"model": {"merges": pairs}}


@pytest.mark.parametrize(
    ("name", "before", "after", "differs"),
    [
        ("config.json", {"rope_theta": 1e4, "x": 1}, {"rope_theta": 1e6, "x": 1.0}, "rope_theta"),
        ("config.json", {"vocab_size": 9}, {"text_config": {"vocab_size": 8}}, "vocab_size"),
        ("config.json", {"a_config": {"n": 1}}, {"a_config": {"n": 2}}, "a_config.n"),
        ("config.json", {"use": 1}, {"use": True}, "use"),
        ("config.json", {"a, b": 1}, {}, "other_keys"),
        ("modules.json", [{"idx": 0, "type": "T"}], [{"idx": 0, "type": "P"}], "modules"),
        ("modules.json", "[1,2]", "[1, 2]", None),
        ("config_sentence_transformers.json", {"prompts": {"q": "a"}}, {"prompts": {}}, "prompts"),
        # one RoPE, written in both ways, and keys that change nothing
        ("config.json", {"rope_theta": 1e6}, {"rope_parameters": {"rope_theta": 1e6}}, None),
        ("config.json", {"torch_dtype": "torch.a"}, {"dtype": "a"}, None),
        # what is said twice, in another way
        ("config.json", {"rope_theta": 1, "rope_parameters": {"rope_theta": 2}},
         {"rope_theta": 1, "rope_parameters": {"rope_theta": 3}}, "rope_theta"),
        ("config.json", {"rope_theta": 1, "rope_parameters": {"rope_theta": 1}},
         {"rope_theta": 1}, None),
        ("config.json", {"text_config": {"tie": True}, "tie": True},
         {"text_config": {"tie": True}, "tie": False}, "top.tie"),
        ("config.json", {"text_config": {"tie": True}, "tie": True}, {"tie": True}, None),
        ("generation_config.json", {"temperature": 1}, {"temperature": 0.6}, "temperature"),
        ("special_tokens_map.json", {"eos_token": "a"}, {"eos_token": {"content": "a"}}, None),
        ("special_tokens_map.json", {"eos_token": "a"}, {"eos_token": "b"}, "special_tokens"),
        ("tokenizer_config.json", {"chat_template": "a"}, {"chat_template": "b"}, "chat_template"),
        ("tokenizer.json", vocab({"a": 0}), vocab({"a": 1}), "vocabulary"),
        ("tokenizer.json", vocab([["a", -1]]), vocab([]), "vocabulary"),
        ("tokenizer.json", merges(["a b"]), merges([["a", "b"]]), None),
        ("tokenizer.json", merges(["a b"]), merges(["b a"]), "merges"),
        ("tokenizer.json", added(lstrip=False), added(lstrip=True), "special_tokens"),
        ("special_tokens_map.json", {"additional_special_tokens": ["a"]},
         {"additional_special_tokens": [{"content": "a"}]}, None),
        ("config.json", {"rope_scaling": {"rope_type": "x", "factor": 2}},
         {"rope_parameters": {"rope_type": "x", "factor": 2}}, None),
        ("config.json", {"rope_scaling": {"factor": 2}},
         {"rope_parameters": {"factor": 4}}, "rope_scaling.factor"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": "x"}}},
         {"added_tokens_decoder": {"1": {"content": "x", "special": True}}}, "special_tokens"),
        ("tokenizer.json", merges([["a b", "c"]]), merges([["a", "b c"]]), "merges"),
        ("tokenizer.json", vocab([["a", 1], ["a", 1], ["b", 2]]),
         vocab([["b", 2], ["a", 1], ["b", 2]]), "vocabulary"),
        ("tokenizer.json", {"version": "1.0"}, {"version": "1.1"}, None),
        ("vocab.txt", "a\na\nb", "b\na\nb", "vocabulary"),
        ("tokenizer.json", {"normalizer": None}, {"normalizer": {"type": "NFC"}}, "normalizer"),
        ("merges.txt", "#version: 0.2\na b", "a b", None),
        ("tokenizer.model", b"a", b"b", "tokenizer"),
        ("modeling_x.py", "a", "b", "code"),
        ("training_args.bin", b"a", b"b", None),
        ("README.md", "a", "b", None),
    ],
)  # fmt: skip
def test_what_matters_in_small_files_is_named(sides, name, before, after, differs):
    """By a word in `differs`, with both values in the detail; nothing where nothing matters."""
    base, tuned = sides
    put(base, **{name: before})
    put(tuned, **{name: after})
    row = recorded(base, tuned)[name]
    assert row["state"] == "changed"
    assert row["differs"] == differs
    if before == {"rope_theta": 1e4, "x": 1}:
        assert row["detail"] == "rope_theta 10000.0 -> 1000000.0"


TEMPLATE, NONE = "chat_template.jinja", {"tokenizer_config.json": {}}


def in_config(text):
    return {"tokenizer_config.json": {"chat_template": text}}


@pytest.mark.parametrize(("before", "after", "differs"), [
    (in_config("x"), NONE | {TEMPLATE: "x"}, {}),
    (in_config("x"), NONE | {TEMPLATE: "y"}, {TEMPLATE, *NONE}),
    (in_config("x"), in_config("y") | {TEMPLATE: "x"}, {TEMPLATE, *NONE}),
    (in_config("x"), in_config("x") | {TEMPLATE: "x"}, {}), (in_config("x"), NONE, {*NONE}),
    (NONE | {TEMPLATE: "x"}, NONE, {TEMPLATE}),
])  # fmt: skip
def test_a_chat_template_is_one_wherever_it_lies(sides, before, after, differs):
    """Moved to a file of its own it is the same; changed or lost on the way it is not."""
    for side, content in zip(sides, (before, after), strict=True):
        put(side, **content)
    found = {path: row["differs"] for path, row in recorded(*sides).items() if row["differs"]}
    assert found == dict.fromkeys(differs, "chat_template")


HOSTILE = {
    "deep": b"[" * 100_000, "nested": b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "twice": b'{"a": 1, "a": 2}', "nan": b'{"a": NaN}', "list": b"[]", "cut": b'{"a": ',
    "empty": b"", "utf-16": '{"a": "\u00e9"}'.encode("utf-16"),
    "number": b'{"a": ' + b"9" * 5_000 + b"}", "surrogate": b'{"a": "\\ud800", "\\udfff": 1}',
    "control": b'{"\\u001b[31m": "\\u0000\\u202e"}', "long": b'{"a": "' + b"x" * 1_000_000 + b'"}',
    "many": b'{"a": [' + b"0," * 3_000_000 + b"0]}",
    "types": b'{"model": 1, "added_tokens": {"a": []}, "chat_template": 5, "text_config": [],'
    b' "rope_parameters": "x", "added_tokens_decoder": 3, "eos_token": [[{}]]}',
    "types inside": b'{"model": {"vocab": 5, "merges": {"a": 1}}, "added_tokens": [1, {"id": []}],'
    b' "chat_template": [{"name": 1}], "rope_parameters": {"rope_theta": {}}}',
}  # fmt: skip


NAMES = ["preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_a_row_with_a_detail(sides, name, kind):
    """On either side, also against itself with a space behind; its text is visible on one line."""
    base, tuned = sides
    for first, second in ((b'{"b": 1}', HOSTILE[kind]), (HOSTILE[kind], HOSTILE[kind] + b" ")):
        put(base, **{name: first})
        put(tuned, **{name: second})
        for one, other in ((base, tuned), (tuned, base)):
            row = recorded(one, other)[name]
            assert row["state"] == "changed"
            assert len(row["detail"]) <= 500
            assert row["detail"].isprintable()
            json.dumps(row).encode()


def test_hostile_names_and_things_that_are_no_files(sides):
    """A FIFO is not opened, a link to a folder not followed, a name that is no text escaped."""
    base, tuned = sides
    os.mkfifo(tuned / "config.json.pipe")
    (tuned / "again").symlink_to(tuned)
    (tuned / "broken").symlink_to("nowhere")
    (tuned / "\x1b[31m.py").write_text("")
    Path(os.fsdecode(os.fsencode(tuned) + b"/\xff\xfe.txt")).write_text("")
    rows = recorded(base, tuned)
    assert rows["config.json.pipe"]["detail"] == "not a regular file"
    assert rows["config.json.pipe"]["bytes"] is None
    assert rows["broken"]["detail"].startswith("cannot be read")
    assert "\\x1b[31m.py" in rows
    assert "again" not in rows
    assert any("udcff" in path for path in rows)
    for path in rows:
        assert path.isprintable()


def test_large_files_of_folders_are_told_apart_by_a_sample(sides, monkeypatch):
    """The same sample proves nothing; one file is the same."""
    base, tuned = sides
    monkeypatch.setattr(listing, "SMALL", 1_000)
    monkeypatch.setattr(listing, "SAMPLE", 10)
    put(base, a__gguf=b"a" * 9_000, b__gguf=b"b" * 9_000, c__gguf=b"c" * 9_000)
    put(tuned, a__gguf=b"a" * 9_000, b__gguf=b"x" * 9_000, c__gguf=b"c" * 9_001)
    os.link(base / "a.gguf", base / "linked.gguf")
    os.link(base / "a.gguf", tuned / "linked.gguf")
    rows = recorded(base, tuned)
    states = {path: row["state"] for path, row in rows.items() if path.endswith("gguf")}
    assert states == {
        "a.gguf": "unknown", "b.gguf": "changed", "c.gguf": "changed", "linked.gguf": "same",
    }  # fmt: skip
    assert rows["a.gguf"]["sha256"] is None


@pytest.mark.parametrize("is_base", [True, False])
@pytest.mark.parametrize(("content", "state"), [("a", "same"), ("b", "changed")])
def test_the_file_of_a_folder_is_compared_with_the_checksum_of_a_repository(
    sides, content, state, is_base
):
    """Whichever side the repository is, which has no content here."""
    base, tuned = sides
    put(base, README__md="a")
    put(tuned, README__md=content)
    listings = [listings_of(open_folder(str(side)), ()) for side in sides]
    files = {"README.md": listings[not is_base][0][1].files["README.md"]}
    blob = b"blob 1\0" + (b"a" if is_base else content.encode())  # as Git has it
    checksum = f"git:{hashlib.sha1(blob).hexdigest()}"
    files["README.md"] = replace(files["README.md"], checksum=checksum)
    listings[not is_base] = [("language", listing.Listing("org/name", files, commit="c" * 40))]
    rows = [row for row in file_rows(*listings, print) if row["path"] == "README.md"]
    assert {row["state"] for row in rows} == {state}


def test_of_a_folder_without_end_nothing_is_called_removed(sides, monkeypatch):
    """Where not all files are listed, those that lack are unknown."""
    base, tuned = sides
    put(base, only__txt="")
    put(tuned, **{f"{number}.txt": "" for number in range(9)})
    monkeypatch.setattr(listing, "MAX_FILES", 5)
    assert not listings_of(open_folder(str(tuned)), ())[0][1].is_complete
    rows = recorded(base, tuned)
    assert rows["only.txt"]["state"] == "unknown"
    assert rows["0.txt"]["state"] == "added"


def test_a_base_for_each_component_is_matched_by_its_language(tmp_path, sides):
    """Files of the language base are those of the side; that there are others is a row."""
    base, tuned = sides
    tower = planted.toy(tmp_path / "tower", 3)
    put(base, config__json={"rope_theta": 1})
    put(tower, config__json={"hidden": 1})
    put(tuned, config__json={"text_config": {"rope_theta": 2}})
    assembled = Assembled(
        (("language", open_folder(str(base))), ("vision", open_folder(str(tower))))
    )
    rows = rows_of(assembled, open_folder(str(tuned)))
    found = {(row["path"], row["side"]): (row["state"], row.get("differs")) for row in rows}
    assert found["config.json", "tuned"] == ("changed", "rope_theta")
    assert found["*", "base"] == ("unknown", None)
    assert found["config.json", "base"] == ("changed", None)


def test_an_adapter_removes_nothing(tmp_path, sides):
    """What the base has and the adapter has not stays in use."""
    base, _ = sides
    put(base, config__json={}, tokenizer_config__json={"a": 1})
    factor = {"base_model.model.x.lora_A.weight": torch.ones(2, 4)}
    adapter = planted.adapter(tmp_path / "adapter", {}, factor)
    put(adapter, tokenizer_config__json={"a": 2})
    rows = recorded(base, adapter)
    assert rows["config.json"]["state"] == rows["model.safetensors"]["state"] == "unknown"
    assert rows["tokenizer_config.json"]["differs"] == "a"
    assert rows["adapter_model.safetensors"]["state"] == "added"


KINDS = {
    "weights": ["model-00001-of-00002.safetensors"], "index": ["model.safetensors.index.json"],
    "pickle": ["pytorch_model.bin", "optimizer.PT"],
    "config": ["preprocessor_config.json", "adapter_config.json"],
    "generation": ["generation_config.json"], "chat_template": ["a/b/chat.jinja"],
    "tokenizer": ["spiece.model", "tekken.json", "vocab.bpe", "vocab-src.json"],
    "code": ["x.py", "cache_kernel_256.cu"], "document": ["LICENSE.txt", "README.md"],
    "other": [".gitattributes"],
}  # fmt: skip


def test_a_kind_follows_from_the_name_alone():
    assert {kind: [path for path in paths if kind_of(path) == kind] for kind, paths in
            KINDS.items()} == KINDS  # fmt: skip


def test_of_the_hub_only_small_files_that_differ_are_fetched(run, hub, tmp_path):
    """Neither equal files nor documents; offline nothing is called removed."""
    base, tuned = planted.toy(tmp_path / "a", 0), planted.toy(tmp_path / "b", 1)
    for folder in (base, tuned):
        put(folder, tokenizer__json={"model": {"vocab": {"a": 0}}}, README__md=folder.name)
    put(base, config__json={"rope_theta": 1}, only__txt="x", generation_config__json={"t": 1})
    put(tuned, config__json={"rope_theta": 2}, generation_config__json={"t": 2})
    hub.add("org/a", base)
    hub.add("org/b", tuned)
    pair = ("audit", "--base", "org/a", "--tuned", "org/b")
    run(*pair, "-o", "out").assert_done(3)  # two models of no relation
    asked = {
        request.path.rsplit("/", 1)[-1] for request in hub.requests if "resolve" in request.path
    }
    assert {"config.json", "generation_config.json"} <= asked
    assert not {"tokenizer.json", "README.md", "only.txt"} & asked
    rows = listed(tmp_path / "out")
    assert rows["config.json"][:2] == ("changed", "rope_theta")
    assert rows["generation_config.json"][:2] == ("changed", "t")
    assert rows["tokenizer.json"] == ("same", None, None)
    assert rows["README.md"] == ("changed", None, None)
    assert rows["only.txt"][0] == "removed"

    run(*pair, "-o", "off", "--offline").assert_done(3)
    offline = listed(tmp_path / "off")
    assert "only.txt" not in offline
    assert {state for state, _, _ in offline.values()} <= {"changed", "same", "unknown"}
    assert offline["config.json"][:2] == ("changed", "rope_theta")

    run("audit", "--base", str(base), "--tuned", "org/b", "-o", "mixed").assert_done(3)
    mixed = {path: row[:2] for path, row in listed(tmp_path / "mixed").items()}
    assert mixed == {path: row[:2] for path, row in rows.items()}


def test_a_file_in_a_subfolder_of_the_hub_is_compared_with_one_of_a_folder(run, hub, tmp_path):
    """By its own path; of one size in both, so that their bytes decide."""
    for number, name in enumerate(("here", "both/sub")):
        put(planted.toy(tmp_path / name, number), config__json={"rope_theta": number})
    hub.add("org/both", tmp_path / "both")
    text = "fam:\n  base: {repo: org/both, subfolder: sub}\n  x: ./here\n"
    (tmp_path / "r.yaml").write_text(text)
    run("audit", "fam", "--registry", ".", "-o", "out").assert_done(3)
    assert listed(tmp_path / "out")["config.json"][:2] == ("changed", "rope_theta")


def listed(output: Path) -> dict[str, tuple]:
    """By file, of tuned where it is there: state, what differs, sha256 if none was fetched."""
    (path,) = output.rglob("files.parquet")
    rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: row["side"])
    return {
        row["path"]: (row["state"], row["differs"], row["sha256"] if row["differs"] else None)
        for row in rows
    }


CONFIG, PICKLE = "config.json", "training_args.bin"


@pytest.mark.parametrize(("before", "after", "code", "named"), [
    ({CONFIG: {"rope_theta": 1}}, {CONFIG: {"rope_theta": 1.0}}, 0, "config.json"),
    ({CONFIG: {}, PICKLE: "a"}, {CONFIG: {}, PICKLE: "b"}, 0, "1 pickle"),
    ({CONFIG: {}, PICKLE: "a"}, {CONFIG: {}}, 0, "1 pickle"),
    ({CONFIG: {"rope_theta": 1}}, {CONFIG: {"rope_theta": 2}}, 4, "rope_theta 1 -> 2"),
    ({CONFIG: {}}, {CONFIG: {}, "x.py": ""}, 4, "x.py"),
    ({CONFIG: {}, "vocab.json": os.mkfifo}, {CONFIG: {}, "vocab.json": os.mkfifo}, 5, ""),
    ({}, {}, 5, ""),
])  # fmt: skip
def test_verify_files(sides, shadow, before, after, code, named):
    """Holds, does not hold, cannot be told; without any weights."""
    for folder, content in zip(sides, (before, after), strict=True):
        (folder / "model.safetensors").unlink()
        put(folder, README__md=folder.name)
        for name, made in content.items():
            if made is os.mkfifo:
                os.mkfifo(folder / name)
            else:
                put(folder, **{name: made})
    done = shadow("verify", "files", *sides)
    assert (done.code, named in done.out) == (code, True), done.out + done.err
    assert shadow("verify", "files", sides[0], sides[1] / "gone").code == 1


def test_rows_of_tokens_are_found_on_the_hub(run, hub, tmp_path):
    """In vocab.json, and offline in the cache: rows in reverse order, each 1 % apart."""
    embed = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    for side, step in (("a", 1), ("b", -1)):
        rows = [*range(24)][::step]
        own = {"model.embed_tokens.weight": embed[rows] * (1 + step / 200)}
        folder = planted.write(tmp_path / side, planted.matrices(0) | own, planted.LLAMA)
        put(folder, vocab__json={f"t{row}": at for at, row in enumerate(rows)})
        hub.add(f"org/{side}", folder)
    pair = ("audit", "--base", "org/a", "--tuned", "org/b", "--level", "norms")
    for out, more in (("on", ()), ("off", ("--offline",))):
        run(*pair, "-o", out, *more).assert_done()
        (path,) = (tmp_path / out).rglob("matrices.parquet")
        (row,) = [row for row in pq.read_table(path).to_pylist() if row["relative_norm"]]
        assert row["matched_by"] == "token"
        assert row["relative_norm"] == pytest.approx(0.01 / 1.005, rel=1e-5)
