"""A finished report -> Summary: the figures a person wants first. Pure: reads the Parquet files, prints nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shadow.architecture import name_rules
from shadow.diagnostics import SCHEMA
from shadow.errors import ShadowError
from shadow.report import check_schema, finished_metadata

MEDIANS = (
    "relative_norm", "concentration", "participation_ratio", "null_participation_ratio", "stable_rank",
    "effective_rank", "effective_rank_shift", "spikes", "spike_energy", "cosine", "floor_ratio",
)  # fmt: skip
TURNED, UNTURNED = 0.5, 0.9  # cosines below which an expert is another one, and above which the rest is the same model
EXAMPLES = 3  # tensors named for each reason
LABEL = "not assessable"
LABEL_REASON = "this version measures; it ships no calibrated thresholds to label by"
CLAIMS = {
    "measured": ["spectra of base, tuned and delta of every matrix, and how they differ from a sign-flip null"],
    "consistent_with": [],
    "not_shown": [
        "what data the model was trained on: optimiser, adapters, learning rate and novelty of the data move these "
        "figures as much as narrowness does",
        "what the model can or cannot do",
    ],
}


@dataclass(frozen=True)
class Summary:
    """What the terminal shows of one pair; `summary.json` is this as JSON.

    counts are tensors of both sides by status. figures are medians over all delta rows unless their name says
    otherwise. components, modules and depth are lists of rows, without_base the matrices that have no base. warnings
    are what makes the figures doubtful.
    """

    schema: int
    family: str
    pair: str
    base: Mapping[str, Any]
    tuned: Mapping[str, Any]
    counts: Mapping[str, int]
    figures: Mapping[str, float | int | None]
    components: list[dict[str, Any]]
    modules: list[dict[str, Any]]
    depth: list[dict[str, Any]]
    without_base: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    warnings: list[str]
    label: str
    label_reason: str
    claims: Mapping[str, list[str]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_summary(folder: Path) -> tuple[Summary, dict[str, Any]]:
    """The summary of a finished report, and the report's provenance.

    Raises ShadowError when the folder holds no finished report, or one of another schema.
    """
    metadata = finished_metadata(folder) if folder.is_dir() else None
    if metadata is None:
        hint = (
            "the audit is not finished: run it again"
            if (folder / ".partial").is_dir()
            else "name a folder that `shadow audit` made"
        )
        raise ShadowError(f"{folder}: no finished report in it", hint)
    check_schema(folder, metadata)
    return summarise(folder, metadata), metadata


def summarise(folder: Path, metadata: Mapping[str, Any]) -> Summary:
    """Compute the summary from matrices.parquet and tensors.parquet of a folder."""
    try:
        matrices = pq.read_table(folder / "matrices.parquet").to_pandas()
        tensors = pq.read_table(folder / "tensors.parquet").to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise ShadowError(
            f"{folder}: its report cannot be read ({type(error).__name__})", "run the audit again"
        ) from error
    deltas = matrices[matrices["subject"] == "delta"]
    alone = matrices[(matrices["subject"] == "tuned") & matrices["base_tensor"].isna()]
    statuses = tensors["status"].value_counts()
    return Summary(
        schema=SCHEMA,
        family=metadata["family"],
        pair=metadata["pair"],
        base=metadata["base"],
        tuned=metadata["tuned"],
        counts={status: int(statuses.get(status, 0)) for status in ("measured", "identical", "skipped")},
        figures=_figures(matrices, deltas, tensors),
        components=_by_component(deltas, matrices, tensors),
        modules=_by_module(deltas),
        depth=_by_layer(deltas, matrices),
        without_base=_without_base(alone),
        skipped=_skipped(tensors),
        warnings=_renumbered_experts(deltas),
        label=LABEL,
        label_reason=LABEL_REASON,
        claims=CLAIMS,
    )


def summary_bytes(summary: Summary) -> bytes:
    return json.dumps(summary.as_json(), indent=2, allow_nan=False).encode() + b"\n"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) or not math.isfinite(value) else float(value)


def _whole_norm(rows: pd.DataFrame, matrices: pd.DataFrame) -> float | None:
    """sqrt(sum norm(D)²) / sqrt(sum norm(W_base)²): the relative norm of all of rows as one vector."""
    keys = ["tensor", "module", "expert"]
    base = matrices[matrices["subject"] == "base"].set_index(keys)["frobenius_norm"]
    own = rows.set_index(keys)["frobenius_norm"]
    total = math.hypot(*base.loc[own.index.unique()]) if len(own) else 0.0
    return math.hypot(*own) / total if total else None


def _figures(matrices: pd.DataFrame, deltas: pd.DataFrame, tensors: pd.DataFrame) -> dict[str, float | int | None]:
    sides = {side: rows.assign(size=rows["shape"].map(_size)) for side, rows in tensors.groupby("side")}
    larger = max(sides.values(), key=lambda rows: int(rows["size"].sum()))  # of an adapter, that is the base
    tuned, sizes = larger, larger["size"]
    figures: dict[str, float | int | None] = {
        "matrices": len(deltas),
        "parameters": int(sizes.sum()),
        "parameters_measured": int(sizes[tuned["status"] == "measured"].sum()),
        "parameters_identical": int(sizes[tuned["status"] == "identical"].sum()),
        "relative_norm_overall": _whole_norm(deltas, matrices),
    }
    ceilings = deltas["rank_ceiling"].dropna()
    figures["rank_ceiling"] = int(ceilings.max()) if len(ceilings) else None
    figures["unverified"] = int((deltas["verified"] == False).sum())  # noqa: E712 - null is not False here
    figures |= {name: _number(deltas[name].median()) for name in MEDIANS}
    quartiles = deltas["concentration"].quantile([0.25, 0.75])
    figures |= {"concentration_q25": _number(quartiles[0.25]), "concentration_q75": _number(quartiles[0.75])}
    weights = deltas["parameters"]
    zero = (deltas["zero_share"] * weights).sum() / weights.sum() if len(deltas) else None
    return figures | {"zero_share": _number(zero) if zero is not None else None}


def _size(shape: Iterable[int]) -> int:
    return math.prod(int(size) for size in shape)


def _by_component(deltas: pd.DataFrame, matrices: pd.DataFrame, tensors: pd.DataFrame) -> list[dict[str, Any]]:
    """What became of each component: how much of it is measured or identical, and the medians of what is measured."""
    rules = name_rules()
    tuned = tensors[(tensors["side"] == "tuned") & tensors["shape"].map(lambda shape: len(shape) > 1)]
    rows = []
    for component, group in tuned.groupby("component", sort=False):
        own = deltas[deltas["component"] == component]
        rows.append(
            {
                "component": component,
                "tensors": len(group),
                "identical": int((group["status"] == "identical").sum()),
                "matrices": len(own),
                "relative_norm": _whole_norm(own, matrices),
                **{name: _number(own[name].median()) for name in MEDIANS if name != "relative_norm"},
            }
        )
    return sorted(rows, key=lambda row: rules.components.index(row["component"]))


def _renumbered_experts(deltas: pd.DataFrame) -> list[str]:
    """Experts pair by their numbers. If the matrices around them hardly turned and they did, the numbers changed."""
    is_expert = deltas["module"].str.startswith("experts.")
    others = deltas[~is_expert & deltas["layer"].notna()]["cosine"].median()
    turned = deltas[is_expert & (deltas["cosine"] < TURNED)]
    if turned.empty or not others > UNTURNED:
        return []
    layers = turned["layer"].nunique()
    return [
        f"{len(turned)} expert matrices in {layers} layers have little in common with the base's of the same number "
        f"(cosine below {TURNED}) while the other matrices are close to theirs: the experts may have been renumbered, "
        "and their deltas are then not those of training"
    ]


def _by_module(deltas: pd.DataFrame) -> list[dict[str, Any]]:
    """Medians by component and module, in the order of names.yaml."""
    rules = name_rules()
    rows = []
    for (component, module), group in deltas.groupby(["component", "module"], sort=False):
        medians = {name: _number(group[name].median()) for name in MEDIANS}
        counts = {"matrices": len(group), "parameters": int(group["parameters"].sum())}
        rows.append({"component": component, "module": module, **counts, **medians})
    return sorted(rows, key=lambda row: (rules.components.index(row["component"]), rules.modules.index(row["module"])))


def _by_layer(deltas: pd.DataFrame, matrices: pd.DataFrame) -> list[dict[str, Any]]:
    """For each layer of each component: relative norm of all its matrices as one vector, medians of the rest."""
    rows = []
    inside = deltas.dropna(subset=["layer"]).astype({"layer": int})
    for (component, layer), group in inside.groupby(["component", "layer"], sort=True):
        row: dict[str, Any] = {"component": component, "layer": layer, "matrices": len(group)}
        row["relative_norm"] = _whole_norm(group, matrices)
        row |= {name: _number(group[name].median()) for name in ("concentration", "effective_rank_shift", "spikes")}
        rows.append(row)
    return rows


def _without_base(alone: pd.DataFrame) -> list[dict[str, Any]]:
    names = ("stable_rank", "effective_rank", "participation_ratio")
    return [
        {
            "component": component,
            "matrices": len(group),
            **{name: _number(group[name].median()) for name in names},
        }
        for component, group in alone.groupby("component", sort=False)
    ]


def _skipped(tensors: pd.DataFrame) -> list[dict[str, Any]]:
    """Counts by reason, with a few names and the first detail."""
    rows = []
    for reason, group in tensors[tensors["status"] == "skipped"].groupby("reason", sort=True):
        details = group["detail"].dropna()
        names = group["tensor"].drop_duplicates()
        sides = {side: int(count) for side, count in group["side"].value_counts().items()}
        rows.append(
            {
                "reason": reason,
                "tensors": len(group),
                **{side: sides.get(side, 0) for side in ("base", "tuned")},
                "examples": [str(name) for name in names[:EXAMPLES]],
                "detail": str(details.iloc[0]) if len(details) else None,
            }
        )
    return sorted(rows, key=lambda row: -row["tensors"])
