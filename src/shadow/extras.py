"""Packages that only some commands need, each installed with an extra."""

from __future__ import annotations

import importlib

from shadow.errors import ShadowError

EXTRAS = {  # extra: the packages it brings, as in pyproject.toml
    "adapters": ("peft",),
    "az": ("adlfs",),
    "figure": ("matplotlib",),
    "gs": ("gcsfs",),
    "quantised": ("gguf",),
    "ray": ("ray",),
    "report": ("jinja2",),
    "s3": ("s3fs",),
}


def require(extra: str) -> None:
    """Raise ShadowError if packages of the extra are missing, with the command to install them."""
    missing = [name for name in EXTRAS[extra] if not is_installed(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ShadowError(f"{' and '.join(missing)} {verb} not installed", installing(extra))


def installing(extra: str) -> str:
    """The command that installs an extra. The package is on no index: pip takes a clone."""
    return f"in a clone of shadow, type: pip install '.[{extra}]'"


def is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # the package is there and lacks one of its own: its traceback says more
        if error.name != name:
            raise
        return False
    return True
