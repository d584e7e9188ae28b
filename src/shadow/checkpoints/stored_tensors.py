"""Tensors that lie in files, of which the parts that are asked for are read, each in few requests.

Such a tensor is a view without bytes (of torch's device `meta`), which says where each element
lies, beside the file. Whatever rearranges a tensor's dimensions rearranges the view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shadow.checkpoints.held_files import HeldFile
from shadow.checkpoints.safetensors_files import TensorInfo
from shadow.dtypes import FLOATS

# bytes that are read ahead, and kept: a smaller matrix is read once, and of a larger one columns
# come in wide stripes
WINDOW = 16 << 20
HOLES = 2  # a part is read with what lies between its elements where that is at most so many times

Span = tuple[int, int]  # of one dimension: (start, stop)


class StoredTensor:
    """A tensor of a file, or a rearranged part of one, read by `tensor[slices]`. For one thread.

    What an index returns must be used before the next one, and left as it is: it may be a part of
    what is kept.
    """

    def __init__(self, file: HeldFile, start: int, view: Tensor) -> None:
        """start: of the tensor, in bytes. view: of device `meta`, its offset counted from start."""
        self._file = file
        self._start = start
        self._view = view
        self._kept: tuple[list[Span], Tensor] | None = None

    @property
    def shape(self) -> torch.Size:
        return self._view.shape

    @property
    def ndim(self) -> int:
        return self._view.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self._view.dtype

    def numel(self) -> int:
        return self._view.numel()

    def seen(self, rearrange: Callable[[Tensor], Tensor]) -> StoredTensor | Tensor:
        """The same bytes as another view; the rearranged tensor itself where that is no view."""
        view = rearrange(self._view)
        if view.untyped_storage()._cdata == self._view.untyped_storage()._cdata:
            return StoredTensor(self._file, self._start, view)
        return rearrange(self.whole())

    def whole(self) -> Tensor:
        """All of it, in memory."""
        return self[()].clone()

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        """A part. Raises ShadowError where the file no longer has it."""
        wanted = [
            part.indices(size)[:2]
            for part, size in zip(
                [*index, *[slice(None)] * (self.ndim - len(index))], self.shape, strict=True
            )
        ]
        if self._kept is None or not _holds(self._kept[0], wanted):
            self._kept = None  # so that its memory serves for the next
            spans = self._widened(wanted)
            self._kept = spans, self._read(self._view[_slices(spans)])
        spans, kept = self._kept
        return kept[_slices([(a - s, b - s) for (a, b), (s, _) in zip(wanted, spans, strict=True)])]

    def _widened(self, wanted: list[Span]) -> list[Span]:
        """What is read where a part is wanted: small tensors whole, of large ones more columns."""
        sizes, itemsize = self.shape, self.dtype.itemsize
        if self.numel() * itemsize <= WINDOW:
            return [(0, size) for size in sizes]
        strides = self._view.stride()
        inner = min(range(self.ndim), key=strides.__getitem__)
        start, stop = wanted[inner]
        lines = max(1, _count(wanted) // max(1, stop - start)) * itemsize
        wider = list(wanted)
        wider[inner] = start, min(sizes[inner], max(stop, start + WINDOW // lines))
        return wider

    def _read(self, part: Tensor) -> Tensor:
        """A part of the view, with its bytes: in one request where there are few holes, otherwise
        run by run.
        """
        if part.numel() == 0:
            return torch.empty(part.shape, dtype=part.dtype)
        reach = 1 + sum((n - 1) * s for n, s in zip(part.shape, part.stride(), strict=True))
        order = sorted(range(part.ndim), key=part.stride().__getitem__, reverse=True)
        in_order = part.permute(order)
        run, outer = _runs(in_order)
        if reach <= HOLES * part.numel() or run == 1:
            flat = torch.empty(reach, dtype=part.dtype)
            self._fill(flat, [int(part.storage_offset())], reach)
            return flat.as_strided(part.shape, part.stride())
        firsts = torch.tensor([int(part.storage_offset())])
        for size, stride in zip(in_order.shape[:outer], in_order.stride()[:outer], strict=True):
            firsts = (firsts[:, None] + torch.arange(size) * stride).reshape(-1)
        flat = torch.empty(part.numel(), dtype=part.dtype)
        self._fill(flat, firsts.tolist(), run)
        back = sorted(range(part.ndim), key=order.__getitem__)
        return flat.view(in_order.shape).permute(back)

    def _fill(self, flat: Tensor, firsts: Sequence[int], run: int) -> None:
        """Read runs of elements, one after another, from where each begins in the tensor."""
        room, width = flat.view(torch.uint8).numpy().data, run * flat.dtype.itemsize
        place = 0
        for first in firsts:
            self._file.read(self._start + first * flat.dtype.itemsize, room[place : place + width])
            place += width


def stored_tensor(file: HeldFile, info: TensorInfo) -> StoredTensor:
    """The tensor of a file that an entry of its header names. Nothing is read before it is used."""
    dtype: torch.dtype = getattr(torch, FLOATS[info.dtype].torch_name)
    if info.strides is None or info.parameters == 0:
        return StoredTensor(file, info.start, torch.empty(info.shape, dtype=dtype, device="meta"))
    reach = torch.empty((info.end - info.start) // dtype.itemsize, dtype=dtype, device="meta")
    return StoredTensor(file, info.start, reach.as_strided(info.shape, info.strides))


def _slices(spans: Sequence[Span]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in spans)


def _count(spans: Sequence[Span]) -> int:
    count = 1
    for start, stop in spans:
        count *= max(0, stop - start)
    return count


def _holds(kept: Sequence[Span], wanted: Sequence[Span]) -> bool:
    """Whether all that is wanted is kept."""
    return all(a <= start and stop <= b for (a, b), (start, stop) in zip(kept, wanted, strict=True))


def _runs(part: Tensor) -> tuple[int, int]:
    """Elements that lie one after another in a part whose strides descend, and how many of its
    dimensions count such runs.
    """
    run, outer = 1, part.ndim
    while outer and (part.stride(outer - 1) == run or part.shape[outer - 1] == 1):
        run *= part.shape[outer - 1]
        outer -= 1
    return run, outer
