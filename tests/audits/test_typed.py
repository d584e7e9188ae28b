"""Checkpoints that are typed where families are."""

from __future__ import annotations

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


def names(targets, registry):
    return [pair.full_name for pair in select(targets, registry=registry).pairs]


def test_one_model_of_the_hub_is_looked_up(registry):
    """As tuned its pairs, in any case; else all pairs from it as a base."""
    assert names(["org/toy-sft"], registry) == ["toy:base..sft"]
    assert names(["Org/Toy-SFT"], registry) == ["toy:base..sft"]
    assert names(["org/toy"], registry) == ["toy:base..sft", "toy:base..chat"]
    assert names(["org/toy-chat@v2"], registry) == ["toy:base..chat", "toy:sft..chat"]
    assert names(["org/toy-chat"], registry) == ["toy:base..chat", "toy:sft..chat"]


@pytest.mark.parametrize(
    ("targets", "message", "hint"),
    [
        (["org/better"], "'org/better' is in 2 families", "name one of them: cousin, twin"),
        (
            ["org/toy-sfft"], "no family has a pair with 'org/toy-sfft'",
            "did you mean 'org/toy-sft'?"),
        (
            ["org/toy-sft@v9"], "no family has a pair with 'org/toy-sft @ v9'",
            "write two checkpoints"),
        (
            ["./mine"], "'./mine' is one checkpoint, and a pair has two",
            "write two checkpoints, BASE TUNED"),
        (
            ["toy", "./mine"], "'toy' is a family, and './mine' a checkpoint",
            "for a folder, write ./NAME"),
        (
            ["./mine", "nothere"], "no family 'nothere'",
            "write two checkpoints, BASE TUNED; a folder is ./NAME"),
        (["./a", "./b", "./c"], "3 checkpoints: a pair has two", "several pairs go into a --list"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(targets, message, hint, registry):
    """With what to write instead."""
    with pytest.raises(UsageError) as caught:
        select(targets, registry=registry)
    assert caught.value.message == message
    assert hint in caught.value.hint


def test_a_checkpoint_typed_without_its_dot_is_refused_at_once(shadow, tmp_path):
    """No request is made; the hint has both ways to write it. A revision makes it a model."""
    folder = tmp_path / "org" / "toy"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    hint = "write ./org/toy for the folder, or org/toy@main for the model on the Hub"
    for arguments in (("org/toy", "org/toy-sft"), ("--base", "org/toy-sft", "--tuned", "org/toy")):
        done = shadow("audit", *arguments, env={"HF_ENDPOINT": "http://127.0.0.1:9"})
        assert done.assert_refused(2) == "error: org/toy is a folder here, and a name on the Hub"
        assert done.err.endswith(f"hint:  {hint}\n")
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
    for arguments, words in (
        (("plan", "demo", "--name", "mine:a..b"), "--name is for one pair"),
        (("plan", "./one", "./two", "--name", "mine"), "is not a pair name"),
        (("plan", "./one", "./two", "--name", "mine:one"), "is not a pair name"),
        (("plan", "./one", "./two", "--name", "../up:a..b"), "is not a pair name"),
    ):
        assert words in shadow(*arguments).assert_refused(2)
