"""`shadow` audits families of open-source models: spectra and ranks of weights and of weight
deltas.

    import shadow

    report = shadow.audit("demo:base..narrow", output="reports")
    report.summary.finding.headline
    report.deltas[["layer", "module", "concentration"]]

What is named in `__all__` is loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from shadow.version import __version__

TYPE_CHECKING = False  # as type checkers know it, without the milliseconds of `import typing`
if TYPE_CHECKING:
    from typing import Any

    from shadow.api import (
        audit,
        check,
        compare,
        export,
        judge,
        pairs,
        plan,
        read,
        read_all,
        snapshot,
        verify,
    )
    from shadow.engines.engine import Ray
    from shadow.errors import ShadowError, UsageError
    from shadow.lists.request import Measuring
    from shadow.run.runtime import Files
    from shadow.telling.reading import AuditReport, AuditReports

__all__ = [
    "AuditReport",
    "AuditReports",
    "Files",
    "Measuring",
    "Ray",
    "ShadowError",
    "UsageError",
    "__version__",
    "audit",
    "check",
    "compare",
    "export",
    "judge",
    "pairs",
    "plan",
    "read",
    "read_all",
    "snapshot",
    "verify",
]

# Where names are defined that are not of shadow.api. No submodule has one of the names: importing
# it would replace the name here.
_HOMES = {
    "AuditReport": "shadow.telling.reading",
    "AuditReports": "shadow.telling.reading",
    "Files": "shadow.run.runtime",
    "Measuring": "shadow.lists.request",
    "Ray": "shadow.engines.engine",
    "ShadowError": "shadow.errors",
    "UsageError": "shadow.errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES.get(name, "shadow.api")), name)
    globals()[name] = value  # the next time it is there
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
