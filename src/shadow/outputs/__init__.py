"""Outputs: results to look at or to load into other programs.

The terminal, the web page, figures, exports, and what continuous integration shows.
"""

from typing import Literal

ExportFormat = Literal["csv", "parquet", "markdown"]  # drawn by `shadow.outputs.exports`
