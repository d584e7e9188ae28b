"""Checkpoints that are typed where families are."""

import planted
import pytest

from shadow.errors import UsageError
from shadow.targets.lists import select
from shadow.targets.references import parse_reference, typed_reference

FAMILIES = """
toy:
  base: org/toy
  sft: org/toy-sft
  chat: org/toy-chat@v2
  pairs: [base..sft, base..chat, sft..chat]
  tags: [language]
cousin:
  base: org/toy-chat
  better: org/better
  tags: [language]
twin:
  base: org/other
  better: org/better
  tags: [language]
"""


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "toy.yaml").write_text(FAMILIES)
    return tmp_path / "own"


@pytest.mark.parametrize(("target", "pairs"), [
    ("org/toy-sft", ["toy:base..sft"]),  # as tuned its pairs, in any case
    ("Org/Toy-SFT", ["toy:base..sft"]),
    ("org/toy", ["toy:base..sft", "toy:base..chat"]),  # else all pairs from it as a base
    ("org/toy-chat@v2", ["toy:base..chat", "toy:sft..chat"]),
    ("org/toy-chat", ["toy:base..chat", "toy:sft..chat"]),
])  # fmt: skip
def test_one_model_of_the_hub_is_looked_up(registry, target, pairs):
    assert [pair.full_name for pair in select([target], registry=registry).pairs] == pairs


@pytest.mark.parametrize(("targets", "named", "hint"), [
    (["org/better"], "org/better", "cousin, twin"),
    (["org/toy-sfft"], "org/toy-sfft", "org/toy-sft"),
    (["org/toy-sft@v9"], "org/toy-sft", "two checkpoints"),
    (["./mine"], "./mine", "BASE TUNED"),
    (["toy", "./mine"], "toy", "./NAME"),
    (["./mine", "nothere"], "nothere", "./NAME"),
    (["./a", "./b", "./c"], "3 checkpoints", "--list"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(targets, named, hint, registry):
    """With what to write instead."""
    with pytest.raises(UsageError, match=named) as caught:
        select(targets, registry=registry)
    assert hint in caught.value.hint


def test_a_checkpoint_typed_without_its_dot_is_refused_at_once(shadow, tmp_path):
    """No request is made; the hint has both ways to write it. A revision makes it a model."""
    folder = tmp_path / "org" / "toy"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for arguments in (("org/toy", "org/toy-sft"), ("--base", "org/toy-sft", "--tuned", "org/toy")):
        done = shadow("audit", *arguments, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
        assert "org/toy" in done.assert_refused(2)
        assert "./org/toy" in done.err
        assert "org/toy@main" in done.err
    assert typed_reference("org/toy@main").revision == "main"
    assert not parse_reference("org/toy").is_folder  # of a list or a registry


def test_a_pair_has_the_name_that_it_is_given(shadow, tmp_path):
    """--name makes the folder; it is refused beside families, and where it names no pair."""
    for seed, side in enumerate(("one", "two")):
        planted.toy(tmp_path / side, seed)
    shadow("audit", "./one", "./two", "-o", "out").assert_done(3)
    (given,) = (tmp_path / "out" / "two").iterdir()
    assert given.name.startswith("one..two-")
    shadow("audit", "./one", "./two", "-o", "out", "--name", "mine:base..v2").assert_done(3)
    assert (tmp_path / "out" / "mine" / "base..v2" / "summary.json").is_file()
    wrong = [("demo", "--name", "mine:a..b")]
    wrong += [("./one", "./two", "--name", name) for name in ("mine", "mine:one", "../up:a..b")]
    for arguments in wrong:
        shadow("plan", *arguments).assert_refused(2)
