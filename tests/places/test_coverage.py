"""Names from the real world: which share of them has a place in the model, family by family."""

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shadow.places.architecture import Place, place_tensors

HUB = Path(__file__).parents[3] / "shared" / "hub"
SHARE = 0.995
# An index has names without shapes: what is a vector in every model is one, all else a matrix.
VECTOR = re.compile(
    r"(?:norm|ln|ln_\w+|norm\d?|layernorm|layrnorm)(?:_?\d)?\.weight$|norm[^.]*\.weight$|bias$|inv_freq$|class_embedding$"
    r"|A_log$|image_newline$|view_seperator$|position_ids$|mlp1\.0\.weight$|neck\.[13]\.weight$"
    r"|stages\.\d+\.blocks\.\d+\.weight$"  # a layer scale
    r"|(?:SCB|weight_format|biases|scales)$"  # what belongs to packed weights
)


def unplaced(shapes: dict[str, tuple[int, ...]], config: dict) -> list[str]:
    """Names of an unknown component, and names of matrices of no known module."""

    def known(place: Place, shape: tuple[int, ...]) -> bool:
        matrix = sum(size > 1 for size in shape) > 1
        return place.component != "other" and (place.module != "other" or not matrix)

    found = place_tensors(shapes, config)
    return [
        name
        for name, parts in found.items()
        if not all(known(part.place, shapes[name]) for part in parts)
    ]


def check(table: dict[str, tuple[int, list[str]]], share: float) -> None:
    """Fails with the share of each family and the kinds of names that have no place."""
    total = sum(count for count, _ in table.values())
    lost = sum(len(names) for _, names in table.values())
    lines = [f"{1 - lost / total:.2%} of {total} names have a place"]
    for family, (count, names) in sorted(table.items(), key=lambda item: -len(item[1][1])):
        kinds = sorted({re.sub(r"\d+", "#", name) for name in names})
        lines.append(
            f"{family}: {1 - len(names) / count:.1%} of {count}"
            + "".join(f"\n    {kind}" for kind in kinds)
        )
    print("\n".join(lines))
    assert 1 - lost / total >= share, "\n".join(lines)


def read_json(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def real_indexes() -> Iterator[tuple[str, list[str], dict]]:
    """(model, names, config) of every index that can be read."""
    for path in sorted(HUB.glob("indexes/*/*.index.json")):
        weight_map = (read_json(path) or {}).get("weight_map")
        if isinstance(weight_map, dict):
            yield (
                f"{path.parent.name} {path.name}",
                list(weight_map),
                read_json(path.parent / "config.json") or {},
            )


@pytest.mark.skipif(not HUB.exists(), reason="the real indexes are not here")
def test_names_of_released_checkpoints_have_a_place():
    """At least 99.5 % of the names in real index files; none is lost to one of the same place."""
    table = {}
    for model, names, config in real_indexes():
        shapes = {name: (64,) if VECTOR.search(name) else (96, 96) for name in names}
        table[model] = len(names), unplaced(shapes, config)
        places = [part.place for parts in place_tensors(shapes, config).values() for part in parts]
        assert not [place for place in places if "\0" in place.slot], f"{model}: two at one"
    assert len(table) >= 40
    check(table, SHARE)


@functools.cache
def architectures() -> dict[str, str]:
    """Every text model and every image-text model that transformers has: type -> class."""
    from transformers.models.auto import modeling_auto

    kinds = dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    kinds |= dict(getattr(modeling_auto, "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", {}))
    return {kind: name[0] if isinstance(name, tuple) else name for kind, name in kinds.items()}


def built(kind: str) -> tuple[torch.nn.Module, dict] | None:
    """A model of the default config, of four layers where possible, without any weights."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def shortened(config, depth: int = 0):
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"):
            if type(getattr(config, key, None)) is int and getattr(config, key) > 4:
                setattr(config, key, 4)
        for value in list(vars(config).values()):
            if isinstance(value, transformers.PretrainedConfig) and depth < 3:
                shortened(value, depth + 1)
        return config

    for prepare in (shortened, lambda config: config):
        try:
            config = prepare(CONFIG_MAPPING[kind]())
            with torch.device("meta"):
                model = getattr(transformers, architectures()[kind])(config)
            return model, json.loads(config.to_json_string(use_diff=False))
        except Exception:  # some defaults are no model, or want packages that are not here
            continue
    return None


def layouts(model: torch.nn.Module) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes in memory, and in the file that transformers would write."""
    from transformers.core_model_loading import revert_weight_conversion

    memory = model.state_dict()
    return [
        {n: tuple(t.shape) for n, t in d.items()}
        for d in (memory, revert_weight_conversion(model, dict(memory)))
    ]


@pytest.mark.slow
def test_names_of_all_architectures_of_transformers_have_a_place():
    """Of some 270 types, most of them no business of ours, 97 % of the names in files and in memory
    have a place; six in seven of them have the same places in both layouts, tensor for tensor and
    shape for shape. All at once: a release with new types would share out parts anew.
    """
    pytest.importorskip("transformers.core_model_loading", reason="an older transformers")
    table: dict[str, tuple[int, list[str]]] = {}
    apart: defaultdict[str, list[str]] = defaultdict(list)
    for kind in sorted(architectures()):
        if (found := built(kind)) is None:
            continue
        model, config = found
        both = layouts(model)
        lost = [name for one in both for name in unplaced(one, config)]
        table[kind] = (len(both[0]) + len(both[1]), lost)
        sides = []
        for one in both:
            parts = [
                (name, part) for name, own in place_tensors(one, config).items() for part in own
            ]
            sides.append({part.place: part.shape(one[name]) for name, part in parts})
        if sides[0] != sides[1]:
            apart[kind] = [str(place) for place in set(sides[0]) ^ set(sides[1])][:3]
    check(table, 0.97)
    assert len(apart) <= len(table) / 7, dict(apart)
