"""What does it cost to read weights from a file instead of mapping it, to sample them for a
fingerprint, and to sum up all bytes? CPU seconds for each GB.

Matrices of the shapes of released models are read tile by tile and block by block, as an audit does
it several times: as tensors of a mapped file, and as `shadow.checkpoints.stored_tensors` reads
them. `first` is the first pass over a matrix whose file is in memory. The least of the rounds
counts. A mapped file that is cut short meanwhile would end the process.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.safetensors_files import TensorInfo, read_header
from shadow.checkpoints.sources import LocalFile
from shadow.spectra.spectrum import Workspace, blocks, read_block, tiles

SHAPES = {
    "896 x 4864": (896, 4864),
    "4096 x 11008": (4096, 11008),
    "11008 x 4096": (11008, 4096),
    "8192 x 28672": (8192, 28672),
    "151936 x 896": (151936, 896),
}
FILE = "model.safetensors"


def mapped(path: Path, info: TensorInfo) -> Any:
    """A tensor as a view of the mapped file."""
    page = info.start - info.start % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), info.end - page, access=mmap.ACCESS_COPY, offset=page)
    data = torch.frombuffer(memory, dtype=torch.uint8, offset=info.start - page)
    return data.view(torch.bfloat16).view(info.shape)


def stored(path: Path, info: TensorInfo) -> Any:
    """The same as an audit reads it."""
    return LocalFile(path).tensor(info)


def forget(path: Path) -> None:
    """Let the system forget what it keeps of a file in memory."""
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main(
    folder: Annotated[
        Path | None, typer.Option(help="Where the file is written; none: a temporary one.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        path, space = place / FILE, Workspace()
        save_file({name: torch.randn(*shape).bfloat16() for name, shape in SHAPES.items()}, path)
        header, _ = read_header(path, FILE)

        def read(tensor: Any, cut: Callable[[Any], Any]) -> None:
            for index, _ in cut(tensor):
                read_block(tensor, index, "base", torch.float32, space)

        table = Table("bfloat16", "how", "first", "tiles", "blocks", title="CPU s a GB")
        for name, shape in SHAPES.items():
            size = 2 * shape[0] * shape[1] / 1e9
            for make in (mapped, stored):
                least = [float("inf")] * 3
                for _ in range(rounds):
                    tensor = make(path, header[name])
                    passes = (tiles, tiles, blocks)
                    for number, cut in enumerate(passes):
                        took = seconds(lambda tensor=tensor, cut=cut: read(tensor, cut))
                        least[number] = min(least[number], took / size)
                table.add_row(name, make.__name__, *(f"{took:.2f}" for took in least))
        console = Console()
        console.print(table)
        size = path.stat().st_size / 1e9
        for where in ("in memory", "on the disk"):
            walls = []
            for _ in range(rounds):
                if where == "on the disk":
                    forget(path)
                began = time.perf_counter()
                open_folder(str(place))
                walls.append(time.perf_counter() - began)
            console.print(f"opened, {where}: {1e3 * min(walls) / size:.0f} ms a GB")
        file = LocalFile(path).located(next(iter(header.values())))[0]
        content = path.read_bytes()
        ways: dict[str, Callable[[], object]] = {
            "read, CRC-32 and Adler-32": lambda: file.checksum(0, file.size),
            "SHA-256 in memory": lambda: hashlib.sha256(content),
            "BLAKE2b in memory": lambda: hashlib.blake2b(content),
        }
        for name, way in ways.items():
            took = min(seconds(way) for _ in range(rounds))
            console.print(f"all bytes, {name}: {took / size:.2f} CPU s a GB")


if __name__ == "__main__":
    typer.run(main)
