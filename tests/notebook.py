"""Runs docs/notebook.ipynb in a kernel of its own and writes it back with what its cells show:
`make notebook`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with new outputs, without times and the kernel's Python, which always differ."""
    with tempfile.TemporaryDirectory() as folder:
        # one output for each stream, however the machine cuts it
        nbclient.NotebookClient(
            notebook, timeout=300, coalesce_streams=True, resources={"metadata": {"path": folder}}
        ).execute()
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        for output in cell.get("outputs", ()):
            for kind, shown in output.get("data", {}).items():
                output["data"][kind] = shown.replace(str(ROOT), "...")  # the same everywhere
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    return notebook


if __name__ == "__main__":
    found = executed(nbformat.read(NOTEBOOK, as_version=4))
    nbformat.write(found, NOTEBOOK)
