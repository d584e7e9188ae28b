"""What shadow.text says of many words and of misspelt ones."""

from __future__ import annotations

import pytest

from shadow.text import VERY_LIKE, and_more, bytes_of, closest, nearest, several, size_for


@pytest.mark.parametrize(
    ("count", "shown", "said"),
    [
        (0, 2, ""),
        (1, 2, "0"),
        (2, 2, "0, 1"),
        (3, 2, "0, 1 and 1 more"),
        (1_003, 3, "0, 1, 2 and 1,000 more"),
    ],
)
def test_several_names_the_first_words_and_counts_the_rest(
    count: int, shown: int, said: str
) -> None:
    """A list no longer than what is shown says nothing of a rest."""
    assert several([str(number) for number in range(count)], shown) == said


def test_several_keeps_its_separator_out_of_the_count() -> None:
    """Phrases that hold commas are parted by semicolons; what follows them is the count alone."""
    assert several(["a, b", "c", "d"], 2, "; ") == "a, b; c and 1 more"
    assert and_more(0) == and_more(-3) == ""


def test_nearest_asks_for_the_likest_word_or_for_none() -> None:
    """Likeness is twice the letters in common over all letters: of `layr` and `layer` 8 / 9."""
    assert nearest("layr", ["head", "layer"]) == "did you mean 'layer'?"
    assert nearest("zzz", ["head", "layer"]) is None
    # `bse` and `base` 6 / 7, `bs` and `base` 4 / 6
    assert closest("bse", ["base"], VERY_LIKE) == "base"
    assert closest("bs", ["base"], VERY_LIKE) is None
    assert closest("bs", ["base"]) == "base"


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (1, "0.1KB"),
        (999, "1KB"),
        (1_000, "1KB"),
        (4_100_000, "4.1MB"),
        (4_463_361, "4.5MB"),
        (999_999_999, "1000MB"),
        (70_000_000_001, "70.1GB"),
        (1_234_567_890_123_456, "1234.6TB"),
    ],
)
def test_a_size_to_type_holds_what_must_fit(count: int, size: str) -> None:
    """Rounded up to a tenth of its unit, and read back as no less."""
    assert size_for(count) == size
    assert bytes_of(size) >= count
