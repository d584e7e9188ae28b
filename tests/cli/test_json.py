"""The JSON of each command: what docs/cli.md says of it, and no key that it ever had is gone."""

import json
import re
from pathlib import Path

import pytest
import readme

KEYS = Path(__file__).with_name("json_keys.json")
"""Of each command below the keys at every depth; a new key may be added here, none removed."""
RULE = ("--fail-on", "concentration > 0.3")
DEMO = readme.ROOT / "registry" / "demo"
NARROW, BROAD = "out/demo/base..narrow", "out/demo/base..broad"
COMMANDS = {
    "audit": ("audit", "demo", "-o", "out", *RULE, "--format", "json"),
    "audit --list": ("audit", "--list", "list.txt", "-o", "listed", "--format", "json"),
    "plan": ("plan", "demo", "--format", "json"), "show": ("show", "out", "--json"),
    "gate": ("gate", "out", *RULE, "--format", "json"),
    "compare": ("compare", NARROW, BROAD, "--scores", "scores.csv", "--json"),
    "verify": ("verify", "same", DEMO / "base", DEMO / "narrow", "--json"),
    "check": ("check", DEMO / "narrow", "--base", DEMO / "base", "--headers", "--json"),
    "lineage": ("lineage", "out", "--json"), "families": ("families", "demo", "--json"),
}  # fmt: skip


def shape(value):
    """A JSON value without what it says: objects keep their keys, an array is what its items have
    in all. Places of figures, which have dots, are what a sentence says.
    """
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items() if "." not in key or "json" in key}
    if isinstance(value, list):
        merged = None
        for one in map(shape, value):
            merged = one if merged is None else joined(merged, one)
        return [merged]
    return None


def joined(one, other):
    """The keys of two shapes of one place."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: joined(one.get(key), other.get(key)) for key in one | other}
    if isinstance(one, list) and isinstance(other, list):
        return [joined(one[0], other[0])]
    return other if one is None else one


def gone(before, now, path=""):
    """What an earlier shape has and a later one lacks, as paths."""
    if isinstance(before, dict):
        for key, inner in before.items():
            if not isinstance(now, dict) or key not in now:
                yield f"{path}.{key}"
            else:
                yield from gone(inner, now[key], f"{path}.{key}")
    elif isinstance(before, list):
        if isinstance(now, list):
            yield from gone(before[0], now[0], f"{path}[]")
        else:
            yield f"{path}[]"


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each command prints on stdout as JSON."""
    from command import run_shadow

    folder = tmp_path_factory.mktemp("json")
    (folder / "scores.csv").write_text(readme.demo_scores(), encoding="utf-8")
    (folder / "list.txt").write_text("demo\n", encoding="utf-8")
    texts = {}
    for name, words in COMMANDS.items():
        done = run_shadow(*words, cwd=folder)
        assert done.code == (4 if RULE[0] in words or name == "verify" else 0), done.err
        texts[name] = json.loads(done.out)
    return texts


@pytest.mark.parametrize("command", COMMANDS)
def test_no_key_goes_away(printed, command):
    """Scripts read them, whatever the screens show: every key that was ever recorded is there."""
    before = json.loads(KEYS.read_text(encoding="utf-8"))[command]
    assert not list(gone(before, shape(printed[command])))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_commands_says_what_json_is(printed, command):
    """Of each command an array or an object, and all its keys, or that they are summary.json's."""
    page = (readme.DOCS / "cli.md").read_text(encoding="utf-8")
    section = page.partition("\n## JSON\n")[2].partition("\n## ")[0]
    (row,) = re.findall(rf"(?m)^\| `{re.escape(command)}`(?:, `[^|]*`)* \| (.*) \|$", section)
    value = printed[command]
    assert row.startswith("an object: " if isinstance(value, dict) else "an array, ")
    keys = value if isinstance(value, dict) else value[0]
    named = set(re.findall(r"`(\w+)`", row))
    if "[summary.json]" in row and command != "audit --list":
        assert {"judged"} & set(keys) <= named
    else:
        assert named == set(keys)
