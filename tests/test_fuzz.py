"""The fuzzer of tests/fuzz.py itself: every target runs, and what breaks its word is found."""

import json

import fuzz
import pytest
from hypothesis import strategies as st

from shadow.errors import ShadowError

TARGETS = (
    "header", "gguf", "layout", "index", "config", "adapter", "registry", "list", "yaml-list",
    "policy", "csv", "harness", "batch", "metadata", "summary", "parquet", "gguf-whole", "whole",
    "rule", "claims", "models",
)  # fmt: skip


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return fuzz.targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", TARGETS)
def test_some_files_are_taken_and_none_breaks_a_reader(targets, name):
    """A moment of `make fuzz`, from files that are right: some reach the end of a reader."""
    tried = taken = 0
    for number in range(60):
        more = fuzz.fuzz(targets[name], 0.1, number, most=20)
        tried, taken = tried + more[0], taken + more[1]
        if taken:
            return
    pytest.fail(f"none of {tried} files was taken")


def refused(folder, content):
    if b"\x07" in content:
        raise KeyError("seven")
    raise ShadowError("no")


def unprintable(folder, content):
    raise ShadowError(f"{content.decode(errors='replace')} is not it")


@pytest.mark.parametrize(("reader", "error"), [(refused, KeyError), (unprintable, AssertionError)])
def test_what_breaks_its_word_is_found(reader, error):
    """Another exception than ShadowError, and a message that cannot be printed."""
    with pytest.raises(error):
        fuzz.fuzz(fuzz.Target(st.binary(), reader), 60, 0)


ESCAPES = {  # each once printed as it is
    "metadata": {"schema": 2, "version": "\x1b[2J"},
    "adapter": {"peft_type": "LORA", "init_lora_weights": "pissa\x1b[2J"},
}


@pytest.mark.parametrize("name", ESCAPES)
def test_words_of_a_file_are_printable_in_a_message(targets, tmp_path, name):
    """A version, a schema, the name of a method: nothing a file says there commands a terminal."""
    with pytest.raises(ShadowError) as caught:
        targets[name].read(tmp_path, json.dumps(ESCAPES[name]).encode())
    assert caught.value.message.isprintable()
