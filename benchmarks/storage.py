"""What do reports at a URL cost? On an S3 server of this machine (moto's), so the network costs
nothing and the server, which is Python, takes most of the time: the figures are of requests and
bytes, and CPU of this process and the server together.

Made up: one small report (the shipped demo) under many names. Prints, for each: requests, bytes
that moved, and seconds of CPU and of the clock.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from s3 import BUCKET, Server, s3_server

import shadow
from shadow.audits.remote import merge_remote
from shadow.reports.remote import fetched, new_token, outlined_below, publish
from shadow.storage import Store, located


def main(reports: Annotated[int, typer.Option(min=1)] = 100, writers: int = 8) -> None:
    """Measure uploads, reading, merging and conditional creation."""
    table = Table("what", "requests", "by method", "moved", "CPU, s", "wall, s")
    with s3_server() as server, tempfile.TemporaryDirectory() as made:
        os.environ |= {name: value for name, value in server.env().items() if value is not None}
        report = shadow.audit("demo:base..narrow", output=made, subspaces=False).folder
        folders = [Path(made) / "many" / "toy" / f"base..{n}" for n in range(reports)]
        for folder in folders:
            shutil.copytree(report, folder)
        store = located(f"s3://{BUCKET}/reports", server.options())
        assert isinstance(store, Store)
        for count in (1, reports):
            row(
                table,
                server,
                f"upload {count} report{'s' * (count > 1)}",
                lambda count=count: [
                    publish(
                        folder,
                        store.at(str(count), "toy", folder.name),
                        token=new_token(),
                        replaces=None,
                    )
                    for folder in folders[:count]
                ],
            )
        many = store.at(str(reports))
        row(table, server, f"read {reports} reports, with spectra", lambda: fetched(many))
        row(table, server, f"read {reports}, without", lambda: fetched(many, spectra=False))
        row(table, server, f"outlines of {reports}", lambda: outlined_below(many))
        one = store.at("1")
        row(table, server, "merge of 1 report within the store",
            lambda: merge_remote(store.at("all"), [one]))  # fmt: skip
        row(table, server, f"{writers} conditional creations of one key",
            lambda: created(store, writers))  # fmt: skip
    Console().print(table)


def created(store: Store, writers: int) -> None:
    """Of many writers one creates a key."""
    won = [store.create("claim", str(number).encode()) for number in range(writers)]
    assert Counter(won)[True] == 1


def row(table: Table, server: Server, what: str, work: Callable[[], object]) -> None:
    """Do it, and add its figures to the table."""
    server.requests.clear()
    server.got = 0
    began, started = time.process_time(), time.monotonic()
    work()
    cpu, wall = time.process_time() - began, time.monotonic() - started
    methods = Counter(request.method for request in server.requests)
    by_method = ", ".join(f"{count} {name}" for name, count in sorted(methods.items()))
    moved = server.got + sum(request.sent for request in server.requests)
    table.add_row(
        what,
        f"{len(server.requests):,}",
        by_method,
        decimal(moved),
        f"{cpu:.1f}",
        f"{wall:.1f}",
    )


if __name__ == "__main__":
    typer.run(main)
