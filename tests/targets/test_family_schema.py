"""The JSON Schema of family files: it is the committed one, and agrees with the reader."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import readme
import yaml
from hypothesis import given
from test_registry import ENTRIES, FAULTS, FUZZ, load

from shadow.errors import ShadowError, UsageError
from shadow.files import registry_folder
from shadow.targets.editor_schema import family_schema, list_schema
from shadow.targets.lists import read_list
from shadow.targets.plain_yaml import read_plain

FILES = sorted((registry_folder() / "families").glob("*.yaml"))
SCHEMA = family_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def test_the_committed_schema_is_up_to_date():
    """`make docs` writes it."""
    assert readme.SCHEMA.read_text() == json.dumps(SCHEMA, indent=2) + "\n"
    assert readme.LIST_SCHEMA.read_text() == json.dumps(list_schema(), indent=2) + "\n"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_file_names_the_schema_and_keeps_it(file: Path):
    """As the reader reads it, all text, and as an editor does, with numbers and booleans."""
    first = file.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../schema.json"
    assert (file.parent / first.partition("=")[2]).resolve() == readme.SCHEMA.resolve()
    VALIDATOR.validate(read_plain(file.read_bytes())[0])
    VALIDATOR.validate(yaml.safe_load(file.read_text()))


@FUZZ
@given(entry=ENTRIES)
def test_it_takes_what_the_reader_takes(tmp_path, entry):
    """No file that loads is underlined in an editor."""
    text = yaml.safe_dump({"fam": entry})
    try:
        load(tmp_path, text)
    except ShadowError:
        return
    VALIDATOR.validate(read_plain(text.encode())[0])


# faults that lie in what words refer to, which no schema sees
NOT_IN_SCHEMA = {
    "misspelt stage in a pair", "second item of pairs", "duplicate pair", "pair with itself",
    "no second stage", "one stage and no base", "no stage", "tuned is per component",
    "misspelt base", "misspelt reserved key", "reserved key in capitals", "home of nobody",
    "reference with NUL", "subfolder goes up", "the same word in another family",
}  # fmt: skip


def plain(text: str | bytes):
    """A text as a tree, None where it is no such YAML."""
    try:
        return read_plain(text if isinstance(text, bytes) else text.encode())[0] or None
    except Exception:
        return None


@pytest.mark.parametrize(
    "fault", [name for name in FAULTS if name not in NOT_IN_SCHEMA and plain(FAULTS[name][0])]
)
def test_it_sees_the_faults_of_form(fault):
    """Unknown keys, components and types, missing keys: an editor marks what readers refuse."""
    assert not VALIDATOR.is_valid(plain(FAULTS[fault][0]))


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("- demo\n- {target: 'qwen*'}\n", True),
        ("- {base: org/base@v1.0, tuned: ./mine}\n", True),
        ("- {base: org/base, tuned: ./mine, name: mine:base..run-7}\n", True),
        ("- {base: org/base, tuned: ./mine, name: mine}\n", False),
        ("- {target: demo, name: mine:a..b}\n", False),
        ("- {base: org/base}\n", False),
        ("- {bsae: org/base, tuned: ./mine}\n", False),
        ("- demo base..x\n", False),
    ],
)
def test_the_schema_of_lists_agrees_with_the_reader(tmp_path, text, takes):
    """What is read keeps the schema; both see a misspelt key, half a pair and a name of no pair."""
    schema = list_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    assert jsonschema.Draft7Validator(schema).is_valid(yaml.safe_load(text)) == takes
    (tmp_path / "list.yaml").write_text(text)
    if takes:
        assert read_list(str(tmp_path / "list.yaml"))
    else:
        with pytest.raises(UsageError):
            read_list(str(tmp_path / "list.yaml"))
