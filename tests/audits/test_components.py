"""Models that were put together: a base for each component, spectra alone for what has none."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import planted
import pytest
import torch
from effort import chosen, every
from safetensors.torch import load_file, save_file
from view import drawn

from shadow.audits.document import planned_table
from shadow.audits.pair import Settings, run_pair
from shadow.audits.pair_plan import PlannedModule
from shadow.checkpoints.pairing import Filter
from shadow.places.names import name_rules
from shadow.spectra.delta import Method
from shadow.targets.families import find_pairs, given_pair, load_families
from shadow.targets.references import parse_reference
from shadow.telling.comparison import modules_apart
from shadow.telling.report import component_table, module_table


def tiny_llava(folder):
    """A LLaVA of a tiny Llama and a tiny CLIP tower, and these two, saved by transformers."""
    import transformers

    torch.manual_seed(0)
    text = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=64,
    )
    sizes = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    vision = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=24)
    language = transformers.LlamaForCausalLM(text)
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**sizes, "vocab_size": 50, "max_position_embeddings": 8},
            vision_config=vision.to_dict(),
            projection_dim=16,
        )
    )
    llava = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(text_config=text, vision_config=vision)
    )
    llava.model.language_model.load_state_dict(language.model.state_dict())
    llava.lm_head.load_state_dict(language.lm_head.state_dict())
    llava.model.vision_tower.load_state_dict(clip.vision_model.state_dict(), strict=False)
    for name, model in (("language", language), ("clip", clip), ("llava", llava)):
        model.save_pretrained(folder / name)
    path = folder / "llava" / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(path)
    for name, tensor in tensors.items():  # the language was trained on, the tower was frozen
        if "language_model" in name or name.startswith("lm_head"):
            tensors[name] = tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, path)
    return folder


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tiny_llava(tmp_path_factory.mktemp("llava"))
    (folder / "families.yaml").write_text(
        "tiny-llava:\n  base: {language: ./language, vision: ./clip}\n  instruct: ./llava\n"
    )
    (pair,) = find_pairs("tiny-llava", load_families(folder))
    result = run_pair(pair, Settings(Method(), Filter()), folder / "out")
    return (
        folder,
        result,
        *(pd.read_parquet(result.folder / f"{name}.parquet") for name in ("matrices", "tensors")),
    )


def test_each_component_is_compared_with_its_own_base(audited):
    """Language against the Llama; the frozen tower identical; the projector without a delta."""
    _, result, matrices, tensors = audited
    deltas = matrices[matrices["subject"] == "delta"]
    assert set(deltas["component"]) == {"language"}
    assert len(deltas) == 2 * 7 + 2
    projector = matrices[matrices["component"] == "projector"]
    assert len(projector) == 2
    assert set(projector["subject"]) == {"tuned"}
    tower = tensors[(tensors["component"] == "vision") & (tensors["side"] == "tuned")]
    compared = tower[~tower["tensor"].str.contains("post_layernorm|position_ids")]
    assert set(compared["status"]) <= {"identical", "skipped"}
    assert (compared["status"] == "identical").sum() == 2 * 6 + 2
    assert (compared[compared["status"] == "skipped"]["reason"] == "not_a_matrix").all()
    assert [row.component for row in result.summary.without_base] == ["projector"]
    told = {row.component: (row.matrices, row.identical) for row in result.summary.components}
    assert told == {"language": (16, 0), "vision": (0, 14), "projector": (0, 0)}


def test_every_tensor_of_every_part_has_a_row(audited):
    """Also those of CLIP's text tower, which is nobody's base here."""
    folder, _, _, tensors = audited
    for side, parts in (("base", ("language", "clip")), ("tuned", ("llava",))):
        names = sorted(
            name for part in parts for name in load_file(folder / part / "model.safetensors")
        )
        assert sorted(tensors[tensors["side"] == side]["tensor"]) == names
    unused = tensors[
        (tensors["side"] == "base") & tensors["tensor"].str.startswith("text_model.encoder")
    ]
    assert set(unused["reason"]) == {"filtered"}
    assert unused["detail"].str.contains("is the base of vision only").all()


def test_the_report_says_where_each_part_came_from(audited):
    """References, commits and fingerprint of a base of two checkpoints, by component."""
    _, result, _, _ = audited
    base = json.loads((result.folder / "summary.json").read_text())["base"]
    assert base["repo"].startswith("language=/")
    assert " vision=/" in base["repo"]
    assert base["commit"] is None
    assert len(base["fingerprint"]) == 64


@pytest.fixture(scope="module")
def tuned_whole(audited):
    """The reports of two models tuned from the LLaVA, in every component."""
    folder, *_ = audited
    reports = []
    for seed in (1, 2):
        tuned = planted.perturbed(folder / "llava", folder / f"tuned-{seed}", seed=seed)
        pair = given_pair(*(parse_reference(str(side)) for side in (folder / "llava", tuned)))
        reports.append(run_pair(pair, Settings(Method(), Filter()), folder / "out").folder)
    return folder, reports


@pytest.mark.parametrize("columns", every(3, [None, "80", "120"]))
def test_tables_of_three_components_fit_a_pipe(shadow, tuned_whole, columns):
    """Whole words of `show`, `compare` and `plan` within 80 columns if none are told."""
    folder, reports = tuned_whole
    commands = {
        ("show", reports[0], "--full"): (
            "By component",
            "By module",
            "vision",
            "projector.0",
            "rel. norm",
            "null PR",
            "mlp.down",
        ),
        ("compare", *reports): (
            "By module",
            "vision",
            "projector.0",
            "st. rank",
            "top-4",
            "mlp.down",
        ),
        ("plan", "--base", folder / "llava", "--tuned", folder / "tuned-1"): (
            "projector.0",
            "patch_embed",
            "32 x 24",
        ),
    }
    for command, words in commands.items():
        text = shadow(*command, env={"COLUMNS": columns}).assert_done()
        assert max(map(len, text.splitlines())) <= int(columns or 80)
        assert "…" not in text
        assert "\x1b" not in text
        for word in words:
            assert word in text, (command[0], word)


@pytest.mark.parametrize("width", chosen((80, 81, 90, 99, 100, 110, 120, 140, 180), (80, 120)))
def test_the_longest_names_and_figures_are_not_cut(width):
    """Every module and component, with counts and figures as long as they get."""
    figures = {
        "matrices": 18_432, "identical": 18_432, "relative_norm": 0.0123, "energy_share": 0.0123,
        "spikes": 1024.0, "concentration": -0.12, "participation_ratio": 1024.0,
        "null_participation_ratio": 2222.0, "spike_energy": 0.12, "effective_rank_shift": -12.123,
        "stable_rank": 1024.0, "effective_rank": 2222.0, "top4_energy": -0.123,
        "participation_ratio_over_null": -6.0, "concentration_first": -0.12,
        "concentration_second": -0.12, "layers": (0, 127),
        "shapes": [(151_936, 8192), (152_064, 8192), (1536, 8960)],
        "intervals": {"concentration": (-0.12, 0.34)},
    }  # fmt: skip
    rules = name_rules()
    rows = [
        {**figures, "component": one, "module": module}
        for one in rules.components
        for module in rules.modules
    ]
    typed = [SimpleNamespace(**row) for row in rows]
    planned = [
        PlannedModule(row["component"], row["module"], row["matrices"], [0, 127], row["shapes"], 0)
        for row in rows
    ]
    differences = [SimpleNamespace(**{**row, "stable_rank": -6.0}) for row in rows]
    apart = SimpleNamespace(first="A", second="B", modules=differences)
    texts = {
        "component": drawn(component_table(typed[:: len(rules.modules)]), width),
        "module": drawn(module_table(typed, {}), width),
        "apart": drawn(modules_apart(apart), width),
        "plan": drawn(planned_table(planned), width),
    }
    for name, text in texts.items():
        assert "…" not in text, (name, text[:400])
        assert max(map(len, text.splitlines())) <= width
    assert "null PR" in texts["module"]
    assert "st. rank" in texts["apart"]
    assert texts["module"].count("linear_attn.conv_q") == len(rules.components)
    assert texts["plan"].count("18,432") == len(rows)
