"""Finished reports for tests, written row by row instead of measured."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shadow.reports.columns import FILES, MATRICES, SPECTRA, TENSORS
from shadow.reports.parquet import arrow_schema
from shadow.summary.tables import Columns, columns_of

NULL = 64.0  # the null participation ratio of every matrix
MODULES = ("attn.q", "attn.o", "mlp.up")


def columns(frame: pd.DataFrame) -> Columns:
    """Rows as a summary reads those of a table; a column that is not given is null."""
    types = {one.name: one.type for one in (*arrow_schema(TENSORS), *arrow_schema(MATRICES))}
    arrays = {}
    for name, values in frame.items():
        known = [None if one is pd.NA or one != one else one for one in values]  # NaN is not itself
        arrays[name] = pa.chunked_array([pa.array(known, type=types[name])])
    for name in types.keys() - arrays.keys() - {"shape"}:
        arrays[name] = pa.chunked_array([pa.nulls(len(frame), type=types[name])])
    return columns_of(pa.table(arrays))


def place(layer: int | None, module: str, expert: int | None = None, **other: Any) -> dict:
    return {"component": "language", "layer": layer, "module": module, "expert": expert, **other}


def places(layers: int, modules: tuple[str, ...] = MODULES) -> list[dict[str, Any]]:
    """Every module in every layer, layer by layer."""
    return [place(layer, module) for layer in range(layers) for module in modules]


CHECKSUMS = {"base": "base_checksum", "tuned": "checksum"}  # of a tensor's bytes, by side


def shaped_by(concentration: float) -> dict[str, float]:
    """The figures of a delta of a concentration, all of which say the same."""
    ratio = NULL ** (1 - concentration)
    return {
        "concentration": concentration, "participation_ratio": ratio,
        "null_participation_ratio": NULL, "stable_rank": ratio / 2,
        "top4_energy": 0.2 + concentration, "spike_energy": 0.1 + concentration,
    }  # fmt: skip


def delta(concentration: float, where: dict[str, Any], /, **figures: Any) -> dict[str, Any]:
    """A delta's row; where is a place, figures what is to be otherwise."""
    usual = {"relative_norm": 0.05, "floor_ratio": 30.0, "cosine": 0.99, "numerical_rank": 64}
    return {**where, **usual, **shaped_by(concentration), **figures}


def identity(seed: int = 0, repo: str = "./base") -> dict[str, Any]:
    """A checkpoint's provenance; equal seeds are equal content."""
    return {"repo": repo, "commit": None, "fingerprint": f"{seed:064x}"}


def write(
    folder: Path,
    deltas: list[dict[str, Any]],
    *,
    base: dict[str, Any] | None = None,
    tuned: dict[str, Any] | None = None,
    weights: float = 1.0,
    extra_tensors: tuple[dict[str, Any], ...] = (),
    **metadata: Any,
) -> Path:
    """A finished report of these delta rows. weights scales the spectra of its base."""
    rows, tensors = [], []
    for index, row in enumerate(deltas):
        expert = "" if row["expert"] is None else f".{row['expert']}"
        name = f"layers.{row['layer']}.{row['module']}{expert}"
        common = {
            "family": "toy", "pair": folder.name, "tensor": name, "base_tensor": name, "rows": 64,
            "cols": 96, "dtype": "BF16", "precision": "exact", "parameters": 64 * 96,
        }  # fmt: skip
        size = weights * (1 + (index % 17) / 7)
        own = {
            "frobenius_norm": size, "spectral_norm": size / 5, "stable_rank": 25.0,
            "participation_ratio": 40.0,
        }  # fmt: skip
        where = {key: row[key] for key in ("component", "layer", "module", "expert")}
        recorded = {
            **common,
            **{key: row[key] for key in ("tensor", "base_tensor", "rows", "cols") if key in row},
        }
        rows.append({**recorded, **where, **own, "subject": "base", "numerical_rank": 64})
        rows.append(
            {
                **recorded, **where, **own, "subject": "tuned", "numerical_rank": 64,
                "frobenius_norm": size * 1.01,
            }
        )  # fmt: skip
        rows.append({**recorded, **row, "subject": "delta"})
        for side, kind in (("base", "base_tensor"), ("tuned", "tensor")):
            tensors.append(
                {
                    **where, "tensor": recorded[kind], "side": side, "shape": [64, 96],
                    "status": "measured", "cast": row.get("cast", "neither"),
                    "relative_norm": row.get("relative_norm"),
                    "checksum": row.get(CHECKSUMS[side]),
                }
            )  # fmt: skip
    tensors += [{"side": "base", "shape": [64, 96], **row} for row in extra_tensors]
    for one in tensors:  # whole, unless a row says otherwise
        whole = one.get("status") in ("measured", "identical")
        one.setdefault("compared", math.prod(one["shape"]) if whole else 0)
    recorded = {
        "version": "0.2.0", "schema": 1, "family": "toy", "pair": folder.name,
        "base": base or identity(),
        "tuned": tuned or identity(hash(folder.name) % 1000 + 1, f"./{folder.name}"),
        "settings": {
            "method": {"level": "full"}, "chosen": {},
            "relation": "tuned",
        },
        **metadata,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for file, columns, content in (
        ("files", FILES, []),
        ("matrices", MATRICES, rows), ("tensors", TENSORS, tensors),
    ):  # fmt: skip
        table = pa.Table.from_pylist(content, schema=arrow_schema(columns))
        table = table.replace_schema_metadata({b"shadow": json.dumps(recorded).encode()})
        pq.write_table(table, folder / f"{file}.parquet")
    (folder / "summary.json").write_text("{}")
    return folder


def put(path: Path, rows: list[dict[str, Any]], columns: tuple[Any, ...]) -> None:
    """Write another table beside the matrices of a report."""
    metadata = pq.read_schema(path.with_name("matrices.parquet")).metadata
    table = pa.Table.from_pylist(rows, schema=arrow_schema(columns))
    pq.write_table(table.replace_schema_metadata(metadata), path)


def put_spectra(folder: Path, sigma: Callable[[dict[str, Any]], Any]) -> None:
    """Give every matrix of a report the singular values that a function makes of its row."""
    kept = [column.name for column in SPECTRA if column.type != "floats"]
    rows = pq.read_table(folder / "matrices.parquet").to_pylist()
    found = [{name: row[name] for name in kept} | {"sigma": sigma(row)} for row in rows]
    put(folder / "spectra.parquet", found, SPECTRA)


def uniform(folder: Path, concentrations: Any, layers: int = 6, **options: Any) -> Path:
    """A report whose matrices have one concentration, or those of an array (layers x modules)."""
    values = np.broadcast_to(np.asarray(concentrations, float).reshape(-1), layers * len(MODULES))
    return write(
        folder,
        [delta(float(c), where) for c, where in zip(values, places(layers), strict=True)],
        **options,
    )


def rewrite(folder, change=lambda table: table, **recorded):
    """Other columns or metadata in every file of a report."""
    for path in folder.glob("*.parquet"):
        table = pq.read_table(path)
        metadata = {**json.loads(table.schema.metadata[b"shadow"]), **recorded}
        pq.write_table(
            change(table).replace_schema_metadata({b"shadow": json.dumps(metadata).encode()}), path
        )
