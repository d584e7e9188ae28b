"""A plugin that prints the tests that took longest, all cases of one together, with what each
proves: `make slowest`.
"""

from collections import Counter
from collections.abc import Iterable

import pytest

COUNT = 40


def sentence(item: pytest.Function) -> str:
    """The first sentence of a docstring; the words of its name for a test without one."""
    text = " ".join((item.function.__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".") or item.originalname.replace("_", " ")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function):
            item.user_properties.append(("proves", sentence(item)))


def lines(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Seconds, cases, name and statement of the slowest, the slowest first."""
    seconds = Counter[str]()
    cases: dict[str, set[str]] = {}
    statements = {}
    for report in reports:
        name = report.nodeid.partition("[")[0]
        seconds[name] += report.duration
        cases.setdefault(name, set()).add(report.nodeid)
        statements[name] = dict(report.user_properties).get("proves", "")
    return [
        f"{took:5.1f} s {len(cases[name]):4}  {name.removeprefix('tests/')}: {statements[name]}"
        for name, took in seconds.most_common(COUNT)
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for of_outcome in terminalreporter.stats.values()
        for report in of_outcome
        if isinstance(report, pytest.TestReport)
    ]
    terminalreporter.section(f"{COUNT} slowest tests: seconds, cases, what each proves")
    for line in lines(reports):
        terminalreporter.write_line(line)
