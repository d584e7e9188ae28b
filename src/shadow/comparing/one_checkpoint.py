"""Which sides of several reports are one checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from shadow.reports.metadata import CheckpointMetadata

Key = tuple[str, ...]


def numbered(sides: Sequence[CheckpointMetadata]) -> list[int]:
    """A number for each side, from 0, equal for equal checkpoints.

    Two are equal where their content, their files or their commit is. Files have a fingerprint, of
    a sample: where those of one fingerprint have several contents, the content decides.
    """
    contents: defaultdict[str | None, set[str]] = defaultdict(set)
    for side in sides:
        if content := side.get("content"):
            contents[side["fingerprint"]].add(content)
    parent: dict[Key, Key] = {}

    def top(key: Key) -> Key:
        parent.setdefault(key, key)
        while parent[key] != key:
            key = parent[key]
        return key

    known = [_keys(side, contents) for side in sides]
    for first, *others in known:
        for other in others:
            parent[top(other)] = top(first)
    tops = [top(keys[0]) for keys in known]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(tops))}
    return [numbers[key] for key in tops]


def _keys(side: CheckpointMetadata, contents: Mapping[str | None, set[str]]) -> list[Key]:
    """What a checkpoint is known by: equal in one of these, equal. contents: by fingerprint."""
    keys: list[Key] = []
    content, files = side.get("content"), side["fingerprint"]
    if content:
        keys.append(("content", content))
    if files and not (content and len(contents[files]) > 1):
        keys.append(("files", files))
    if side["commit"]:
        keys.append(("commit", side["repo"].lower(), side["commit"]))
    return keys or [("name", side["repo"])]
