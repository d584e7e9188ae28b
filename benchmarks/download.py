"""Does computing hide the download? An audit from a Hub on a slow line, against each alone.

A loopback Hub (tests/hub.py) in a process of its own serves a pair of the shapes of Qwen2.5-0.5B at
--rate MB/s. Timed as whole processes, in this order: the real client fetching every shard into an
empty cache, nothing else; the audit with that cache, so that nothing is fetched; the audit with an
empty cache. The last should take little more than the longer of the other two.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from make_pair import LAYERS, SIDES, write_pair
from processes import Usage, clean_environment, run_measured
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
SHADOW = Path(sys.executable).parent / "shadow"
FETCH = """
import huggingface_hub as hf
for repo in ("bench/base", "bench/tuned"):
    for name in sorted(hf.HfApi().list_repo_files(repo)):
        if name.endswith(".safetensors"):
            hf.hf_hub_download(repo, name)
"""


def measure(folder: Path, endpoint: str) -> dict[str, Usage]:
    """Seconds of the three processes."""

    def run(name: str, cache: str, command: list[str | Path]) -> Usage:
        environment = clean_environment() | {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        used = run_measured(command, environment, folder / "log")
        typer.echo(f"{name}: {used.wall:.1f} s", err=True)
        return used

    audit: list[str | Path] = [
        SHADOW,
        "audit",
        "--base",
        "bench/base",
        "--tuned",
        "bench/tuned",
        "-o",
    ]
    return {
        "download alone": run("download alone", "first", [sys.executable, "-c", FETCH]),
        "audit, all cached": run("audit, all cached", "first", [*audit, folder / "cached"]),
        "audit from the Hub": run("audit from the Hub", "second", [*audit, folder / "fetched"]),
    }


def main(
    rate: Annotated[int, typer.Option(help="Of the line, in MB/s.", min=1)] = 50,
    layers: Annotated[
        int, typer.Option(help="Blocks; fewer for a quick run.", min=1, max=LAYERS)
    ] = LAYERS,
    shards: Annotated[int, typer.Option(help="Files a side, at most.", min=1)] = 16,
    repeats: Annotated[int, typer.Option(help="Rounds; the quickest of each counts.", min=1)] = 1,
) -> None:
    """Time an audit whose shards come over a slow line."""
    rounds = []
    with tempfile.TemporaryDirectory() as made:
        pair = Path(made)
        write_pair(pair, layers, 0, shards)
        size = sum(path.stat().st_size for path in pair.rglob("*.safetensors"))
        repositories = [f"bench/{side}={pair / side}" for side in SIDES]
        server = [
            sys.executable,
            ROOT / "tests" / "hub.py",
            *repositories,
            "--rate",
            str(rate * 1_000_000),
        ]
        with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as hub:
            assert hub.stdout is not None, "a pipe"
            try:
                endpoint = hub.stdout.readline().strip()
                for number in range(repeats):
                    with tempfile.TemporaryDirectory(dir=made) as work:
                        typer.echo(f"round {number + 1}", err=True)
                        rounds.append(measure(Path(work), endpoint))
            finally:
                hub.terminate()
    best = {name: min(one[name].wall for one in rounds) for name in rounds[0]}
    download, cached, fetched = best.values()
    table = Table(
        title=(
            f"{size / 1e9:.2f} GB in {shards} shards a side at {rate} MB/s, {len(rounds)} round(s)"
        )
    )
    table.add_column("")
    table.add_column("wall, s", justify="right")
    for name, seconds in best.items():
        table.add_row(name, f"{seconds:.1f}")
    table.add_row(
        "audit from the Hub / longer of the two", f"{fetched / max(download, cached):.2f}"
    )
    table.add_row(
        "audit from the Hub / one after the other", f"{fetched / (download + cached):.2f}"
    )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
