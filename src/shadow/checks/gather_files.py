"""`shadow verify files A B`: the files beside the weights of two folders or repositories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadow.checkpoints.listing import Listing, listing_of_folder, listing_of_snapshot
from shadow.checks.files import files
from shadow.checks.verification import Verification
from shadow.errors import ShadowError
from shadow.run.file_rows import file_rows
from shadow.run.runtime import Runtime
from shadow.targets.references import Reference


def verify_files(
    of: Mapping[str, str], checkpoints: Sequence[Reference], runtime: Runtime
) -> Verification:
    """What came of the claim. No weights are needed, and none are read."""
    first, second = ([("", _listing(one, runtime))] for one in checkpoints)
    return Verification("files", of, *files(file_rows(first, second, runtime.say)))


def _listing(reference: Reference, runtime: Runtime) -> Listing:
    if reference.is_folder:
        root = Path(reference.repo)
        if not root.is_dir():
            raise ShadowError(f"no such folder: {reference.repo}", "name the folder of a model")
        return listing_of_folder(root)
    from shadow.checkpoints.hub import pin

    at = reference.repo, reference.revision, reference.subfolder
    return listing_of_snapshot(pin(*at, offline=runtime.access.offline, say=runtime.say))
