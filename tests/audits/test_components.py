"""Models that were put together: a base for each component, spectra alone for what has none."""

import pandas as pd
import planted
import pytest
from safetensors.torch import load_file

from shadow.checkpoints.pairing import Filter
from shadow.engines.pair import run_pair
from shadow.run.settings import Settings
from shadow.spectra.measurement import Method
from shadow.targets.families import find_pairs, load_families


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = planted.tiny_llava(tmp_path_factory.mktemp("llava"))
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
    base = result.provenance["base"]  # of two checkpoints, by component
    assert (base["repo"].startswith("language=/"), " vision=/" in base["repo"]) == (True, True)
    assert (base["commit"], len(base["fingerprint"])) == (None, 64)
    recorded = {row.component: (row.matrices, row.identical) for row in result.summary.components}
    assert recorded == {"language": (16, 0), "vision": (0, 14), "projector": (0, 0)}


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
