"""`shadow` audits families of open-source models: spectra and ranks of weights and of weight
deltas.

    import shadow

    report = shadow.audit("demo:base..narrow", output="reports")
    report.summary.label
    report.deltas[["layer", "module", "concentration"]]

What is named in `__all__` is loaded when it is first asked for, so that importing the package costs
nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it, without the milliseconds of `import typing`
if TYPE_CHECKING:
    from typing import Any

    from shadow.api import audit, compare, export, judge, pairs, plan, read, read_all
    from shadow.errors import ShadowError, UsageError
    from shadow.outputs.notebook import AuditReport, AuditReports

__version__ = "0.1.0"

__all__ = [
    "AuditReport",
    "AuditReports",
    "ShadowError",
    "UsageError",
    "__version__",
    "audit",
    "compare",
    "export",
    "judge",
    "pairs",
    "plan",
    "read",
    "read_all",
]

# where each name is defined. No submodule has one of these names: importing it would replace the
# name here
_HOMES = {
    "AuditReport": "shadow.outputs.notebook",
    "AuditReports": "shadow.outputs.notebook",
    "ShadowError": "shadow.errors",
    "UsageError": "shadow.errors",
    "audit": "shadow.api",
    "compare": "shadow.api",
    "export": "shadow.api",
    "judge": "shadow.api",
    "pairs": "shadow.api",
    "plan": "shadow.api",
    "read": "shadow.api",
    "read_all": "shadow.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found  # the next time it is there
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
