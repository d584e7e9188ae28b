"""What a terminal of a width shows of a document."""

import io

from rich.console import Console

from shadow.outputs.terminal import View
from shadow.telling.document import Block, Document


def drawn(document: Document | Block, width: int = 1000) -> str:
    """The text, without colours."""
    if isinstance(document, Block):
        document = Document([document])
    console = Console(file=io.StringIO(), width=width, highlight=False, emoji=False)
    console.print(View(document))
    return console.file.getvalue()
