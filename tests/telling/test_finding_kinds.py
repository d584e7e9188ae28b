"""What is said of kinds of change whose sentences once were false: planted in small decoders, with
the truth by NumPy from the tensors.
"""

import re
from functools import cache

import numpy as np
import planted
import pytest
import torch
from finding_cases import answers
from measuring import pair_of

from shadow.checkpoints.pairing import Filter
from shadow.checks.explanations import recognised
from shadow.dtypes import NF4
from shadow.engines.pair import run_pair
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method

Weights = dict[str, torch.Tensor]
Sides = tuple[Weights, Weights]
WIDTH, MLP, LAYERS, PAD = 128, 384, 2, 32
HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decoder() -> Weights:
    """Weights on BF16's grid, in float64."""
    g = generator(0)
    shapes = {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"}
    shapes |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (MLP, WIDTH))
    shapes["mlp.down_proj"] = (WIDTH, MLP)
    made = {EMBED: torch.randn(256, WIDTH, generator=g), HEAD: torch.randn(256, WIDTH, generator=g)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            made[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape, generator=g)
    return {name: (0.03 * one).bfloat16().double() for name, one in made.items()}


BASE = decoder()
INSIDE = [name for name in BASE if ".layers." in name]


def in_layers(change) -> Weights:
    return BASE | {name: change(BASE[name]) for name in INSIDE}


def stored(base: Weights, tuned: Weights, dtype: torch.dtype = torch.bfloat16) -> Sides:
    first, second = ({name: one.to(dtype) for name, one in side.items()} for side in (base, tuned))
    return first, second


def nf4(W: torch.Tensor) -> torch.Tensor:
    blocks = W.reshape(len(W), -1, 64)
    largest = blocks.abs().amax(2, keepdim=True)
    levels = torch.tensor(NF4, dtype=torch.float64)
    nearest = (blocks[..., None] / largest[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * largest).reshape(W.shape)


def int8(W: torch.Tensor) -> torch.Tensor:
    step = W.abs().amax(1, keepdim=True) / 127
    return (W / step).round() * step


def product(W: torch.Tensor, rank: int, size: float) -> torch.Tensor:
    g = generator(W.numel())
    factors = torch.randn(len(W), rank, generator=g), torch.randn(rank, W.shape[1], generator=g)
    D = factors[0].double() @ factors[1].double()
    return size * W.norm() * D / D.norm()


def turned(W: torch.Tensor) -> torch.Tensor:
    """Blocks of 32 outputs turned far, by Cayley's rotations, as OFT trains them."""
    S = torch.randn(len(W) // 32, 32, 32, generator=generator(5), dtype=torch.float64)
    S = (S - S.transpose(1, 2)) / 2
    eye = torch.eye(32, dtype=torch.float64)
    return (torch.linalg.solve(eye + S, eye - S) @ W.reshape(-1, 32, W.shape[1])).reshape(W.shape)


def without_direction() -> Sides:
    """A direction taken from all that writes, where the vocabulary and MLPs are padded by 0."""
    r = torch.randn(WIDTH, generator=generator(2)).double()
    r /= r.norm()
    base, tuned = dict(BASE), dict(BASE)
    for name, one in BASE.items():
        if "embed" in name:
            base[name] = torch.cat([one, torch.zeros(PAD, WIDTH)])
            tuned[name] = base[name] - torch.outer(base[name] @ r, r)
        if "down_proj" in name:
            base[name] = torch.cat([one, torch.zeros(WIDTH, PAD)], 1)
            tuned[name] = base[name] - torch.outer(r, r @ base[name])
    return stored(base, tuned, torch.float32)


def raw_fp8() -> Sides:
    """The numbers of FP8, without the scales that make weights of them."""
    base, tuned = stored(BASE, BASE)
    for name in INSIDE:
        tuned[name] = (BASE[name] * 448 / BASE[name].abs().max()).to(torch.float8_e4m3fn)
    return base, tuned


def attention_of_another() -> Sides:
    """Attention of layer 1 is that of layer 0; MLPs stay where they are."""
    places = {name: name.replace(".1.self", ".0.self") for name in BASE}
    return stored(BASE, {name: BASE[place] for name, place in places.items()})


def exchanged() -> Sides:
    """Both layers change places."""
    swapped = {name: name.translate(str.maketrans("01", "10")) for name in BASE}
    return stored(BASE, {name: BASE[place] for name, place in swapped.items()})


PLANTED = {
    "attention": attention_of_another, "exchanged": exchanged,
    "LoRA on NF4": lambda: stored(BASE, in_layers(lambda W: nf4(W) + product(W, 8, 0.05))),
    "LoRA on int8": lambda: stored(BASE, in_layers(lambda W: int8(W) + product(W, 16, 0.02))),
    "NF4": lambda: stored(BASE, in_layers(nf4)),
    "direction": without_direction, "OFT": lambda: stored(BASE, in_layers(turned)),
    "int8": lambda: stored(BASE, in_layers(int8)),
    "int8 base": lambda: stored(in_layers(int8), in_layers(lambda W: W + product(W, 8, 0.02))),
    "tied": lambda: stored(BASE, {name: one for name, one in BASE.items() if name != HEAD}),
    "raw FP8": raw_fp8, "pruned": lambda: stored(BASE, in_layers(lambda W: W * (W.abs() > 0.02))),
}  # fmt: skip


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The summary of a planted pair, made once, and its two sides."""
    root = tmp_path_factory.mktemp("kinds")

    @cache
    def run(case: str):
        sides = PLANTED[case]()
        folder = root / re.sub(r"\W+", "-", case)
        paths = []
        for name, tensors in zip(("base", "tuned"), sides, strict=True):
            config = {"model_type": "llama", "tie_word_embeddings": HEAD not in tensors}
            paths.append(planted.write(folder / name, tensors, config))
        done = run_pair(pair_of(*paths), Settings(Method(), Filter()), folder / "out")
        return done.summary, *sides

    return run


def said(summary, code: str) -> str:
    (text,) = [one.text for one in summary.finding.sentences if one.code == code]
    return text


@pytest.mark.parametrize(
    ("case", "clean", "rank"),
    [("LoRA on NF4", nf4, 8), ("LoRA on int8", int8, 16)],
)
def test_an_adapter_on_a_copy_in_few_bits_is_not_excluded(audited, case, clean, rank):
    """Less the copy, what was merged has that rank, by NumPy; the whole change has a high one."""
    summary, _, tuned = audited(case)
    for name in INSIDE:
        sigma = np.linalg.svd((tuned[name].double() - clean(BASE[name])).numpy(), compute_uv=False)
        assert (sigma[:rank] ** 2).sum() > 0.99 * (sigma**2).sum()
    assert summary.inside_layers.rank_least > WIDTH / 2
    assert answers(summary.finding)["merged_adapter"].answer == "cannot_be_excluded"


def test_a_copy_in_few_bits_without_an_adapter_is_none(audited):
    """No direction stands out of the rounding to NF4."""
    assert answers(audited("NF4")[0].finding)["merged_adapter"].answer == "no"


def test_entries_that_were_0_before_were_not_set_to_0(audited):
    """Rows and columns of 0 stay as they are where a direction is taken out: nothing becomes 0."""
    summary, base, tuned = audited("direction")
    for name, one in base.items():
        assert ((one == 0) >= (tuned[name] == 0)).all()
    assert "zeroed" not in recognised(summary)
    assert "0" not in summary.finding.headline.partition("%")[2]


def test_entries_that_became_0_are_counted(audited):
    summary, _, tuned = audited("pruned")
    shares = [float((tuned[name] == 0).double().mean()) for name in INSIDE]
    assert summary.recognised.zeroed.share == pytest.approx(np.median(shares), abs=1e-3)


def test_what_a_trained_rotation_changed_is_not_denied(audited):
    """The weights were trained; entry by entry they cannot be compared."""
    summary, base, tuned = audited("OFT")
    W, D = base[INSIDE[0]].double(), (tuned[INSIDE[0]].double() - base[INSIDE[0]].double())
    assert D.norm() > W.norm() / 2
    assert "no change" not in said(summary, "not_comparable")


@pytest.mark.parametrize("case", ["int8", "int8 base"])
def test_values_are_counted_of_the_matrices_with_long_rows(audited, case):
    """2 of 14 matrices have rows of 256 entries or more."""
    summary, base, _ = audited(case)
    assert sum(base[name].shape[1] >= 256 for name in INSIDE) == 2
    assert f"that could be judged (of {len(INSIDE)})" in said(summary, "few_values")


def test_a_tied_head_is_a_part_of_the_language_model(audited):
    """The base's own head is compared with the embedding that takes its place."""
    summary, _, tuned = audited("tied")
    assert HEAD not in tuned
    text = said(summary, "size")
    assert "all of it in the head. Unchanged: the embeddings and layers 0 and 1." in text


def test_a_size_above_the_weights_is_no_rounding(audited):
    """Numbers of up to 448 in the place of weights of 0.1."""
    summary, base, tuned = audited("raw FP8")
    assert tuned[INSIDE[0]].double().norm() > 100 * base[INSIDE[0]].double().norm()
    assert "rounding" not in summary.finding.headline
    assert "few_values" not in [one.code for one in summary.finding.sentences]


def test_a_layer_is_another_one_only_if_all_of_it_is(audited):
    """Of layer 1 attention alone stands at another number, 4 of 7 matrices."""
    summary, base, tuned = audited("attention")
    of_layer = [name for name in INSIDE if ".1." in name]
    places = {name: name.replace(".1.", ".0.") for name in of_layer}
    assert sum(torch.equal(tuned[name], base[place]) for name, place in places.items()) == 4
    assert summary.finding.headline.endswith("The base with matrices at other numbers.")
    text = said(summary, "matrices_moved")
    assert text.startswith("Of layer 1, attn.k, attn.o, attn.q and attn.v are those of the base's")
    exchanged = audited("exchanged")[0]
    assert "layer 1 is the base's 0" in said(exchanged, "layers_moved")
    assert exchanged.finding.headline == "The base with layers 0 and 1 exchanged."
