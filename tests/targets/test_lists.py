"""What lists and globs name, that every fault is one UsageError with file and line, and how a
list is shared.
"""

import json
import os
import string

import pytest
import yaml
from effort import examples
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shadow.errors import ShadowError, UsageError
from shadow.files import registry_folder
from shadow.targets.families import Pair, given_pair
from shadow.targets.lists import Share, parse_shard, read_list, select, share
from shadow.targets.references import Reference, is_reference, parse_reference

REGISTRY = """
toy-1b: {base: org/t1, sft: org/t1-sft, dpo: org/t1-dpo, tags: [dense]}
toy-7b: {base: org/t7, sft: org/t7-sft, tags: [dense, vlm]}
toy-70b: {base: org/t70, sft: org/t70-sft, tags: [moe]}
toy-alone: {base: org/a, x: org/x, pairs: [], note: nothing to compare, tags: [moe, lonely]}
other: {base: org/o, sft: org/o-sft, tags: [vlm]}
"""
FUZZ = settings(
    max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def registry(tmp_path):
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "r.yaml").write_text(REGISTRY)
    return tmp_path / "registry"


def written(tmp_path, text, name="list.yaml"):
    """The name of a list file that holds this text."""
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(tmp_path / name)


def names(selection):
    return [f"{pair.family}:{pair.name}" for pair in selection.pairs]


def entries(tmp_path, text, name="list.yaml"):
    return [entry.names for entry in read_list(written(tmp_path, text, name))]


# what a list may look like


TARGETS = ["demo", "toy-*", "demo:base..narrow"]


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "l.yaml": "- demo\n- toy-*\n- demo:base..narrow\n",
        "l.YML": "# mine\n---\n- demo # all\n- target: toy-*\n- {target: 'demo:base..narrow'}\n",
        "l.json": json.dumps(TARGETS),
        "l.txt": "demo\r\n\r\n  # a comment\n\ttoy-*   # big\ndemo:base..narrow",
        "nameless": "# mine\n\n- demo\n- toy-*\n- demo:base..narrow\n",
        "nameless.json-or-not": '["demo", "toy-*",\n "demo:base..narrow"]',
        "plain": "\ufeffdemo\ntoy-*\ndemo:base..narrow\n",
    }.items(),
)
def test_forms_of_a_list(tmp_path, name, text):
    """YAML and JSON by the end of the name or by how they begin, else one target a line."""
    assert entries(tmp_path, text, name) == TARGETS


def test_a_pair_is_given_by_its_checkpoints(tmp_path, monkeypatch):
    """`{base, tuned}` is the pair of --base and --tuned."""
    monkeypatch.chdir("/")
    (found,) = entries(tmp_path, "- {base: org/b@v1, tuned: ./t}\n")
    assert found == given_pair(parse_reference("org/b@v1"), Reference(str(tmp_path / "t"), True))


def test_a_pipe_is_no_list():
    """`--list <(command)` names a pipe; the hint is standard input."""
    reader, writer = os.pipe()
    with pytest.raises(UsageError, match="not a regular file") as caught:
        read_list(f"/dev/fd/{reader}")
    assert caught.value.hint == "--list takes a file, or -"
    os.close(reader)
    os.close(writer)


LETTERS = string.ascii_letters + string.digits + "._-*?:[]"
WORD = st.text(LETTERS, min_size=1, max_size=20).filter(lambda word: not is_reference(word))


@FUZZ
@given(st.lists(WORD, max_size=8), st.text(max_size=20), st.sampled_from(["\n", "\r\n", "\r"]))
def test_every_form_names_the_same(tmp_path, targets, comment, end):
    """Plain lines with comments, block YAML, flow YAML and JSON are read back as they were."""
    comment = "".join(char for char in comment if char.isprintable())
    plain = "".join(f"  {target} # {comment}{end}{end}# {comment}{end}" for target in targets)
    assert entries(tmp_path, plain, "l.txt") == targets
    assert entries(tmp_path, json.dumps(targets), "l.json") == targets
    for flow in (True, False):
        assert entries(tmp_path, yaml.safe_dump(targets, default_flow_style=flow)) == targets


# faults


