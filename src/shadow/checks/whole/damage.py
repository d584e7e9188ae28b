"""`whole`: pages of a file that something else has overwritten."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.checks.whole.part import FAULT, FindingRule, Findings
from shadow.checks.whole.values import BUFFER, Values

PAGE = 4096
RULES: Mapping[str, FindingRule] = {
    "damaged_pages": FindingRule(
        FAULT,
        "in {pages:count page|pages} of 4 KB, the numbers have exponents that the rest hardly has;"
        " the first begins near byte {offset:count} of the tensor",
        "These pages are not what was saved: a disk, a copy or a download has changed them.",
        "Copy or download the file again, and compare its SHA-256 with the original's.",
    ),
}


def judge_pages(findings: Findings, values: Values) -> None:
    """Report tensors with damaged pages."""
    for tensor in values.swept:
        name = tensor.info.name
        if not tensor.found.damaged or BUFFER.fullmatch(name):
            continue
        pages = 0
        end = -1
        for offset in tensor.found.damaged:
            if offset >= end:
                pages += 1
                end = offset + PAGE
        findings.add(name, "damaged_pages", pages=pages, offset=tensor.found.damaged[0])
