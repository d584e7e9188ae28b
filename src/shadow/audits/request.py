"""What an audit is asked for: one `AuditRequest`, filled by the command and by the API.

Imports nothing that computes. `shadow.audits.perform` carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from shadow.files import safe_name
from shadow.run.access import Files
from shadow.spectra.method import Level, Subjects
from shadow.storage import Store, work_folder
from shadow.text import bytes_of

if TYPE_CHECKING:
    from shadow.checkpoints.opening import Found
    from shadow.targets.lists import Selection
    from shadow.targets.references import AnyReference

Place = str | PathLike[str]


@dataclass(frozen=True)
class Measuring:
    """What is measured, and how. Empty: all components, layers, modules.

    Layers are texts such as `0` or `4-7`, modules such as `attn.*`.
    """

    components: Sequence[str] = ()
    layers: Sequence[str] = ()
    modules: Sequence[str] = ()
    level: Level = "full"
    """How much: norms alone; singular values as estimates with their errors (sketch), in full, or
    by exact Gram matrices."""
    subjects: Subjects = "all"
    """Whose spectra are measured: of base, tuned and delta; or of the delta alone."""
    nulls: int = 0
    """Draws of the sampled null, 0 to 1000."""
    spectra: bool = True
    """Whether spectra.parquet is written."""
    device: str = "cpu"
    """cpu, cuda, one card as `cuda:1`, or auto: a card if there is one."""


@dataclass(frozen=True)
class Ray:
    """Tasks on Ray: which Ray, and what each task gets of it.

    Args:
        address: `auto`, or HOST:PORT of a cluster; None: that of RAY_ADDRESS, or a Ray of this
            machine, which ends with the audit.
        cpus_per_task: Cores, 1 or more; None: 4, or all of the largest machine.
        memory_per_task: Bytes of memory, or text such as `16GB`; None: the share that its cores are
            of its machine's cores.
    """

    address: str | None = None
    cpus_per_task: int | None = None
    memory_per_task: int | str | None = None

    @property
    def memory(self) -> int | None:
        """Bytes of memory of a task. Raises UsageError for a text that is no size."""
        if isinstance(self.memory_per_task, str):
            return bytes_of(self.memory_per_task)
        return self.memory_per_task


@dataclass(frozen=True)
class AuditRequest:
    """The pairs, what is measured of them, and where and with what."""

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
    parts: int | None = None
    """How many parts each pair is measured in; None: whole, or a single pair on Ray in as many as
    run at a time.
    """
    found: Mapping[AnyReference, Found] = field(default_factory=dict, compare=False)
    """Checkpoints in memory, by what the pair calls them."""

    def folders(self) -> Iterator[Path]:
        """Where its pairs are audited, each in a folder that is there as soon as it holds anything;
        of a URL all of them in one.
        """
        if isinstance(self.output, Store):
            yield work_folder(self.output)
            return
        for pair in self.selection.own:
            yield self.output / safe_name(pair.family) / safe_name(pair.name)

    @property
    def is_alone(self) -> bool:
        """Whether it is one pair and no list. Then its fault is the fault of the whole audit."""
        return len(self.selection.own) == 1 and not self.selection.is_list

    @property
    def is_cut(self) -> bool:
        """Whether the tasks are parts of a pair, and pairs are audited in turn."""
        return self.parts is not None or (self.ray is not None and self.is_alone)
