"""What shadow.text says of many words and of misspelt ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.text import (
    VERY_LIKE,
    about_time,
    bytes_of,
    closest,
    nearest,
    redacted,
    redacted_url,
    several,
    size_for,
)


@pytest.mark.parametrize(("count", "shown", "said"), [
    (0, 2, ""), (1, 2, "0"), (2, 2, "0, 1"), (3, 2, "0, 1 and 1 more"),
    (1_003, 3, "0, 1, 2 and 1,000 more"),
])  # fmt: skip
def test_several_names_the_first_words_and_counts_the_rest(count: int, shown: int, said: str):
    """A list no longer than what is shown says nothing of a rest."""
    assert several([str(number) for number in range(count)], shown) == said


def test_nearest_asks_for_the_likest_word_or_for_none() -> None:
    """Likeness is twice the letters in common over all letters: of `layr` and `layer` 8 / 9."""
    assert nearest("layr", ["head", "layer"]) == "did you mean 'layer'?"
    assert nearest("zzz", ["head", "layer"]) is None
    # `bse` and `base` 6 / 7, `bs` and `base` 4 / 6
    assert closest("bse", ["base"], VERY_LIKE) == "base"
    assert closest("bs", ["base"], VERY_LIKE) is None
    assert closest("bs", ["base"]) == "base"


@pytest.mark.parametrize(("count", "size"), [
    (1, "0.1KB"), (999, "1KB"), (1_000, "1KB"), (4_100_000, "4.1MB"), (4_463_361, "4.5MB"),
    (999_999_999, "1000MB"), (70_000_000_001, "70.1GB"), (1_234_567_890_123_456, "1234.6TB"),
])  # fmt: skip
def test_a_size_to_type_holds_what_must_fit(count: int, size: str) -> None:
    """Rounded up to a tenth of its unit, and read back as no less."""
    assert size_for(count) == size
    assert bytes_of(size) >= count


STORES = st.sampled_from(["s3", "gs", "az", "hf", "abfs", "ftp", "S3"])
SCHEMES = STORES | st.sampled_from(["http", "https"])
# of a password any letter, also those that part a URL; no space and no quote, which end one
LETTERS = st.text(st.sampled_from("abz09/@:?#+%&=._-"), max_size=6)
SECRET = st.builds("{}SECRET{}".format, LETTERS, LETTERS)
WRAPPED = st.sampled_from(["{}", "no such folder: {}", "{}: not there", "'{}' is none, see {}"])


@given(STORES, SECRET, WRAPPED)
def test_no_account_of_a_store_is_told(scheme, secret, wrapped):
    """Whatever its password is, with a bucket behind it and without."""
    for url in (f"{scheme}://KEY:{secret}@bucket/x", f"{scheme}:/KEY:{secret}@bucket/x"):
        if url.startswith(("ftp:/K", "S3:/K")):  # taken for a path in a text
            continue
        assert "SECRET" not in redacted_url(url)
        assert "SECRET" not in redacted(wrapped.replace("{}", url))


@given(SCHEMES, st.text(st.sampled_from("abz09:?#+%&=._-"), max_size=6), WRAPPED)
def test_no_password_before_a_slash_is_told(scheme, letters, wrapped):
    """Also of a web address, whose path may have an `@`."""
    url = f"{scheme}://user:{letters}SECRET@host.example/x"
    assert "SECRET" not in redacted_url(url) + redacted(wrapped.replace("{}", url))


@given(SCHEMES, st.sampled_from("?#"), SECRET, WRAPPED)
def test_no_query_and_no_fragment_is_told(scheme, begins, secret, wrapped):
    """Signatures of signed URLs, and tokens."""
    url = f"{scheme}://host.example/x{begins}X-Amz-Signature={secret}"
    assert "SECRET" not in redacted_url(url) + redacted(wrapped.replace("{}", url))


@given(SCHEMES, LETTERS | SECRET, WRAPPED)
def test_what_was_left_out_stays_out(scheme, rest, wrapped):
    """What has been redacted is not changed again."""
    once = redacted(wrapped.replace("{}", f"{scheme}://{rest}"))
    assert redacted(once) == once


def test_a_password_in_quotes_may_have_spaces():
    assert redacted("no pair 's3://K:a b@c d@bucket/x'") == "no pair 's3://***@bucket/x'"


@pytest.mark.parametrize("text", [
    "org/a: http://127.0.0.1:9 cannot be reached (ConnectError)",
    "see http://127.0.0.1:8000/org/name/tree/a@b",
    "see http://[::1]:8000/org/name, https://huggingface.co/org/name.",
    "s3://bucket/x: no such bucket or file", "write hf://buckets/NAME/BUCKET/FOLDER",
    "ray://host:10001: would end with its connection",
    "hf://datasets/a/b@main/x and s3://bucket/a@b",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/name/x: access denied",
    "org/name@main, demo:base..narrow and /tmp/a:b@c", "file:///tmp/a: no report",
    "one of s3://, gs://, az://, or a folder",
])  # fmt: skip
def test_what_holds_no_account_stays(text):
    """Ports, revisions, access points of S3, and the words around a URL."""
    assert redacted(text) == text


@pytest.mark.parametrize(("seconds", "said"), [
    (0.0, "under a second"), (1.2, "about 1 second"), (59.4, "about 59 seconds"),
    (59.6, "about 1 minute"), (3600, "about 60 minutes"), (5400, "about 1.5 hours"),
    (360_000, "about 100 hours"),
])  # fmt: skip
def test_a_time_that_is_estimated_has_two_digits_and_a_unit(seconds: float, said: str) -> None:
    """Never `0:04`, which may be minutes or hours."""
    assert about_time(seconds) == said
