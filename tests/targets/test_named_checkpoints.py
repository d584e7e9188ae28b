"""Checkpoints that are typed -> the pairs of the registry that they name."""

import pytest

from shadow.errors import UsageError
from shadow.targets.families import load_families, pairs_of_references
from shadow.targets.references import parse_checkpoint

FAMILIES = """
one:
  base: org/base
  mid: org/mid
  end: {repo: org/end, revision: v2}
two:
  base: org/base
  other: org/other
three:
  base: org/third
  x: org/x
  y: org/y
"""


@pytest.fixture
def families(tmp_path):
    (tmp_path / "mine.yaml").write_text(FAMILIES)
    return load_families(tmp_path)


@pytest.mark.parametrize(("targets", "pairs"), [
    (["org/other"], {"two:base..other"}),
    (["ORG/Other"], {"two:base..other"}),  # the Hub takes names in any case
    (["org/mid"], {"one:base..mid"}),
    (["org/end"], {"one:base..end"}),
    (["org/end@v2"], {"one:base..end"}),
    (["org/end@v1"], None),
    (["org/other@main"], None),  # the family names no revision
    (["org/third"], {"three:base..x", "three:base..y"}),  # of a base all from it
    (["org/base"], None),  # of two families
    (["org/none"], None),
])  # fmt: skip
def test_a_checkpoint_names_the_pairs_that_end_in_it(families, targets, pairs):
    if pairs is None:
        with pytest.raises(UsageError):
            pairs_of_references(targets, families)
    else:
        assert {pair.full_name for pair in pairs_of_references(targets, families)} == pairs


@pytest.mark.parametrize(("targets", "fault", "hint"), [
    (["toy", "org/mid"], "'toy' is not a checkpoint, but others here are", "or families alone"),
    (["sub", "org/mid"], "'sub' is not a checkpoint", "write ./sub"),
    (["w.safetensors", "./b"], "'w.safetensors' is not", "for the file, write ./w.safetensors"),
    (["./a", "./b", "./c"], "3 checkpoints: a pair has two", "several pairs go into a --list"),
    (["./a"], "'./a' is one checkpoint, and a pair has two", "verify whole './a'"),
])  # fmt: skip
def test_what_is_no_pair_is_refused_with_what_to_write(
    families, tmp_path, monkeypatch, targets, fault, hint
):
    (tmp_path / "sub").mkdir()
    (tmp_path / "w.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        pairs_of_references(targets, families)
    assert raised.value.message.startswith(fault)
    assert hint in raised.value.hint


@pytest.mark.parametrize(("text", "repos"), [
    ("language=./lm,vision=org/tower", ["HERE/lm", "org/tower"]), ("org/x", ["org/x"]),
    ("./x", ["HERE/x"]), ("language=./lm,language=./b", "language=./b"), ("language=./lm,", "''"),
    ("lang=./lm", "'lang'"),
])  # fmt: skip
@pytest.mark.parametrize("folder", [None, "lists"])
def test_a_checkpoint_for_each_component(tmp_path, monkeypatch, text, repos, folder):
    """Folders are relative to where it was typed, or to the file that has it."""
    monkeypatch.chdir(tmp_path)
    folder = folder and tmp_path / folder
    if isinstance(repos, str):
        with pytest.raises(UsageError, match=repos):
            parse_checkpoint(text, folder)
        return
    found = [reference.repo for _, reference in parse_checkpoint(text, folder).parts]
    assert found == [repo.replace("HERE", str(folder or tmp_path)) for repo in repos]


def test_two_checkpoints_are_a_pair_of_their_own(families):
    (pair,) = pairs_of_references(["org/a@v1", "./b"], families)
    assert (pair.base.repo, pair.base.revision) == ("org/a", "v1")
    assert pair.tuned.is_folder
