"""Compare what two commits measure on one machine, to the bit.

    python tests/two_commits.py BEFORE AFTER [--audit NAME]... [--keep FOLDER]

BEFORE and AFTER are commits, or folders of checkouts ("." is the working tree). Both audit the
same pairs: the demo, decoders with an adapter, shards, fused, transposed and stacked matrices,
quantised sides, a model with a vision tower, and what is skipped. Exit codes and every column of
the Parquet files that both sides have must be equal in every bit; columns that only one side has
are listed. The exit code is 1 where something differs.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import planted
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
TABLES = ("matrices", "tensors", "spectra")
KEYS = ("side", "subject", "tensor", "component", "layer", "module", "expert")
AUDITS = {
    "demo": "demo", "decoder": "./base ./one", "workers": "./base ./two --jobs 3",
    "shards": "./base ./halves", "same": "./base ./base", "adapter": "./base ./adapter",
    "fp8": "./wide ./fp8", "gptq": "./wide ./gptq", "fused": "./apart ./fused",
    "interleaved": "./neox ./neox-tuned", "transposed": "./gpt2 ./gpt2-tuned",
    "experts": "./experts ./stacked", "vision": "toy-seeing --registry registry",
    "skipped": "./odd ./odd-tuned --strict", "filtered": "./base ./one --layer 1 --module 'mlp.*'",
    "pickle": "./pickled ./unpickled --allow-pickle", "pickle-refused": "./pickled ./unpickled",
    "cut": "./base ./cut", "no-layer": "./base ./one --layer 9",
}  # fmt: skip


# running and comparing


def checked_out(revision: str, below: Path) -> Path:
    """Return the folder of a checkout: one that is there, or a commit unpacked below."""
    if Path(revision).is_dir():
        return Path(revision).absolute()
    archive = subprocess.run(
        ["git", "archive", revision, "src", "registry"], check=True, capture_output=True, cwd=ROOT
    )
    folder = below / "checkout"
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive.stdout)
    return folder


def run_audits(checkout: Path, inputs: Path, into: Path, names: list[str]) -> dict[str, int]:
    """Run the audits with the code of a checkout; return their exit codes."""
    environment = {name: one for name, one in os.environ.items() if not name.startswith("SHADOW_")}
    environment |= {
        "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "SHADOW_NO_CACHE": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    codes = {}
    for name in names:
        words = ["audit", "--jobs", "1", *shlex.split(AUDITS[name]), "-o", str(into / name)]
        command = [sys.executable, "-m", "shadow", *words]
        codes[name] = subprocess.run(
            command, cwd=inputs, env=environment, capture_output=True
        ).returncode
    return codes


def tables_of(folder: Path) -> dict[str, pa.Table]:
    """Return every table below a folder by pair and name, its rows in one order."""
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        if path.stem in TABLES:
            table = pq.read_table(path)
            keys = [(key, "ascending") for key in KEYS if key in table.column_names]
            order = pc.sort_indices(table, sort_keys=keys)
            found[f"{path.parent.name}/{path.stem}"] = table.take(order)
    return found


def alike(one: object, other: object, within: float) -> bool:
    """Return whether two cells are equal in every bit, or floats differ by a relative `within`."""
    if within and isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(alike(x, y, within) for x, y in zip(one, other, strict=True))
    if within and isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= within * max(abs(one), abs(other))
    return repr(one) == repr(other)  # repr tells any two floats apart, and -0.0 from 0.0


def differences(
    before: Mapping[str, pa.Table],
    after: Mapping[str, pa.Table],
    seen: dict[str, set[str]],
    within: float,
) -> Iterator[str]:
    """Yield a line for each table and column that differs; gather columns of one side alone."""
    for name in sorted(before.keys() ^ after.keys()):
        yield f"{name}: on one side alone"
    for name in sorted(before.keys() & after.keys()):
        one, other = before[name], after[name]
        kind = name.rpartition("/")[2]
        seen["gone"] |= {f"{kind}.{key}" for key in set(one.column_names) - set(other.column_names)}
        seen["new"] |= {f"{kind}.{key}" for key in set(other.column_names) - set(one.column_names)}
        if len(one) != len(other):
            yield f"{name}: {len(one)} rows, then {len(other)}"
            continue
        for key in one.column_names:
            if key not in other.column_names:
                continue
            pairs = zip(one[key].to_pylist(), other[key].to_pylist(), strict=True)
            unlike = [(x, y) for x, y in pairs if not alike(x, y, within)]
            if unlike:
                first = f"{unlike[0][0]!r:.60} then {unlike[0][1]!r:.60}"
                yield f"{name}.{key}: {len(unlike)} of {len(one)} rows, such as {first}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--audit", action="append", choices=AUDITS, help="only this audit")
    parser.add_argument("--within", type=float, default=0.0, help="relative tolerance of floats")
    parser.add_argument("--keep", type=Path, help="keep inputs and reports in this folder")
    asked = parser.parse_args()
    names = asked.audit or list(AUDITS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.keep or Path(temporary)).absolute()
        inputs = folder / "inputs"
        shutil.rmtree(inputs, ignore_errors=True)
        inputs.mkdir(parents=True)
        planted.write_all(inputs)
        codes, tables = {}, {}
        for side in ("before", "after"):
            checkout = checked_out(getattr(asked, side), Path(temporary) / "checkouts" / side)
            shutil.rmtree(folder / side, ignore_errors=True)
            codes[side] = run_audits(checkout, inputs, folder / side, names)
            tables[side] = {one: tables_of(folder / side / one) for one in names}
        seen: dict[str, set[str]] = {"gone": set(), "new": set()}
        lines, count = [], 0
        for name in names:
            if codes["before"][name] != codes["after"][name]:
                lines.append(f"{name}: exit {codes['before'][name]}, then {codes['after'][name]}")
            before, after = tables["before"][name], tables["after"][name]
            count += len(before)
            lines += [f"{name}: {line}" for line in differences(before, after, seen, asked.within)]
    for which, columns in seen.items():
        print(f"{which}: {', '.join(sorted(columns)) or 'none'}")
    print("\n".join(lines) or f"{len(names)} audits, {count} tables: equal")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
