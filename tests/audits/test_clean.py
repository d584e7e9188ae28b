"""`shadow clean`: what it removes, and what a journal cannot make it remove."""

from __future__ import annotations

import json
from pathlib import Path

import planted
import pytest
from measuring import pair_of

from shadow.audits.pair import Settings, run_pair
from shadow.checkpoints.pairing import Filter
from shadow.errors import ShadowError
from shadow.files import PARTIAL
from shadow.reports import atomic_replacement
from shadow.run.journal import JOURNAL, Journal, remove_unfinished
from shadow.run.sides import identity_of
from shadow.spectra.delta import Method
from shadow.targets.families import Pair

SETTINGS = Settings(Method(subspaces=False), Filter())
COMMIT = "0" * 40


@pytest.fixture
def pair(tmp_path) -> Pair:
    return pair_of(planted.toy(tmp_path / "base", 0), planted.toy(tmp_path / "tuned", 1))


def unfinished(folder: Path, *fetched: dict[str, object]) -> Path:
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
    unfinished(tmp_path / "out" / "f" / "p", shard)
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
    unfinished(tmp_path / "out" / "f" / "p", {**shard, "keep": False})
    assert shadow("clean", "-o", "out", env={"HF_HOME": str(tmp_path / "home")}).code == 0
    assert (tmp_path / "elsewhere" / "precious.txt").read_text() == "mine"


def test_an_audit_at_work_is_passed_over_and_told(shadow, tmp_path, pair):
    """The others are removed; exit code 1."""
    for name in "ac":
        unfinished(tmp_path / "out" / "f" / name)
    journal = Journal(tmp_path / "out" / "f" / "b", identity_of(pair, SETTINGS))
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
    with atomic_replacement.replacing(folder) as staged:
        for name in names:
            staged.put(name, b"the one after")
        monkeypatch.setattr(atomic_replacement, "put_in_place", lambda folder: None)  # killed
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
