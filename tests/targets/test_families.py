"""The shipped families, and how `shadow families` shows them."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from shadow.targets.families import load_families
from shadow.targets.references import ComponentBase, Reference

HUB = Path(__file__).parents[3] / "shared" / "hub"
FAMILIES = load_families(None)

# Rows of the list of known pairs that are no declared pair, and why.
EXCEPTIONS = {"gpt-oss-20b": "two sizes; no base model was released"}


def known_pairs():
    """The rows of families.tsv, which is not part of the project."""
    file = HUB / "families.tsv"
    if not file.exists():
        pytest.skip(f"needs {file.name}")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def repos(reference: Reference | ComponentBase) -> set[str]:
    return (
        {one.repo for _, one in reference.parts}
        if isinstance(reference, ComponentBase)
        else {reference.repo}
    )


def test_every_known_pair_is_declared():
    """Each known pair is a pair of a family, siblings as siblings, tuned as tuned."""
    rows = known_pairs()
    assert len(rows) > 100
    missing = []
    for row in rows:
        relation = "sibling" if row["relation"].startswith("sibling") else "tuned"
        if row["family"] not in EXCEPTIONS and not any(
            row["base_id"] in repos(pair.base)
            and row["tuned_id"] == pair.tuned.repo
            and pair.relation == relation
            for family in FAMILIES.values()
            for pair in family.pairs
        ):
            missing.append(row["family"])
    assert missing == []
    assert EXCEPTIONS.keys() <= {row["family"] for row in rows}


def test_no_checkpoint_is_invented():
    """Every repository stands in the list of known pairs, in a column or a note."""
    known = {
        word.rstrip(".,;")
        for row in known_pairs()
        for text in row.values()
        for word in text.split()
    }
    named = {
        one.repo
        for family in FAMILIES.values()
        for _, _, one in family.references()
        if not one.is_folder
    }
    assert named <= known


def test_a_language_model_is_the_base_of_its_component():
    """Where a language model learnt to see, the base names it, and the tower if its id is known."""
    for row in known_pairs():
        if row["kind"] == "vlm-vs-llm":
            (base,) = (
                pair.base
                for family in FAMILIES.values()
                for pair in family.pairs
                if pair.tuned.repo == row["tuned_id"] and pair.relation == "tuned"
            )
            assert isinstance(base, ComponentBase)
            parts = {component: one.repo for component, one in base.parts}
            tower = row["vision_tower"]
            is_repo = re.fullmatch(r"[\w.-]+/[\w.-]+", tower) and not re.search(r"/\d+-\d+$", tower)
            assert parts == {"language": row["base_id"]} | ({"vision": tower} if is_repo else {})


def test_what_is_shipped_is_uniform():
    """Tags from a short list, a source with an address, one kind of network, no tag read live."""
    kinds = {"dense", "moe"}
    others = {
        "vlm", "audio", "code", "math", "reasoning", "distilled", "stages", "fused", "mla",
        "hybrid",
    }  # fmt: skip
    for family in FAMILIES.values():
        if family.name == "demo":
            continue
        assert len(kinds & set(family.tags)) == 1, family.name
        assert set(family.tags) <= kinds | others, family.name
        assert re.fullmatch(r"https://(github\.com|huggingface\.co)/\S+", family.source or ""), (
            family.name
        )
        assert ("stages" in family.tags) == (
            len(family.stages) > 2 and "thinking" not in family.stages
        ), family.name
        has_base = isinstance(family.stages.get("base"), ComponentBase)
        assert not has_base or "vlm" in family.tags, family.name


def test_no_pair_is_declared_twice():
    """One comparison has one name."""
    pairs = Counter(
        (frozenset(repos(pair.base)), pair.tuned.repo)
        for f in FAMILIES.values()
        for pair in f.pairs
    )
    assert [pair for pair, times in pairs.items() if times > 1] == []


def test_json_is_a_list_of_families(inside):
    """The same families for machines, also when it is one."""
    (family,) = json.loads(inside("families", "qwen2.5-7b", "--format", "json").assert_done())
    stage = {"repo": "Qwen/Qwen2.5-7B-Instruct", "revision": None, "subfolder": None}
    assert family["stages"]["instruct"] == stage
    assert family["pairs"] == [{"name": "base..instruct", "relation": "tuned"}]
    found = json.loads(inside("families", "audio", "--json").out)
    assert {"gemma3n-e4b", "gemma4-e4b"} <= {family["name"] for family in found}


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["qwen2.5-7"], 0, ["qwen2.5-7b ", "qwen2.5-72b"]),
    (["qwn2.5-7b"], 1, ["'qwn2.5-7b'", "'qwen2.5-7b'"]),
    (["--tag", "moe"], 2, ["--tag"]),
])  # fmt: skip
def test_a_word_filters_or_is_explained(inside, arguments, code, words):
    """What matches is listed; what matches nothing is an error with the nearest word."""
    done = inside("families", *arguments)
    done.assert_refused(code) if code else done.assert_done()
    assert all(word in done.out + done.err for word in words)
