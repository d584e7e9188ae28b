"""Reports of whole families for tests of the page: made up from spectra, so that every column
agrees with them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shadow.checks.summary import Summary
from shadow.reports.columns import FILES, MATRICES, SPECTRA, TENSORS
from shadow.reports.parquet import arrow_schema
from shadow.reports.provenance import METADATA_KEY
from shadow.summary.record import read_row
from shadow.telling.reading import summarise, summary_bytes

SMALL = {"attn.q": (64, 64), "attn.o": (64, 64), "mlp.up": (172, 64), "mlp.down": (64, 172)}


@dataclass(frozen=True)
class Part:
    """Matrices of a component: modules in every layer, some once an expert, and others outside."""

    modules: dict[str, tuple[int, int]]
    layers: int
    component: str = "language"
    outside: tuple[tuple[str, tuple[int, int]], ...] = ()
    experts: int = 1
    identical: bool = False
    base: bool = True

    def places(self) -> list[dict[str, Any]]:
        found = [
            {"layer": None, "module": name, "expert": None, "shape": shape}
            for name, shape in self.outside
        ]
        for layer in range(self.layers):
            for name, shape in self.modules.items():
                for expert in range(self.experts) if name.startswith("experts.") else (None,):
                    found.append({"layer": layer, "module": name, "expert": expert, "shape": shape})
        return [{"component": self.component, **one} for one in found]


def spectrum(
    generator: np.random.Generator, m: int, n: int, norm: float, spikes: int = 0
) -> np.ndarray:
    """Singular values like a noisy bulk's, with a few above it, of a Frobenius norm; descending."""
    low, high = 1 - np.sqrt(m / n) * 0.995, 1 + np.sqrt(m / n)
    sigma = np.linspace(high, low, m) * (1 + 0.01 * generator.random(m))
    sigma[:spikes] *= 1.5 + 4 * generator.random(spikes) / np.arange(1, spikes + 1)
    sigma = np.sort(sigma)[::-1]
    return sigma * norm / np.linalg.norm(sigma)


def figures(
    sigma: np.ndarray, null_pr: float | None = None, edge: float | None = None
) -> dict[str, float]:
    """Columns of a spectrum, and of a delta those of its null, by their formulas."""
    energy, total = sigma**2, float((sigma**2).sum())
    p, q = sigma / sigma.sum(), sigma**2 / total
    entropy = float(-(q * np.log(q)).sum())
    cumulated = np.cumsum(q)
    found = {
        "frobenius_norm": total**0.5, "spectral_norm": sigma[0], "nuclear_norm": sigma.sum(),
        "stable_rank": total / energy[0], "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "energy_rank": np.exp(entropy), "participation_ratio": 1 / (q**2).sum(),
        "sigma_floor": 1e-7 * sigma[0], "numerical_rank": len(sigma),
        **{f"rank_{t}": int(np.searchsorted(cumulated, t / 100) + 1) for t in (90, 95, 99)},
        **{f"top{k}_energy": cumulated[min(k, len(q)) - 1] for k in (1, 4, 16, 64)},
    }  # fmt: skip
    if null_pr is not None and edge is not None:
        found |= {
            "null_participation_ratio": null_pr, "null_edge": edge,
            "spikes": int((sigma > edge).sum()), "spike_energy": q[sigma > edge].sum(),
            "concentration": np.log(null_pr / found["participation_ratio"]) / np.log(null_pr),
        }  # fmt: skip
    return {
        name: float(value) if isinstance(value, np.floating) else value
        for name, value in found.items()
    }