FAULTS = {  # what the list holds, the line, and the word that was meant
    "mapping": ("families: [demo]\n", "", None),
    "unknown key": ("- demo\n- {bsae: a/b, tuned: c/d}\n", ":2", "'base'"),
    "a misspelt target": ("- {taget: demo}\n", ":1", "'target'"),
    "an option": ("- target: demo\n  allow_pickle: 1\n", ":2", None),
    "space after the colon": ("- demo: base..x\n", ":1", None),
    "half a pair": ("-\n  base: a/b\n", ":2", None),
    "both": ("- {target: demo, base: a/b, tuned: c/d}\n", ":1", None),
    "a name of no pair": ("- {base: a/b, tuned: c/d, name: mine}\n", ":1", None),
    "a name that climbs": ("- base: a/b\n  tuned: c/d\n  name: ../x:a..b\n", ":3", None),
    "a name of a target": ("- {target: demo, name: a:b..c}\n", ":1", None),
    "one name twice": (
        "- {base: a/b, tuned: c/d, name: m:a..b}\n- {base: a/b, tuned: c/e, name: m:a..b}\n",
        ":2", None),
    "empty mapping": ("- {}\n", ":1", None), "empty entry": ("- demo\n-\n", ":2", None),
    "mapping for text": ("- base: {repo: a/b}\n  tuned: c/d\n", ":1", None),
    "no reference": ("- demo\n- base: a/b\n  tuned: word\n", ":3", None),
    "alias": ("- &a demo\n- *a\n", ":2", None), "broken": ("- demo\n- [\n", ":3", None),
    "tag": ("- !!python/name:os.system demo\n", ":1", None),
    "key twice": ("- {target: a, target: b}\n", ":1", None),
    "two words": ("- demo base..x\n", ":1", None), "escape": ('- "\\e[31m"\n', ":1", None),
    "very long": (f"- {'a' * 301}\n", ":1", None), "no text": (b"- demo\n- \xff\n", ":2", None),
    "nothing": ("# only a comment\n", "", None), "a path": ("- ./models/x\n", ":1", None),
    "unknown family": ("- demo\n- toy-2b\n", ":2", "'toy-"),
    "unknown pair": ("- demo:base..x\n", ":1", None),
    "glob of nothing": ("- demo\n\n- teo-*\n", ":3", "'toy-"),
    "glob of a pair": ("- toy-*:base..sfd\n", ":1", "'base..sft'"),
    "no pair": ("- toy-alone\n", ":1", None), "glob without pairs": ("- '*-alone'\n", ":1", None),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_line_and_the_nearest_word(tmp_path, registry, fault):
    """One UsageError, so exit 2: file and line, what is wrong, what to do about it."""
    text, line, hint = FAULTS[fault]
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        select(registry=registry, listed=path)
    assert line is None or caught.value.message.startswith(f"{path}{line}: ")
    assert len(caught.value.message) < len(path) + 200
    assert (hint or "") in (caught.value.hint or "")


@pytest.mark.parametrize("listed", ["none.yaml", ".", "a\0b", "x" * 5000, "big.yaml", "many.txt"])
def test_a_list_that_cannot_be_read_is_a_usage_error(tmp_path, monkeypatch, listed):
    """A file that is not there, a folder, no name at all, too large, too many: exit 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    (tmp_path / "many.txt").write_text("demo\n" * 10_001)
    with pytest.raises(UsageError):
        read_list(listed)


# what is chosen


@pytest.mark.parametrize(("targets", "found"), [
    (
        ["toy-*b"],
        ["toy-1b:base..sft", "toy-1b:base..dpo", "toy-7b:base..sft", "toy-70b:base..sft"]),
    (["toy-?b:base..sft"], ["toy-1b:base..sft", "toy-7b:base..sft"]),
    (["toy-*:*..dpo"], ["toy-1b:base..dpo"]),
    (["toy-1b:base..[ds]*"], ["toy-1b:base..sft", "toy-1b:base..dpo"]),
    (
        ["other", "toy-7b", "toy-7*", "other"],
        ["other:base..sft", "toy-7b:base..sft", "toy-70b:base..sft"]),
])  # fmt: skip
def test_globs_choose(registry, targets, found):
    """A glob is over names, after a colon over pairs."""
    selection = select(targets, registry=registry)
    assert names(selection) == found
    assert selection.own == selection.pairs
    assert not select(["./a", "./b[1]"], registry=registry).is_list  # a folder of that name


def test_targets_and_a_list_go_together(tmp_path, registry):
    """First the command line, then the list; every pair once."""
    selection = select(
        ["other"], [], registry, written(tmp_path, "- toy-7b\n- other\n- {base: a/b, tuned: c/d}\n")
    )
    assert [name.partition(":")[0] for name in names(selection)] == ["other", "toy-7b", "d"]


@pytest.mark.parametrize(("arguments", "named", "kind"), [
    ({"targets": ["toy-2b"]}, "toy-2b", ShadowError),
    ({"targets": ["tyo-*"]}, "tyo-*", UsageError),
    ({"targets": ["*-alone"]}, "alone", UsageError),
])  # fmt: skip
def test_what_names_nothing_is_a_fault(registry, arguments, named, kind):
    """A glob without a match is wrong usage."""
    with pytest.raises(ShadowError) as caught:
        select(registry=registry, **arguments)
    assert type(caught.value) is kind
    assert named in caught.value.message
    assert caught.value.hint


LISTS = sorted((registry_folder() / "lists").glob("*.yaml"))


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_a_shipped_list_names_pairs(file):
    """Of Hub repositories or of families of the registry, each once."""
    chosen = select(listed=str(file))
    assert chosen.is_list
    assert len({pair.full_name for pair in chosen.pairs}) == len(chosen.pairs) >= 5


def test_only_a_list_has_an_index(tmp_path):
    """Exact targets alone are no list; a list, a glob or a shard is."""
    assert not select(["demo", "demo:base..broad"]).is_list
    assert select(["dem[o]"]).is_list
    assert select(["demo"], shard="1/1").is_list
    assert select(listed=written(tmp_path, "- demo\n")).is_list


def test_equal_lists_have_equal_digests(tmp_path, registry):
    """Whatever the order, the form or the shard; another pair makes another list."""
    one = select(["toy-1b", "other"], registry=registry, shard="1/2").digest
    assert (
        one
        == select(registry=registry, listed=written(tmp_path, "other\ntoy-1b:*\n", "l.txt")).digest
    )
    assert one != select(["toy-1b"], registry=registry).digest


# shares


def pairs_of(counts: dict[str, int]) -> list[Pair]:
    here = Reference("org/x", False)
    return [
        Pair(name, f"base..{index}", here, here)
        for name, count in counts.items()
        for index in range(count)
    ]


COUNTS = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 5), max_size=40)


@settings(max_examples=examples(200))
@given(counts=COUNTS, of=st.integers(1, 12), seed=st.randoms(use_true_random=False))
def test_shards_part_a_list_evenly(counts, of, seed):
    """Every pair is in one shard, a family in one piece, whatever the order."""
    pairs = pairs_of(counts)
    shards = [share(pairs, Share(number, of)) for number in range(1, of + 1)]
    assert sorted(pair for shard in shards for pair in map(repr, shard)) == sorted(map(repr, pairs))
    families = [{pair.family for pair in shard} for shard in shards]
    assert sum(map(len, families)) == len(counts)
    largest = max(counts.values(), default=0)
    assert all(abs(len(shard) - len(pairs) / of) <= largest for shard in shards)
    mixed = seed.sample(pairs, len(pairs))
    assert [set(share(mixed, Share(number, of))) for number in range(1, of + 1)] == [
        set(shard) for shard in shards
    ]


@settings(max_examples=examples(200))
@given(
    names=st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=1, max_size=40),
    of=st.integers(1, 12),
)
def test_a_family_more_moves_few_others(names, of):
    """Of families with a pair each at most one moves at each of the cuts between the shards."""
    assume(len(names) > 1)
    before, after = pairs_of(dict.fromkeys(names[1:], 1)), pairs_of(dict.fromkeys(names, 1))

    def numbers(pairs):
        return {
            pair.family: number
            for number in range(1, of + 1)
            for pair in share(pairs, Share(number, of))
        }

    old, new = numbers(before), numbers(after)
    assert sum(old[name] != new[name] for name in old) <= of - 1


def test_shards_are_the_same_on_every_machine():
    """By `sha256sum` the order is d f c b e a: it never changes, or jobs of versions overlap."""
    pairs = pairs_of(dict.fromkeys("abcdef", 1))
    found = [
        "".join(pair.family for pair in share(pairs, Share(number, 3))) for number in (1, 2, 3)
    ]
    assert found == ["df", "bc", "ae"]


@pytest.mark.parametrize(
    "text", ["0/2", "3/2", "1/0", "1", "/2", "1/", "a/b", "-1/2", "1/2/3", "01/2", "1/10001", "١/٢"]
)
def test_what_is_no_shard(text):
    """Two numbers from 1, the first no larger: anything else is wrong usage."""
    with pytest.raises(UsageError, match="is not a shard"):
        parse_shard(text)
    assert parse_shard("2/4") == Share(2, 4)
