"""Audits and claims whose sides are GGUF files: numbers are those of the decoded matrices."""

from pathlib import Path

import numpy as np
import pandas as pd
import planted
import pytest
import quantisers
import torch
from command import run_shadow as command
from effort import every
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from hub import Hub
from hub_pairs import SECRET, variables
from measuring import pair_of

import shadow
from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.pairing import Filter
from shadow.engines.pair import run_pair
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method

SETTINGS = Settings(Method(), Filter())
UP = "model.layers.1.mlp.up_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
CONFIG = {
    "model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}  # fmt: skip


def tuned_of(tensors, size=0.002, seed=5):
    """Every matrix plus noise, BF16 values."""
    rng = np.random.default_rng(seed)
    return {
        name: planted.bf16(weight + size * rng.standard_normal(weight.shape).astype(np.float32))
        if weight.ndim > 1
        else weight
        for name, weight in tensors.items()
    }


def folder_of(path, tensors):
    stored = {name: torch.from_numpy(weight.copy()).bfloat16() for name, weight in tensors.items()}
    return planted.write(path, stored, CONFIG)


def decoded(weight, kind):
    return dequantize(quantize(weight, Type[kind]), Type[kind]).astype(np.float64)


KINDS = {"base": ("BF16", "F16", "Q8_0", "Q4_0"), "tuned": ("Q8_0", "Q4_0")}


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """A small Llama and one trained on, as folders of safetensors and as GGUF files."""
    top = tmp_path_factory.mktemp("sides")
    tensors = {"base": planted.gguf_llama()}
    tensors["tuned"] = tuned_of(tensors["base"])
    paths = {name: folder_of(top / name, held) for name, held in tensors.items()}
    for name, held in tensors.items():
        for kind in KINDS[name]:
            paths[f"{name}-{kind}"] = planted.write_gguf(top / f"{name}-{kind}.gguf", held, kind)
    return tensors, paths


def audited(base, tuned, output):
    result = run_pair(pair_of(base, tuned), SETTINGS, output)
    rows = pd.read_parquet(result.folder / "matrices.parquet")
    return rows.set_index(["tensor", "subject"]), result.folder


SIDES = [("Q8_0", "Q4_0"), ("Q4_0", "Q4_0"), (None, "Q8_0"), ("F16", None), ("BF16", "Q8_0")]


@pytest.mark.parametrize("kinds", every(4, SIDES))
def test_every_norm_is_that_of_the_decoded_matrices(sides, tmp_path, kinds):
    """Also beside safetensors; a quantised side has no values on a grid of floats."""
    tensors, paths = sides
    base, tuned = (
        paths[side if kind is None else f"{side}-{kind}"]
        for side, kind in zip(("base", "tuned"), kinds, strict=True)
    )
    rows, _ = audited(base, tuned, tmp_path / "out")
    assert len(rows) == 16 * 3
    for name in (UP, Q, "lm_head.weight"):
        b, t = (
            decoded(tensors[side][name], kind or "BF16")
            for side, kind in zip(("base", "tuned"), kinds, strict=True)
        )
        row = rows.loc[name, "delta"]
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(t - b), rel=1e-5)
        assert rows.loc[name, "base"]["dtype"] == (kinds[0] or "BF16")
    delta = rows.xs("delta", level="subject")
    one_sided = not all((kind or "BF16").startswith("Q") for kind in kinds)
    assert (delta["floor_ratio"].notna() == one_sided).all()
    if any((kind or "F").startswith("Q") for kind in kinds):  # far above the steps, or unknown
        floor = delta["floor_ratio"]
        far = floor >= 10
        assert np.allclose(delta["kept"][far], 1 - 1 / floor[far] ** 2)
        assert set(delta["kept_reason"][~far]) <= {"rounding_unexplained"}
        assert (delta["kept_low"].between(0, delta["kept_high"]) == one_sided).all()
    for side, kind in zip(("base", "tuned"), kinds, strict=True):
        assert delta[f"levels_{side}"].isna().all() == (kind in ("Q8_0", "Q4_0"))


def files_of(base, tuned, output):
    _, folder = audited(base, tuned, output)
    return pd.read_parquet(folder / "files.parquet").query("side == 'tuned'").set_index("path")


