"""The bounds of explanations, on planted changes: none of at least 300 is on the wrong side."""

from collections.abc import Iterator
from types import SimpleNamespace as Record

import numpy as np
import pytest
import torch

from shadow.checks.explanations import EXPLANATIONS, IN_8_BITS

Array = np.ndarray


def integers(W: Array, group: int, *, even: bool) -> Array:
    """8 bits with a scale for each group: from -127 to 127, or 0 to 255 from the least on."""
    blocks = W.reshape(len(W), -1, group)
    least = 0.0 if even else blocks.min(-1, keepdims=True)
    top = np.abs(blocks).max(-1, keepdims=True) if even else blocks.max(-1, keepdims=True) - least
    step = np.where(top > 0, top, 1.0) / (127 if even else 255)
    return (np.round((blocks - least) / step) * step + least).reshape(W.shape)


def floats(W: Array, group: int, dtype: torch.dtype) -> Array:
    blocks = W.reshape(len(W), -1, group)
    scale = np.abs(blocks).max(-1, keepdims=True) / torch.finfo(dtype).max
    stored = torch.from_numpy(blocks / scale).to(dtype).double().numpy()
    return (stored * scale).reshape(W.shape)


def weights(rng: np.random.Generator, shape: tuple[int, int]) -> Iterator[Array]:
    normal = rng.standard_normal(shape)
    yield normal
    yield rng.standard_t(3, shape)
    yield rng.laplace(size=shape)
    yield rng.uniform(-1, 1, shape)
    yield normal * np.exp(rng.standard_normal(shape[1]))
    yield normal * np.exp(rng.standard_normal((shape[0], 1)))
    yield normal + 3 * rng.standard_normal((shape[0], 1)) @ rng.standard_normal((1, shape[1]))
    yield np.where(np.abs(normal) < 0.67, 0, normal)


def test_no_copy_through_8_bits_is_as_near_as_the_bound():
    """12 formats of 8 bits, 8 kinds of weights."""
    rng = np.random.default_rng(0)
    errors = []
    for shape in ((128, 256), (256, 1024), (96, 512), (512, 256)):
        for W in weights(rng, shape):
            copies = [
                integers(W, group, even=even)
                for group in (16, 32, 64, 128, shape[1])
                for even in (True, False)
            ]
            copies += [floats(W, 128, dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)]
            errors += [np.linalg.norm(copy - W) / np.linalg.norm(W) for copy in copies]
    assert len(errors) >= 300
    assert min(errors) > IN_8_BITS


FITS = {"adapter", "low_rank", "flat", "rounding"}
OPEN = {"rank_unknown", "on_few_bits", "adds_up", "calibrated"}
TRAINED = {"relative_norm": 0.02, "concentration": 0.3, "levels_tuned_judged": 9}
FLAT = {"judged": 4, "flatter_than_noise": 3}
# figures of a pair, and how many of its 4 vectors changed -> the codes of some explanations
JUDGED = {
    "nothing": ({}, 4, "rank_unknown adds_up calibrated"),
    "an adapter": ({"rank_ceiling": 8}, 4, "adapter"),
    "few directions": ({"rank_most": 8, "rank_known": 9, "short_side": 64}, 4, "low_rank"),
    "many directions": ({"rank_least": 60, "short_side": 64}, 4, "high_rank"),
    "half of them": ({"rank_least": 512, "short_side": 1024}, 4, "rank_unknown"),
    "an adapter on few bits": (
        {"rank_least": 60, "short_side": 64, "noisy_rest": 5}, 4, "on_few_bits",
    ),
    "four of nine": ({"rank_least": 60, "short_side": 64, "noisy_rest": 4}, 4, "high_rank"),
    "flat": (FLAT, 4, "flat"),
    "flat, nearly as the weights are": (FLAT | {"decay_cosine": -0.0999}, 4, "flat"),
    "flat as the weights are": (FLAT | {"decay_cosine": -0.1001}, 4, "adds_up"),
    "a format": ({"kept_high_overall": 0.4}, 4, "rounding"),
    "a format, and more": ({"kept_high_overall": 0.6}, 4, "calibrated"),
    "small": ({"relative_norm": 0.0019}, 4, "small"),
    "small, on one grid": ({"relative_norm": 0.0019, "levels_base_few": 1}, 4, "calibrated"),
    "trained": (TRAINED, 4, "trained"),
    "without vectors": (TRAINED, 1, "calibrated"),  # a copy leaves biases and norms
    "merged": (TRAINED | {"rank_most": 8, "rank_known": 9, "short_side": 64}, 1, "not_full_rank"),
    "then in FP8": (TRAINED | {"concentration": 0.2}, 4, "calibrated"),
    "then by GPTQ in 8 bits": (TRAINED | {"relative_norm": 0.011}, 4, "calibrated"),
    "few values": (TRAINED | {"levels_tuned_few": 9}, 4, "calibrated"),
    "values unknown": (TRAINED | {"levels_tuned_judged": 0}, 4, "calibrated"),
}  # fmt: skip


NO_LEVELS = {f"levels_{side}_{what}": 0 for side in ("base", "tuned") for what in ("few", "judged")}


class Figures(Record):
    """Figures of which those that are not given are null."""

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, name: str) -> object:
        return getattr(self, name)


@pytest.mark.parametrize("case", JUDGED)
def test_answers_and_the_figures_in_their_words(case):
    """Each answer has the figures that its words write, by their place in summary.json."""
    figures, changed, codes = JUDGED[case]
    known = Figures(
        **{"matrices": 9, "judged": 0, "flatter_than_noise": 0, "noisy_rest": 0, **NO_LEVELS}
        | figures
    )
    vectors = Record(changed=changed, compared=4)
    record = Record(
        inside_layers=known, figures=known, vectors=vectors, recognised=Record(zeroed=None)
    )
    found = [(check, check.judge(record)) for check in EXPLANATIONS.values()]
    assert {*codes.split()} <= {one.reasons[0].code for _, one in found}
    for check, answer in found:
        code, outcome = answer.reasons[0].code, "does_not_hold"
        outcome = "inconclusive" if code in OPEN else outcome
        assert answer.outcome == ("holds" if code in FITS else outcome)
        for place, value in answer.figures.items():
            assert value == known[place.partition(".")[2]] is not None
        assert check.say_all(answer.reasons)
