"""The name that a matrix of a model has in its files, where those have an older one."""

import pytest
import torch

from shadow.checkpoints.expected import files_names

MATRIX, OTHER = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2, 2))


class Model:
    """A matrix under two names, as where a head is tied, and another one."""

    def named_parameters(self, remove_duplicate):
        assert not remove_duplicate
        names = {"model.embed.tokens.weight": MATRIX, "head.weight": MATRIX, "norm.weight": OTHER}
        return names.items()


@pytest.mark.parametrize(("stored", "found"), [
    (["model.embed.tokens.weight", "x.tokens.weight"], ["model.embed.tokens.weight"]),
    (["head.weight", "model.embed.tokens.weight"], ["model.embed.tokens.weight", "head.weight"]),
    (["old.tokens.weight", "wte.weight"], ["old.tokens.weight"]),
    (["old.tokens.weight", "x.embed.tokens.weight"], ["x.embed.tokens.weight"]),
    (["old.tokens.weight", "other.tokens.weight"], []),  # as near
    (["wte.weight"], []),  # one word in common is no likeness
    (["tokens.bias"], []),
    ([], []),
])  # fmt: skip
def test_an_older_name_ends_like_that_of_the_model(stored, found):
    """The one with the longest end in common, of two words or more."""
    assert files_names(Model(), MATRIX, ["head.weight"], stored) == found