def test_what_a_gguf_file_keeps_inside_is_unknown(sides, tmp_path):
    """Tokenizer and config are no files of their own; those of a folder beside it are unknown."""
    tensors, paths = sides
    rows = files_of(paths["base-Q8_0"], paths["tuned-Q8_0"], tmp_path / "out")
    assert list(rows.index) == ["tuned-Q8_0.gguf"]
    mixed = folder_of(tmp_path / "folder", tensors["tuned"])
    rows = files_of(paths["base-Q8_0"], mixed, tmp_path / "out2")
    assert rows.loc["config.json", "state"] == "unknown"


def said(*arguments, cwd):
    done = command(*map(str, arguments), cwd=cwd)
    return done.code, done.out + done.err


def test_same_tells_a_conversion_from_a_broken_one(sides, tmp_path):
    """BF16 in a file is the folder, F16 it rounded; where q and k were not permuted, neither."""
    tensors, paths = sides
    broken = planted.write_gguf(tmp_path / "broken.gguf", tensors["base"], "BF16", paired=False)
    for copy, outcome, against in (
        (paths["base-BF16"], "holds", 0),
        (paths["base-F16"], "does_not_hold", None),
        (broken, "does_not_hold", 4),
    ):
        found = shadow.verify("same", paths["base"], copy)
        assert found.outcome == outcome
        assert against is None or len(found.against) == against


def test_frequencies_that_transformers_computes_are_no_tensor_of_one_side(sides, tmp_path):
    """llama.cpp stores them: the file is a copy all the same, but two with other ones differ."""
    tensors, paths = sides
    files = {
        name: planted.write_gguf(
            tmp_path / f"{name}.gguf",
            tensors["base"] | {"rope_freqs.weight": np.full(32, size, np.float32)},
            kind,
        )
        for name, kind, size in (("full", "BF16", 1), ("copy", "Q8_0", 1), ("other", "BF16", 8))
    }
    for claim, copy in (("same", "full"), ("stored", "copy"), ("quantised", "copy")):
        assert shadow.verify(claim, paths["base"], files[copy]).outcome == "holds"
    assert len(shadow.verify("same", files["full"], files["other"]).against) == 1
    command_line = "audit", paths["base"], files["copy"], "-o", "out", "--strict", "--quiet"
    code, text = said(*command_line, cwd=tmp_path)
    assert code == 0, text
    (report,) = (tmp_path / "out").glob("*/*/tensors.parquet")
    row = pd.read_parquet(report).set_index("tensor").loc["rope_freqs.weight"]
    assert (row["side"], row["status"]) == ("tuned", "skipped")


@pytest.mark.slow
def test_a_choice_of_files(sides, tmp_path):
    """Several files need --file, which is refused where no side has a GGUF file."""
    _, paths = sides
    several = tmp_path / "several"
    several.mkdir()
    for kind in ("Q4_0", "Q8_0"):
        (several / f"m-{kind}.gguf").write_bytes(Path(paths[f"base-{kind}"]).read_bytes())
    tuned = paths["tuned"]
    for words, code, named in (
        (("plan", paths["base-Q4_0"], tuned), 0, "F32, Q4_0"),
        (("plan", paths["base-Q8_0"], tuned, "--file", ""), 0, ""),
        (("audit", several, tuned, "-o", "out"), 1, "m-Q4_0.gguf, m-Q8_0.gguf"),
        (("audit", several, tuned, "--file", "*Q8*", "-o", "out", "--quiet"), 0, ""),
        *(((*words, paths["base"], tuned, "--file", pattern), 1, repr(pattern))
          for words in (("audit",), ("plan",), ("verify", "same")) for pattern in ("*Q8_0*", "")),
    ):  # fmt: skip
        found, text = said(*words, cwd=tmp_path)
        assert (found, named in text) == (code, True), text


def test_a_gguf_file_is_itself_whatever_lies_beside_it(sides, tmp_path):
    """Brackets in a name are no pattern; a config.json beside it is not read."""
    _, paths = sides
    raw = Path(paths["base-Q8_0"]).read_bytes()
    for name in ("m[1].gguf", "m1.gguf"):
        (tmp_path / name).write_bytes(raw)
    assert open_folder(str(tmp_path / "m[1].gguf")).sources.keys() == {"m[1].gguf"}
    alone = open_folder(str(tmp_path / "m1.gguf"))
    for content in ('{"model_type": "gpt2"}', "{broken"):
        (tmp_path / "config.json").write_text(content)
        beside = open_folder(str(tmp_path / "m1.gguf"))
        assert beside.fingerprint == alone.fingerprint
        assert beside.config == alone.config


