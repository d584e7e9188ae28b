"""Checkpoints that are typed -> the pairs of the registry that they name."""

import pytest

from shadow.errors import UsageError
from shadow.targets.families import load_families, pairs_of_references

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
    (["./folder"], None),
    (["one", "org/mid"], None),
    (["org/a", "org/b", "org/c"], None),
])  # fmt: skip
def test_a_checkpoint_names_the_pairs_that_end_in_it(families, targets, pairs):
    if pairs is None:
        with pytest.raises(UsageError):
            pairs_of_references(targets, families)
    else:
        assert {pair.full_name for pair in pairs_of_references(targets, families)} == pairs


def test_two_checkpoints_are_a_pair_of_their_own(families):
    (pair,) = pairs_of_references(["org/a@v1", "./b"], families)
    assert (pair.base.repo, pair.base.revision) == ("org/a", "v1")
    assert pair.tuned.is_folder