def _write_tables(folder: Path, tables: dict[str, pa.Table], recorded: dict[str, Any]) -> None:
    metadata = {METADATA_KEY: json.dumps(recorded).encode()}
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def write_family(
    folder: Path,
    parts: tuple[Part, ...],
    *,
    seed: int = 0,
    family: str = "toy-7b",
    narrow: float = 0.5,
    change: float = 0.03,
    spectra: bool = True,
    skipped: tuple[dict[str, Any], ...] = (),
    prefix: str = "model",
    **metadata: Any,
) -> Path:
    """A finished report. narrow is how far spikes stand out, change the relative norm."""
    generator = np.random.default_rng(seed)
    matrices, curves, tensors = [], [], []
    for part in parts:
        for place in part.places():
            rows, cols = place.pop("shape")
            expert = "" if place["expert"] is None else f".experts.{place['expert']}"
            name = f"{prefix}.{part.component}.{place['layer']}{expert}.{place['module']}.weight"
            common = {
                **place, "tensor": name, "base_tensor": name if part.base else None, "rows": rows,
                "cols": cols, "family": family, "pair": folder.name, "dtype": "BF16",
                "precision": "default", "parameters": rows * cols,
            }  # fmt: skip
            status = "identical" if part.identical else "measured"
            for side in ("base", "tuned") if part.base else ("tuned",):
                reason = None if part.base else "only_in_tuned"
                tensors.append(
                    {
                        **place, "tensor": name, "side": side, "shape": [rows, cols],
                        "dtype": "BF16", "shard": "model.safetensors", "status": status,
                        "reason": reason, "compared": rows * cols if part.base else 0,
                    }
                )  # fmt: skip
            if part.identical:
                continue
            m, n = min(rows, cols), max(rows, cols)
            depth = (place["layer"] or 0) / max(1, part.layers - 1)
            weight = spectrum(generator, m, n, np.sqrt(m) * 0.8, spikes=min(m // 8, 12))
            if part.base:
                size = change * (0.7 + 0.8 * depth) * np.linalg.norm(weight)
                delta = spectrum(
                    generator, m, n, size, spikes=int(1 + narrow * 8 * generator.random())
                )
                null, edge = 1.15 * m * n / (m + n), size * (1 / np.sqrt(m) + 1 / np.sqrt(n)) * 1.05
                tuned = weight * (1 + 0.002 * (depth - 0.3) * np.linspace(1, -1, m))
                own = figures(delta, null, edge)
                base, after = figures(weight), figures(tuned)
                own |= {
                    "relative_norm": own["frobenius_norm"] / base["frobenius_norm"], "cosine": 0.99,
                    "effective_rank_shift": after["effective_rank"] - base["effective_rank"],
                    "zero_share": 0.1 * generator.random(), "floor_ratio": 20 + generator.random(),
                    "row_participation_ratio": rows / 3, "col_participation_ratio": cols / 4,
                    "rows_changed": 1.0, "overlap_left": 0.99 - 0.05 * depth, "overlap_right": 0.98,
                    "intruders": int(generator.integers(0, 2)),
                }  # fmt: skip
                subjects = {"base": (weight, base), "tuned": (tuned, after), "delta": (delta, own)}
            else:
                subjects = {"tuned": (weight, figures(weight))}
            for subject, (sigma, found) in subjects.items():
                matrices.append({**common, **found, "subject": subject})
                curves.append(
                    {**place, "tensor": name, "subject": subject, "sigma": sigma.astype(np.float32)}
                )
    tensors += [
        {
            "side": "tuned", "shape": [4, 4], "dtype": "BF16", "status": "skipped",
            "component": "language", "module": "other", **row,
        }
        for row in skipped
    ]  # fmt: skip
    recorded = {
        "version": "0.2.0",
        "schema": 1,
        "family": family,
        "pair": folder.name,
        "base": {"repo": f"org/{family}", "commit": "0" * 40, "fingerprint": None},
        "tuned": {"repo": f"org/{family}-instruct", "commit": "1" * 40, "fingerprint": None},
        "settings": {
            "method": {"level": "full"}, "chosen": {"components": [], "layers": [], "modules": []},
            "relation": "tuned", "spectra": spectra,
        },
        "seed": 0,
        "compute_dtype": "float32 Gram, float64 eigenvalues",
        "device": "cpu",
        "libraries": {"numpy": "2.4", "torch": "2.13"},
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 61.0,
        **metadata,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        name: pa.Table.from_pylist(rows, schema=arrow_schema(columns))
        for name, columns, rows in (
            ("matrices", MATRICES, matrices), ("tensors", TENSORS, tensors), ("files", FILES, []),
            ("spectra", SPECTRA, curves),
        )
        if name != "spectra" or spectra
    }  # fmt: skip
    _write_tables(folder, tables, recorded)
    made = summarise(tables, recorded)
    summary = made.as_json()
    assert read_row(Summary, json.loads(json.dumps(summary))) == made
    (folder / "summary.json").write_bytes(summary_bytes(summary))
    return folder


def mixture(
    folder: Path, layers: int = 24, experts: int = 64, width: int = 1024, **options: Any
) -> Path:
    """A mixture of experts: layers x experts x 3 expert matrices, 4,608 of them by default."""
    modules = dict.fromkeys(("attn.q", "attn.o"), (width * 2, width * 2))
    modules |= {f"experts.{name}": (width, 2 * width) for name in ("gate", "up", "down")}
    return write_family(folder, (Part(modules, layers, experts=experts),), **options)


def small(folder: Path, layers: int = 6, **options: Any) -> Path:
    return write_family(folder, (Part(SMALL, layers, outside=(("embed", (96, 64)),)),), **options)
