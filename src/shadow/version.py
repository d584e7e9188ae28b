"""The version of the package: reports record it, and a build reads it."""

__version__ = "0.4.0"