@pytest.mark.parametrize("kind", every(2, ["Q8_0", "Q4_0"]))
def test_a_merge_onto_a_quantised_base_is_told_from_one_onto_the_original(sides, tmp_path, kind):
    """Stored in BF16, as safetensors and as GGUF."""
    tensors, paths = sides
    original = {name: torch.from_numpy(one.copy()) for name, one in tensors["base"].items()}
    dense = {
        name: torch.from_numpy(decoded(one, kind)).float() if one.ndim > 1 else original[name]
        for name, one in tensors["base"].items()
    }
    factors, merges = {}, {"onto": dense, "beside": original}
    for name in (Q, UP):
        rows, cols = tensors["base"][name].shape
        left, right = 0.05 * planted.normal(1, rows, 4), 0.05 * planted.normal(2, 4, cols)
        factors[name] = left, right
        for merged in merges.values():
            merged[name] = merged[name].double() + 2 * left.double() @ right.double()
    adapter = planted.adapter(tmp_path / "adapter", factors)

    def outcome(base, merged):
        return shadow.verify("merged", paths[base], adapter, merged, jobs=1).outcome

    for name, wanted in (("onto", "holds"), ("beside", "does_not_hold")):
        stored = {key: torch.as_tensor(one).bfloat16() for key, one in merges[name].items()}
        folder = planted.write(tmp_path / name, stored, CONFIG)
        held = {key: one.float().numpy() for key, one in stored.items()}
        file = planted.write_gguf(tmp_path / f"{name}.gguf", held, "BF16")
        assert [outcome(f"base-{kind}", merged) for merged in (folder, file)] == [wanted] * 2
    assert outcome("base-BF16", file) == "holds"
    quantised = planted.write_gguf(tmp_path / "merged-Q8_0.gguf", held, "Q8_0")
    assert outcome("base", quantised) == "inconclusive"


@pytest.mark.slow
def test_gguf_files_of_the_hub_come_whole_or_in_ranges(sides, tmp_path):
    """A chosen file of a repository of several: one layer by byte ranges, all as a whole file."""
    _, paths = sides
    rows = {}
    with Hub() as hub:
        hub.tokens.add(SECRET)
        for side in ("base", "tuned"):
            folder = tmp_path / side
            (folder / "more").mkdir(parents=True)
            for kind, at in (("Q8_0", "more"), ("Q4_0", ".")):
                content = Path(paths[f"{side}-{kind}"]).read_bytes()
                (folder / at / f"m-{kind}.gguf").write_bytes(content)
            hub.add(f"org/{side}", folder, lfs=lambda name: name.endswith(".gguf"))
        env = variables(hub.endpoint, tmp_path / "home")
        for output, more in (("layer", ["--layer", "1"]), ("all", [])):
            pair = ("audit", "org/base", "org/tuned", "--file", "*Q8_0*", "-o", output)
            command(*pair, *more, cwd=tmp_path, env=env).assert_done()
            (report,) = (tmp_path / output).glob("*/*/matrices.parquet")
            rows[output] = pd.read_parquet(report)
    wanted, _ = audited(paths["base-Q8_0"], paths["tuned-Q8_0"], tmp_path / "wanted")
    assert len(rows["layer"]) == 7 * 3
    for found in rows.values():
        found = found.set_index(["tensor", "subject"])
        same = wanted.loc[found.index, "frobenius_norm"]
        np.testing.assert_array_equal(found["frobenius_norm"], same)
    assert not rows["layer"]["verified"].any()
    assert rows["all"]["verified"].all()


def test_scales_of_a_copy_are_no_tensors_of_the_model(tmp_path):
    """8-bit floats with scales beside them: as many tensors changed as the base has."""
    toy = planted.matrices(0, size=16)
    matrices = {name: tensor.repeat(8, 8).bfloat16() for name, tensor in toy.items()}
    packed, _, said = quantisers.quantised("fp8", matrices)
    base = planted.write(tmp_path / "base", matrices, CONFIG)
    copy = planted.write(tmp_path / "copy", packed, CONFIG | {"quantization_config": said})
    summary = run_pair(pair_of(base, copy), SETTINGS, tmp_path / "reports").summary
    assert len(packed) > len(matrices) == summary.recognised.casts.tensors
