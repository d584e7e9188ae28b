"""Registry files: what they may say, and that every fault is one ShadowError with file, line and
the nearest word.
"""

import time
from functools import partial

import pytest
import yaml
from effort import every, examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadow.errors import ShadowError, UsageError
from shadow.targets import checked, families
from shadow.targets.families import filter_families, find_pairs, load_families
from shadow.targets.references import ComponentBase, Reference, parse_reference

GOOD = "fam:\n  base: org/base\n  sft: org/sft\n"


def load(tmp_path, text: str | bytes):
    """The families of a registry of one file, without the shipped ones."""
    raw = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "r.yaml").write_bytes(raw)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(families, "registry_folder", lambda: tmp_path / "none")
        return load_families(tmp_path)


HUB = partial(Reference, is_folder=False)
READ = {  # what a file holds, stages in it, its pairs and their relations
    "without `pairs` every stage is paired with `base`": (
        GOOD + "  dpo: {repo: org/dpo, revision: main, subfolder: last}\n",
        {"dpo": HUB("org/dpo", revision="main", subfolder="last"), "base": HUB("org/base")},
        "base..sft tuned base..dpo tuned"),
    "`pairs` says which, and whether they are siblings": (
        GOOD + "  dpo: org/dpo\n  pairs: [sft..dpo, {from: base, to: dpo, relation: sibling}]\n",
        {}, "sft..dpo tuned base..dpo sibling"),
    "without `base` stages are compared as `pairs` says": (
        "fam:\n  a: org/a\n  b: org/b\n  pairs: [{from: a, to: b, relation: sibling}]\n",
        {}, "a..b sibling"),
    "a revision or a name that YAML makes something of is text": (
        "fam:\n  base: org/b\n  no: {repo: org/s, revision: 1.10}\n",
        {"no": HUB("org/s", revision="1.10")}, "base..no tuned"),
    "a mapping with repo is one base": (
        "fam:\n  base: {repo: org/b, revision: main}\n  a: org/a\n",
        {"base": HUB("org/b", revision="main")}, "base..a tuned"),
    "a base per component, in the order of the file": (
        "fam:\n  base: {vision: {repo: org/v, revision: main}, language: org/l}\n  a: org/a\n",
        {"base": ComponentBase((("vision", HUB("org/v", revision="main")),
                                ("language", HUB("org/l"))))}, "base..a tuned"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_a_family_is_its_stages_and_pairs(tmp_path, case):
    """Names and mappings are checkpoints; pairs have the checkpoints of their stages."""
    text, stages, pairs = READ[case]
    family = load(tmp_path, text)["fam"]
    assert stages.items() <= family.stages.items()
    assert " ".join(f"{pair.name} {pair.relation}" for pair in family.pairs) == pairs
    for pair in family.pairs:
        ends = [family.stages[name] for name in pair.name.split("..")]
        assert [pair.base, pair.tuned] == ends


def test_folders_are_relative_to_the_file(tmp_path):
    """`./x` in a registry file is beside that file, wherever the command is started."""
    family = load(tmp_path, "fam:\n  base: ./b\n  sft: {repo: ./s, subfolder: deep}\n")["fam"]
    folders = str(tmp_path / "b"), str(tmp_path / "s" / "deep")
    assert [*family.stages.values()] == [Reference(folder, is_folder=True) for folder in folders]


@pytest.mark.parametrize(("text", "components"), [
    ("", ["language"]), ("  tags: [dense]\n", ["language"]),
    ("  tags: [vlm]\n", ["language", "vision", "projector"]),
    ("  tags: [audio, vlm]\n", ["language", "vision", "projector", "audio"]),
    ("  tags: [vision]\n", ["vision"]), ("  tags: [3]\n", ["language"]),
])  # fmt: skip
def test_components_are_what_the_file_says(tmp_path, text, components):
    """By tags: `vlm` is three components and a component's name is itself."""
    assert list(load(tmp_path, GOOD + text)["fam"].components) == components


def test_no_pairs_with_a_note(tmp_path):
    """`pairs: []` says that there is nothing to compare; asked for it, the note is the hint."""
    families = load(tmp_path, "fam:\n  a: org/a\n  b: org/b\n  pairs: []\n  note: two sizes\n")
    assert families["fam"].pairs == ()
    for target in ("fam", "fam:a..b"):
        with pytest.raises(ShadowError, match="has no pair to compare") as caught:
            find_pairs(target, families)
        assert caught.value.hint == "two sizes"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff# nothing\n", "{}\n", "''\n"])
def test_an_empty_file_holds_no_families(tmp_path, text):
    """A file without a family is no fault."""
    assert load(tmp_path, text) == {}


SFT = "fam:\n  base: org/b\n  sft: "
BASE = "fam:\n  base:\n    "
PAIR = GOOD + "  pairs:\n    - "
FAULTS = {  # what the file holds, the line, and the word that was meant
    "unknown key in a stage": (
        "fam:\n  base: org/b\n  sft:\n    repo: org/s\n    revison: main\n",
        5, "'revision'"),
    "misspelt reserved key": (GOOD + "  pair: [base..sft]\n", 4, "'pairs'"),
    "unknown key in a pair": (PAIR + "{from: base, too: sft}\n", 5, "'to'"),
    "misspelt stage in a pair": (GOOD + "  pairs: [base..stf]\n", 4, "'sft'"),
    "misspelt base": ("fam:\n  bsae: org/b\n  sft: org/s\n", 1, "'bsae'"),
    "no second stage": ("fam:\n  base: org/b\n", 1, None),
    "unknown relation": (PAIR + "{from: base, to: sft, relation: cousin}\n", 5, None),
    "misspelt component": (
        BASE + "language: org/l\n    visoin: org/v\n  sft: org/s\n", 4, "'vision'"),
    "the only component is misspelt": (
        BASE + "langauge: org/l\n  sft: org/s\n", 3, "'language'"),
    "component and repo": (BASE + "repo: org/l\n    vision: org/v\n  sft: org/s\n", 3, None),
    "misspelt key in a component": (
        BASE + "vision:\n      repo: org/v\n      revison: x\n  sft: org/s\n", 5, None),
    "component without repo": (BASE + "vision: {revision: x}\n  sft: org/s\n", 3, None),
    "stage per component": ("fam:\n  base: org/b\n  sft:\n    language: org/l\n", 4, None),
    "tuned is per component": (
        "fam:\n  base: {vision: org/v}\n  sft: org/s\n  pairs:\n    - base..sft\n    - sft..base\n",
        6, None),
    "a key of a stage beside the stages": (GOOD + "  revision: main\n", 4, None),
    "reserved key in capitals": (GOOD + "  Tags: [a]\n", 4, None),
    "no base and no pairs": ("fam:\n  a: org/a\n  b: org/b\n", 1, None),
    "one stage and no base": ("fam:\n  a: org/a\n  pairs: []\n  note: x\n", 1, None),
    "no stage": ("fam:\n  pairs: []\n  note: x\n", 1, None),
    "pair without to": (PAIR + "{from: base}\n", 5, None),
    "second item of pairs": (PAIR + "base..sft\n    - base..fts\n", 6, None),
    "third item of tags": (GOOD + "  tags:\n    - a\n    - b\n    - [c]\n", 7, None),
    "tag of two words": (GOOD + "  tags: [long context]\n", 4, None),
    "tag twice": (GOOD + "  tags:\n    - a\n    - a\n", 6, None),
    "the same word in another family": (
        GOOD + "  note: fum\nfum:\n  base: org/b\n  note: 'sft: x'\n  sft: word\n", 8, None),
    "the second family": (GOOD + "other:\n  base: org/b\n  sft: 3\n", 6, None),
    "duplicate family": (GOOD + GOOD, 4, None),
    "duplicate stage": (GOOD + "  sft: org/t\n", 4, None),
    "duplicate key in a stage": (SFT + "{repo: org/s, repo: org/t}\n", 3, None),
    "duplicate pair": (PAIR + "base..sft\n    - {from: base, to: sft}\n", 6, None),
    "pair with itself": (GOOD + "  pairs: [base..base]\n", 4, None),
    "pair that is no pair": (GOOD + "  pairs: [base-sft]\n", 4, None),
    "pairs is a word": (GOOD + "  pairs: base..sft\n", 4, None),
    "pairs is empty": (GOOD + "  pairs: []\n", 4, None),
    "stage is a list": (SFT + "[org/s]\n", 3, None),
    "stage is empty": ("fam:\n  base: org/b\n  sft:\n", 3, None),
    "no reference": (SFT + "just-a-word\n", 3, None),
    "reference goes up": (SFT + "org/..\n", 3, None),
    "reference with NUL": (SFT + '"/a\\0b"\n', 3, None),
    "home of nobody": (SFT + "~no-such-user/x\n", 3, None),
    "subfolder goes up": (SFT + "{repo: org/s, subfolder: a/../../b}\n", 3, None),
    "family goes up": ("..:\n  base: org/b\n  sft: org/s\n", 1, None),
    "stage goes up": ('fam:\n  base: org/b\n  "../x": org/s\n', 3, None),
    "stage with dots": ("fam:\n  base: org/b\n  a..b: org/s\n", 3, None),
    "stage with an escape": ('fam:\n  base: org/b\n  "a\\e[31m": org/s\n', None, None),
    "key is a list": ("? [a, b]\n: 1\n", 1, None),
    "family is a word": ("fam: org/b\n", 1, None),
    "a list": ("- fam\n", None, None),
    "not YAML": ("fam: [\n", 2, None),
    "tab": ("fam:\n\tbase: org/b\n", 2, None),
    "two documents": (GOOD + "---\n" + GOOD, 4, None),
    "not UTF-8": (b'\n\nfam: \xff\n', 3, None),
    "control character": ("\nfam: \x07\n", 2, None),
    "escape of no character": ('fam:\n  base: "\\U00110000"\n', None, None),
    "undefined alias": ("fam: *a\n", 1, None),
    "empty list": ("[]\n", None, None),
    "python tag": ("fam:\n  base: !!python/object/apply:os.system [id]\n", 2, None),
    "unknown tag": ("fam: !include other.yaml\n", 1, None),
    "merge key": ("fam:\n  <<: {base: org/b}\n  sft: org/s\n", 2, None),
    "alias of itself": ("fam: &a {base: *a}\n", 1, None),
    "int that is none": ('fam:\n  base: !!int ""\n', None, None),
    "a number of 20,000 digits": (GOOD + "  pairs: [0x" + "f" * 20_000 + "]\n", None, None),
    "nested lists": ("\n" + "[" * 20_000, 2, None),
    "nested mappings": ("fam: " + "{a: " * 5_000, 1, None),
    "larger than a registry": ("# " + "x" * 1_000_001, None, None),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("parser", every(2, ["CBaseLoader", "BaseLoader"]))
def test_a_fault_names_file_line_and_nearest_word(tmp_path, fault, parser, monkeypatch):
    """Each fault is one ShadowError that begins with the file and, where it is known, the line."""
    monkeypatch.setattr(checked, "FAST", getattr(yaml, parser, yaml.BaseLoader))
    text, line, hint = FAULTS[fault]
    with pytest.raises(ShadowError) as caught:
        load(tmp_path, text)
    assert not isinstance(caught.value, UsageError)
    where = f"{tmp_path / 'r.yaml'}:{line}: " if line else f"{tmp_path / 'r.yaml'}:"
    assert caught.value.message.startswith(where)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 1000
    assert hint is None or hint in (caught.value.hint or "")


def bomb(where: str) -> str:
    """Ten to the ninth words in a few hundred bytes, by aliases of aliases, in a family."""
    lists = "".join(f"    - &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    return (
        f"bomb:\n  base: org/b\n  tags:\n    - &a0 [{', '.join(['x'] * 10)}]\n"
        f"{lists}  sft: {where}\n"
    )


@pytest.mark.parametrize(
    "place",
    ["*a8", "{repo: *a8}", "org/s\n  note: *a8", "org/s\n  pairs: [*a8]",
    "org/s\n  pairs: [{from: base, to: *a8}]",
     "org/s\n  pairs: [{from: base, to: sft, relation: *a8}]", "org/s\n  ? *a8\n  : x"],
)  # fmt: skip
def test_an_alias_bomb_is_refused_at_once(tmp_path, place, bounded_memory):
    """Aliases of aliases stand for a billion words; whatever key has them, nobody spells them."""
    started = time.monotonic()
    with pytest.raises(ShadowError) as caught:
        load(tmp_path, bomb(place))
    assert time.monotonic() - started < 30
    assert len(caught.value.message) < 1000


@pytest.fixture
def bounded_memory():
    """A bomb that goes off ends in MemoryError after 128 MB, not with this machine."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 27), old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def test_a_name_in_two_files_is_refused(tmp_path):
    """The second file that defines a family is named, and so is the first."""
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD)
    with pytest.raises(ShadowError, match=r"b\.yaml:1: family 'fam' is already in .*a\.yaml:1"):
        load_families(tmp_path)


def test_a_shipped_name_cannot_be_taken(tmp_path):
    """A registry of one's own never silently changes what `demo` means; it is a folder."""
    with pytest.raises(ShadowError, match="none"):
        load_families(tmp_path / "none")
    (tmp_path / "r.yaml").write_text(GOOD.replace("fam", "demo"))
    with pytest.raises(ShadowError, match="'demo' is already in"):
        load_families(tmp_path)


FUZZ = settings(
    max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(text=st.text(max_size=30) | st.text("./~@ab\0-", max_size=12))
def test_any_reference_is_understood_or_refused(text):
    """A reference is a folder if it begins like a path; all else is `org/name` or a usage error."""
    try:
        found = parse_reference(text)
    except ShadowError:
        return
    assert found.is_folder == (
        text[0] in "/~" or text.startswith(("./", "../")) or text in (".", "..")
    )


def test_a_folder_of_that_name_is_never_taken_for_a_model(tmp_path, monkeypatch):
    """`org/name` is on the Hub even where such a folder is; a folder's bare name says: write ./"""
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not parse_reference("org/name").is_folder
    with pytest.raises(UsageError) as caught:
        parse_reference("org")
    assert "./org" in caught.value.hint


@pytest.mark.parametrize("stage", ["~", "{repo: ~}"])
def test_nothing_is_not_the_home_folder(tmp_path, stage):
    """`sft: ~` says nothing in YAML: refused with file and line, though `~/` is the home folder."""
    with pytest.raises(ShadowError, match=r":3: family 'fam': .*'~'"):
        load(tmp_path, f"fam:\n  base: org/base\n  sft: {stage}\n")
    assert load(tmp_path, "fam:\n  base: org/base\n  sft: ~/\n")["fam"].stages["sft"].is_folder


def test_targets_name_a_family_or_one_pair(tmp_path):
    """`family` is all pairs, `family:a..b` one; the hint has the nearest name or known pairs."""
    families = load(tmp_path, GOOD + "  dpo: org/dpo\n")
    assert [pair.name for pair in find_pairs("fam", families)] == ["base..sft", "base..dpo"]
    assert [pair.name for pair in find_pairs("fam:base..dpo", families)] == ["base..dpo"]
    for target, known in (("fma", "'fam'"), ("fam:sft..dpo", "base..sft, base..dpo")):
        with pytest.raises(ShadowError) as caught:
            find_pairs(target, families)
        assert known in caught.value.hint


MANY = """
one: {base: org/one-base, sft: org/one-SFT, tags: [dense]}
two: {base: {language: org/one-sft, vision: eyes/clip}, sft: org/two, tags: [dense, vlm]}
hear: {base: org/h, sft: org/hs, tags: [moe, audio]}
"""


@pytest.mark.parametrize(("word", "found"), [
    (None, "one two hear"), ("one", "one"), ("ONE", "one two"), ("-sft", "one two"),
    ("CLIP", "two"), ("vl", "two"), ("vision", "two"), ("audio", "hear"), ("dense", "one two"),
])  # fmt: skip
def test_families_are_filtered(tmp_path, word, found):
    """A name is that family alone; another word may be in names, checkpoints, tags, components."""
    assert [one.name for one in filter_families(load(tmp_path, MANY), word)] == found.split()
