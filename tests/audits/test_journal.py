"""What an unfinished audit left: lines of its journal that count, what `clean` removes."""

import json
import shutil
from pathlib import Path
from zlib import crc32

import planted
import pyarrow.parquet as pq
import pytest
import torch
from measuring import StoppedError, pair_of, planted_pair, stopped_after

from shadow.checkpoints.pairing import Filter
from shadow.engines.pair import run_pair
from shadow.errors import ShadowError
from shadow.files import PARTIAL
from shadow.reports import folders
from shadow.run.journal import JOURNAL, Fetched, Journal, MatrixOutcome, remove_unfinished
from shadow.run.runtime import Runtime
from shadow.run.settings import Settings
from shadow.run.sides import identity_of
from shadow.spectra.measurement import Method
from shadow.storage import Store, work_folder
from shadow.targets.families import Pair

SETTINGS = Settings(Method(), Filter())
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A pair of a matrix and a vector, and a folder with all of its outcomes in a journal."""
    folder = tmp_path_factory.mktemp("unfinished")
    base = {UP: torch.eye(8, 6), NORM: torch.ones(6)}
    tuned = {name: W + torch.arange(W.numel()).view(W.shape) for name, W in base.items()}
    pair = planted_pair(folder, base, tuned)
    stopping = Runtime(show=stopped_after(2), jobs=1)
    with pytest.raises(StoppedError):
        run_pair(pair, SETTINGS, folder / "out", stopping)
    return pair, folder / "out"


def copied(there, folder):
    """A copy of the journal, and its lines: the first, that of the vector, and of the matrix."""
    shutil.copytree(there, folder / "out")
    journal = next(folder.glob("out/*/*/.partial/journal.jsonl"))
    first, *lines = journal.read_bytes().splitlines(keepends=True)
    matrix, vector = sorted(lines, key=lambda line: json.loads(line)[1]["status"])
    return journal, first, vector, matrix


@pytest.mark.parametrize("at", [4, 40, -200, -3], ids=["sum", "key", "sigma", "end"])
def test_a_line_that_is_not_as_it_was_written_is_measured_again(unfinished, tmp_path, at):
    """A byte that another program changed; the line of the vector stands first."""
    pair, there = unfinished
    journal, first, vector, line = copied(there, tmp_path)
    matrix = bytearray(line)
    matrix[at] ^= 1
    journal.write_bytes(first + vector + matrix)
    states = []
    result = run_pair(pair, SETTINGS, tmp_path / "out", Runtime(show=states.append, jobs=1))
    assert states[0].done == 1
    assert result.measured == 1
    names = pq.read_table(result.folder / "matrices.parquet")["subject"].to_pylist()
    assert names == ["base", "tuned", "delta"]


WRONG = {
    "key": ["x"], "status": None, "reason": 1, "detail": {}, "cast": 0, "zero": [], "seconds": "1",
    "delta_norm": "1", "base_norm": [1], "verified": [1, None], "nonfinite": [1],
    "checksums": [], "measurements": 1,
}  # fmt: skip
WRONG_OF_MEASUREMENT = {"subject": None, "precision": 1, "sigma": 1, "values": []}
WRONG_VALUES = {
    "frobenius_norm": "1", "spikes": 1.5, "cosine": True, "kept_reason": 0, "unknown": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", [*WRONG, *WRONG_OF_MEASUREMENT, *WRONG_VALUES])
def test_a_line_with_values_of_other_types_is_measured_again(unfinished, tmp_path, name):
    """Its sum is right, as of a line that another program wrote."""
    pair, there = unfinished
    journal, first, vector, matrix = copied(there, tmp_path)
    entry = json.loads(matrix)[1]
    delta = entry["measurements"][-1]
    if name in WRONG:
        entry[name] = WRONG[name]
    elif name in WRONG_OF_MEASUREMENT:
        delta[name] = WRONG_OF_MEASUREMENT[name]
    else:
        delta["values"][name] = WRONG_VALUES[name]
    content = json.dumps(entry).encode()
    journal.write_bytes(first + vector + b'["%08x", %b]\n' % (crc32(content), content))
    assert run_pair(pair, SETTINGS, tmp_path / "out", Runtime(jobs=1)).measured == 1


SIDE = {"repo": "./x", "commit": None, "fingerprint": "0"}
IDENTITY = {
    "version": "1", "schema": 1, "family": "f", "pair": "a..b", "base": SIDE, "tuned": SIDE,
    "settings": {"chosen": {}},
}  # fmt: skip
OUTCOMES = [MatrixOutcome("identical", key=f"key {number}") for number in range(3)]


def of_journal(folder, identity=IDENTITY, add=()):
    """The keys that a journal holds when it is opened, and then some outcomes are added."""
    journal = Journal(folder, identity)
    try:
        keys = list(journal.outcomes)
        for outcome in add:
            journal.add(outcome)
    finally:
        journal.close()
    return keys


@pytest.mark.parametrize("lost", [1, 2, 30])
def test_behind_a_tail_that_was_cut_the_journal_goes_on(tmp_path, lost):
    """The line that is not whole is gone from the file, and what is added then is read back."""
    assert of_journal(tmp_path, add=OUTCOMES) == []
    file = tmp_path / ".partial/journal.jsonl"
    file.write_bytes(file.read_bytes()[:-lost])
    keys = [outcome.key for outcome in OUTCOMES]
    assert of_journal(tmp_path, add=OUTCOMES[2:]) == keys[:2]
    assert of_journal(tmp_path) == keys


def test_behind_a_fetched_shard_that_was_cut_the_journal_goes_on(tmp_path):
    """Its line is gone from the file too."""
    journal = Journal(tmp_path, IDENTITY)
    journal.note_fetched(Fetched("o/m", "0" * 40, "x", None, keep=False))
    journal.close()
    file = tmp_path / ".partial/journal.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    assert of_journal(tmp_path, add=OUTCOMES) == []
    assert of_journal(tmp_path) == [outcome.key for outcome in OUTCOMES]


def test_outcomes_of_another_audit_are_dropped(tmp_path):
    """Of another identity, or behind a first line that is none."""
    of_journal(tmp_path, add=OUTCOMES)
    other = {**IDENTITY, "settings": {"chosen": {"layers": [1]}}}
    assert of_journal(tmp_path, other, OUTCOMES[:1]) == []
    assert of_journal(tmp_path, other) == [OUTCOMES[0].key]
    file = tmp_path / ".partial/journal.jsonl"
    file.write_bytes(b"{}\n" + file.read_bytes())
    assert of_journal(tmp_path, other) == []


# shadow clean

COMMIT = "0" * 40


@pytest.fixture
def pair(tmp_path) -> Pair:
    return pair_of(planted.toy(tmp_path / "base", 0), planted.toy(tmp_path / "tuned", 1))


def left_behind(folder: Path, *fetched: dict[str, object]) -> Path:
    """What a killed audit leaves in the folder of a pair."""
    (folder / PARTIAL).mkdir(parents=True)
    lines = [{"version": "0"}, *({"fetched": one} for one in fetched)]
    (folder / PARTIAL / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    "path", ["{victim}", "../../../{name}", "a/../../../../{name}", "..\\{name}", "C:{name}", ""]
)
@pytest.mark.parametrize("repo", ["o/m", "../../o/m"])
def test_a_journal_names_no_file_outside_of_the_cache(shadow, tmp_path, path, repo):
    """A report folder from the internet: nothing but its own unfinished work is removed."""
    cache = tmp_path / "home" / "hub"
    snapshot = cache / "models--o--m" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    victims = [tmp_path / "precious.txt", cache / "precious.txt", snapshot.parent / "precious.txt"]
    for victim in victims:
        victim.write_text("mine")
    named = path.format(victim=victims[0], name="precious.txt")
    shard = {"repo": repo, "commit": COMMIT, "path": named, "checksum": None, "keep": False}
    left_behind(tmp_path / "out" / "f" / "p", shard)
    shadow("clean", "-o", "out", env={"HF_HOME": str(tmp_path / "home")}).assert_done()
    assert not list((tmp_path / "out").iterdir())
    assert [victim.read_text() for victim in victims] == ["mine"] * 3


def test_a_link_in_the_cache_leads_nowhere(shadow, tmp_path):
    """A folder of a snapshot that is a link: the file behind it stays."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious.txt").write_text("mine")
    snapshot = tmp_path / "home" / "hub" / "models--o--m" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "sub").symlink_to(tmp_path / "elsewhere")
    shard = {"repo": "o/m", "commit": COMMIT, "path": "sub/precious.txt", "checksum": None}
    left_behind(tmp_path / "out" / "f" / "p", {**shard, "keep": False})
    assert shadow("clean", "-o", "out", env={"HF_HOME": str(tmp_path / "home")}).code == 0
    assert (tmp_path / "elsewhere" / "precious.txt").read_text() == "mine"


