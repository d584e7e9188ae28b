"""The request of an audit: one `AuditRequest`, filled by the command or the API.

Imports nothing that computes. `shadow.lists.perform` carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.engines.engine import Ray
from shadow.errors import UsageError
from shadow.files import report_folder
from shadow.options import explained, option
from shadow.reports.folders import FINISHED
from shadow.run.runtime import Files
from shadow.spectra.measurement import Method
from shadow.storage import Store, work_folder

if TYPE_CHECKING:
    from shadow.checkpoints.opening import AnyCheckpoint
    from shadow.targets.lists import Selection
    from shadow.targets.references import AnyReference


@explained
@dataclass(frozen=True)
class Measuring(Method):
    """Selection and method of a measurement. Empty: all components, layers, modules."""

    components: Sequence[str] = option("Only this component; may be repeated.", (), "--component")
    layers: Sequence[str | int] = option(
        "Only these layers: 0, or 4-7; may be repeated.", (), "--layer", metavar="LAYERS"
    )
    modules: Sequence[str] = option(
        "Only these modules: mlp.up, or attn.*; may be repeated.",
        (),
        "--module",
        metavar="MODULE",
    )
    by_number: bool = option(
        "Compare layers, experts and rows of a vocabulary by number alone, whatever they hold.",
        False,
    )
    spectra: bool = option("Write spectra.parquet.", True, "--spectra/--no-spectra")
    device: str = option(
        "Device for products, experimental: cpu, cuda, a card such as cuda:1, or auto (a card if"
        " there is one).",
        "cpu",
        metavar="DEVICE",
    )


@dataclass(frozen=True)
class AuditRequest:
    """The pairs of an audit, what to measure, where, and with which settings."""

    selection: Selection
    """The pairs, and whether they make a list, which has an index."""
    output: Path | Store
    measuring: Measuring = Measuring()
    files: Files = Files()  # noqa: RUF009 - frozen
    overwrite: bool = False
    jobs: int | None = None
    """Matrices that are measured at a time; None: as many as there are cores, or as fit the memory;
    one where norms of stored floats are all that is measured.
    """
    ray: Ray | None = None
    """What carries out the pairs; None: this process."""
    checkpoints: Mapping[AnyReference, AnyCheckpoint] = field(default_factory=dict, compare=False)
    """Checkpoints in memory, by what the pair calls them."""

    def __post_init__(self) -> None:
        above = (self.output, *self.output.parents) if isinstance(self.output, Path) else ()
        if any(
            (folder / FINISHED).is_file() for folder in above
        ):  # no name would stand for it alone
            raise UsageError(f"{self.output} is a report or in one", "choose another with -o")

    def folders(self) -> Iterator[Path]:
        """Yield the folders of the pairs as soon as they have content; for a URL, one folder for
        all.
        """
        if isinstance(self.output, Store):
            yield work_folder(self.output)
            return
        for pair in self.selection.own:
            yield self.output / report_folder(pair.family, pair.name)

    @property
    def is_alone(self) -> bool:
        """True if it is a single pair and no list, whose error is that of the
        whole audit.
        """
        return len(self.selection.own) == 1 and not self.selection.is_list
