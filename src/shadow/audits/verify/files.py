"""`shadow verify files A B`: the files beside the weights of two folders or repositories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shadow.audits.file_rows import file_rows
from shadow.audits.runtime import Runtime
from shadow.checkpoints.listing import Listing, listing_of_folder, listing_of_snapshot
from shadow.claims.verify.files import files, tokens_beyond
from shadow.claims.verify.verification import Verification
from shadow.errors import ShadowError
from shadow.targets.references import Reference


def verify_files(
    of: Mapping[str, str], checkpoints: Sequence[Reference], runtime: Runtime
) -> Verification:
    """What came of the claim. No weights are needed, and none are read.

    Raises ShadowError where a folder or a repository is not there.
    """
    first, second = ([("", _listing(one, runtime))] for one in checkpoints)
    rows = file_rows(first, second, runtime.say)
    answer, against = files(rows)
    return Verification("files", of, answer, against, tokens_beyond(rows))


def _listing(reference: Reference, runtime: Runtime) -> Listing:
    if reference.is_folder:
        root = Path(reference.repo)
        if not root.is_dir():
            raise ShadowError(f"no such folder: {reference.repo}", "name the folder of a model")
        return listing_of_folder(root)
    from shadow.checkpoints.hub import pin

    access = runtime.access
    return listing_of_snapshot(
        pin(
            reference.repo,
            reference.revision,
            reference.subfolder,
            offline=access.offline,
            say=runtime.say,
        )
    )
