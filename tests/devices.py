"""A device that multiplies as the CPU does, and fails as it is told."""

from __future__ import annotations

import os

import numpy as np
import torch

from shadow.audits.devices import DeviceChoice
from shadow.spectra import spectrum

CHOICE = DeviceChoice("fake", "fake:0", "fake:0", name="a card of cardboard")


class FakeDevice:
    """fault: what becomes of its Gram matrices, None for nothing. at: in which calls, from 1; all
    where it is empty.

    test: what its self-test says. calls: how many Gram matrices were asked for.
    """

    kind = CHOICE.kind
    name = CHOICE.name

    def __init__(self, fault=None, at=(), test=None):
        self.fault, self.at, self.test = fault, at, test
        self.calls = self.tests = 0

    def gram(self, matrix_blocks, side, wide):
        self.calls += 1
        fails = self.fault is not None and (not self.at or self.calls in self.at)
        if fails and self.fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if fails and self.fault == "launch":
            raise RuntimeError(
                "CUDA error: an illegal memory access was encountered\nCompile with ..."
            )
        lower = spectrum.gram(matrix_blocks, side, wide, torch.float32)
        right = lower.tril() + lower.tril(-1).T
        return WRONG[self.fault](right) if fails else right

    def self_test(self):
        self.tests += 1
        return self.test

    def free_memory(self):
        return 8 << 30


def noisy(right):
    """Every entry is off by 1e-4 of itself, up or down; symmetric."""
    signs = np.where(np.random.default_rng(3).random(right.shape) < 0.5, -1e-4, 1e-4).astype(
        np.float32
    )
    signs = np.tril(signs) + np.tril(signs, -1).T
    return right * (1 + torch.from_numpy(signs))


def one_entry_is_nan(right):
    right[-1, 0] = right[0, -1] = torch.nan
    return right


WRONG = {
    "the diagonal": lambda right: torch.diag(right.diagonal()),
    "nothing": torch.zeros_like,
    "NaN": one_entry_is_nan,
    "infinite": lambda right: right / 0.0,
    "1e-4 too large": lambda right: right * (1 + 1e-4),
    "1e-4 of noise": noisy,
    "half of the matrix": lambda right: right.triu(),
    "another order": lambda right: right.flip(0).flip(1),
}


def in_a_child(check):
    """Settings are of the process: check runs in a fork of it."""
    child = os.fork()
    if not child:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
