"""The lists of `registry/lists/`: `audit --list` reads each, and every pair of it is named."""

from __future__ import annotations

import pytest

from shadow.files import registry_folder
from shadow.targets.lists import select

LISTS = sorted((registry_folder() / "lists").glob("*.yaml"))


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.stem)
def test_a_shipped_list_names_pairs(file):
    """Of Hub repositories or of families of the registry, each once."""
    chosen = select(listed=str(file))
    assert chosen.is_list
    assert len({pair.full_name for pair in chosen.pairs}) == len(chosen.pairs) >= 5