def test_what_is_removed_is_named(inside, tmp_path, monkeypatch):
    """Or that there is nothing."""
    left_behind(tmp_path / "out" / "f" / "p")
    done = inside("clean", "-o", "out", width=200).err
    assert done.split() == ["removed", "the", "unfinished", "work", "of", "1", "audit", "out/f/p"]
    assert inside("clean", "-o", "out").err == "no unfinished audits there\n"
    monkeypatch.setenv("SHADOW_WORK_DIR", str(tmp_path / "work"))
    assert inside("clean", "-o", "memory://bucket/x").err == "no unfinished audits there\n"
    left_behind(work_folder(Store("memory://bucket/x")) / "f" / "p")
    assert "of 1 audit" in inside("clean", "-o", "memory://bucket/x").err


def test_an_audit_at_work_is_passed_over_and_told(shadow, tmp_path, pair):
    """The others are removed; exit code 1."""
    for name in "ac":
        left_behind(tmp_path / "out" / "f" / name)
    journal = Journal(tmp_path / "out" / "f" / "b", identity_of(pair, SETTINGS, Runtime()))
    try:
        done = shadow("clean", "-o", "out")
    finally:
        journal.close()
    assert done.code == 1
    (error,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert "out/f/b" in error
    assert [path.name for path in (tmp_path / "out" / "f").iterdir()] == ["b"]


def test_files_that_were_about_to_take_their_places_get_them(tmp_path, pair, monkeypatch):
    """Killed between the first and the last move: the report is the new one, not a mixture."""
    folder = run_pair(pair, SETTINGS, tmp_path / "out").folder
    names = ("summary.json", "matrices.parquet")
    with folders.replacing(folder) as staged:
        for name in names:
            staged.put(name, b"the one after")
        monkeypatch.setattr(folders, "put_in_place", lambda folder: None)  # killed
    assert b"the one after" not in (folder / "summary.json").read_bytes()
    (folder / PARTIAL / JOURNAL).touch()
    assert [cleaned for cleaned, _ in remove_unfinished(tmp_path / "out")] == [folder]
    assert [(folder / name).read_bytes() for name in names] == [b"the one after"] * 2
    assert not (folder / PARTIAL).exists()


@pytest.mark.parametrize("which", ["journal", "folder"])
def test_a_journal_that_is_a_link_is_refused(tmp_path, pair, which):
    """Nothing is written behind it."""
    (tmp_path / "elsewhere").mkdir()
    victim = tmp_path / "elsewhere" / JOURNAL
    victim.write_text("mine")
    folder = tmp_path / "out" / pair.family / pair.name
    folder.mkdir(parents=True)
    if which == "folder":
        (folder / PARTIAL).symlink_to(victim.parent)
    else:
        (folder / PARTIAL).mkdir()
        (folder / PARTIAL / JOURNAL).symlink_to(victim)
    with pytest.raises(ShadowError):
        run_pair(pair, SETTINGS, tmp_path / "out")
    assert victim.read_text() == "mine"
    assert not list(folder.rglob("*.parquet"))
