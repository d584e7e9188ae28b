"""Plant one mistake at a time in a copy of the package, and say which of them no test notices.

    python tests/mutants.py [--list] [--only NAME]

A mutant is a text that occurs once in a file of src/shadow, another in its place, and a file of
tests, one of which must fail then. All must pass before. Tests run in forks of this process, which
has imported what the package imports. Exit code 1: a mutant survived, or could not be planted.
"""

from __future__ import annotations

import argparse
import compileall
import functools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in conftest.py, before NumPy is imported
sys.dont_write_bytecode = True

import hypothesis  # noqa: E402
import pandas  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401
import pydantic  # noqa: E402, F401
import pytest  # noqa: E402
import scipy.special  # noqa: E402, F401
import torch  # noqa: E402, F401

ROOT = Path(__file__).parents[1]
SECONDS = 300  # after which tests count as hung
PASSED, FAILED, NOTHING, HUNG = 0, 1, 5, -signal.SIGALRM  # how pytest ends


class Planted(NamedTuple):
    """The mutants of a file that the same tests must notice."""

    file: str
    """Below src/shadow."""
    tests: str
    """A file below tests, and words of the names of those that are tried first (pytest -k)."""
    mutants: dict[str, tuple[str, str]]
    """By name: the text, and what takes its place."""


MUTANTS = (
    Planted("spectra/noise.py", "spectra/test_null.py", {
        "a null of 1 to 2": ("null >= 2 and", "null > 1 and"),
        "concentration by another logarithm": (") / math.log(null)", ") / math.log2(null)"),
        "fourth powers added": ("- profile.fourth", "+ profile.fourth"),
    }),
    Planted("spectra/singular_values.py", "spectra/test_rank.py", {
        "ties of rank_t": ("t / 100 - TIE", "t / 100"),
        "effective rank of energies": ("entropy(relative / relative.sum())", "entropy(q)"),
    }),
    Planted("spectra/noise.py", "spectra/test_edge.py", {
        "a wider margin": ("len(cols)) ** (-2 / 3)", "len(cols)) ** (-1 / 2)"),
        "rows without energy": ("part = part[part > 0]", "part = part[part >= 0]"),
    }),
    Planted("spectra/copies.py", "spectra/test_edge.py", {
        "pruned rows by all entries": ("(others < UNPRUNED *", "(others <"),
    }),
    Planted("spectra/solvers.py", "spectra/test_delta.py -k references", {
        "quintiles": ("[25, 50, 75]", "[20, 50, 80]"),
        "a shift the other way": ("= after - before", "= before - after"),
    }),
    Planted("spectra/delta.py", "spectra/test_delta.py -k references", {
        "a floor of a third": ("total.ulps / 12.0", "total.ulps / 3.0"),
    }),
    Planted("spectra/sketched.py", "spectra/test_sketched.py -k error_of_concentration", {
        "ten times the error of concentration": ("ratio.error /", "10 * ratio.error /"),
    }),
    Planted("summary/layer_medians.py", "summary/test_layer_medians.py", {
        "a median with half above": ("2 * above.sum() >=", "2 * above.sum() >"),
        "above a long side": ("np.minimum(rows, cols) < 1.0", "np.maximum(rows, cols) < 1.0"),
        "kept without energies": ("total_of(each * energy)", "total_of(each)"),
    }),
    Planted("summary/bootstrap.py", "summary/test_bootstrap.py", {
        "the lower of two middles": ("upto[-1] // 2 + 1)", "(upto[-1] + 1) // 2)"),
        "percentiles that are not expanded": ("np.sqrt(layers / (layers - 1))", "1.0"),
    }),
    Planted("gates/rules.py", "checks/test_rules.py -k comparison", {
        "less or equal as less": ('"<=": operator.le', '"<=": operator.lt'),
    }),
    Planted("checks/answer.py", "checks/test_answer.py", {
        "3 before 5": ("in (1, 4, 5, 3) if", "in (1, 4, 3, 5) if"),
        "4 before 1": ("in (1, 4, 5, 3) if", "in (4, 1, 5, 3) if"),
    }),
    Planted("checks/explanations.py", "checks/test_explanations.py -k words", {
        "any grid": ("any(few_of(record, side)[0]", "any(None and few_of(record, side)[0]"),
        "flat as the weights are": ("< inside.judged or along", "< inside.judged"),
        "any vectors": ("0 < vectors.compared <= 2 * vectors.changed", "vectors.compared"),
    }),
    Planted("checks/related.py", "audits/test_verify_related.py -k corners", {
        "one level for all": ("ALPHA / len(names)", "ALPHA"),
        "the furthest": ("min(related, key", "max(related, key"),
        "a copy among others": ("if close.distance == 0 < away.distance", "if away.distance < 0"),
    }),
    Planted("checks/pair_gates.py", "checks/test_gates_of_pairs.py -k judges_figures", {
        "any cosine": ("cosine >= LINEAGE and", "cosine >= -1 and"),
        "any share": ("standing.compared >= PAIRED", "standing.compared >= 0"),
        "any rank": ("if share >= FULL_RANK", "if share >= 0"),
    }),
    Planted("gates/verdicts.py", "checks/test_gate.py -k last_digits or error_of or is_gone", {
        "no slack between machines": ("NOISE * max(", "0 * max("),
        "errors that reach a threshold": ("!= rule.holds(value + error)",
                                          "!= rule.holds(value - error)"),
        "what is gone has not moved": ("outside = value is None or not low",
                                       "outside = value is not None and not low"),
    }),
    Planted("checks/merged.py", "checks/test_merged.py", {
        "a rounded tensor beside an adapter": (
            'return not row.changed or row.rounded == ("tuned", row.formats[1])',
            "return not row.changed",
        ),
        "every tensor beside is the base's": ("return not row.changed or", "return True or"),
    }),
    Planted("checks/trained.py", "checks/test_trained.py", {
        "a cast is a step": ("self.row.changed > 0 and self.rounded_to is None",
                             "self.row.changed > 0"),
        "norms of 1 must move": ("one.is_initial or one.may_stay(step)", "one.may_stay(step)"),
        "what no step reached moves": ("one.is_initial or one.may_stay(step)", "one.is_initial"),
        "a step from any entries": ("if cell.changed >= FREE * cell.entries", ""),
    }),
    Planted("checks/patterns.py", "checks/test_patterns.py", {
        "experts beyond a range": ("expert in (first, last + 1)", "expert in (first, last)"),
    }),
    Planted("checks/quantised.py", "checks/test_quantised.py", {
        "nothing is far": ("and not self.noise.is_far", ""),
    }),
    Planted("comparing/contrast.py", "comparing/test_compare.py -k disagree or voids", {
        "one figure is enough": ("is_mixed = agree < MIN_AGREEING or", "is_mixed ="),
        "ranks that differ": ("(is_unknown[0] !=", "(is_unknown[0] & ~"),
        "rounding alone": ("elif floor < ROUNDING", "elif floor < 0"),
    }),
    Planted("checkpoints/safetensors_files.py", "checkpoints/test_shards.py", {
        "holes between tensors": ("info.start != position", "info.start < position"),
        "a shape that fills too little": ("* bits != (end", "* bits > (end"),
        "a name twice": (") != len(pairs):", ") < 0:"),
    }),
    Planted("checkpoints/held_files.py", "checkpoints/test_checkpoint.py -k both_ends", {
        "the last KiB of a tensor": ("* at // (count - 1), SAMPLED", "* at // count, SAMPLED"),
    }),
    Planted("checkpoints/pairing.py", "checkpoints/test_pairing.py", {
        "columns in another order": (" and _folded(base) == _folded(tuned):", ":"),
        "a word of the config": ("return said is True", "return bool(said)"),
        "rows of anything grow": ("(_grows(place) and common > 1)", "common > 1"),
    }),
    Planted("reports/parquet.py", "reports/test_parquet.py", {
        "a footer behind a footer": ("            file.truncate(pages_of(file))\n", ""),
    }),
    Planted("run/journal.py", "audits/test_journal.py -k tail or another or wrong", {
        "a tail that was cut": ("self._file.truncate(good)", "self._file.truncate()"),
        "outcomes that are not sound": ("!= crc32(line[13:-2])", "< 0"),
        "a journal of another audit": ("if entry != identity:", "if not entry:"),
    }),
    Planted("targets/families.py", "targets/test_registry.py", {
        "all texts of a family": ("return any(word in text", "return all(word in text"),
    }),
    Planted("targets/families.py", "targets/test_named_checkpoints.py", {
        "any revision": ("asked.revision in (None, known.revision)", "True"),
        "names in one case": ("asked.repo.lower() ==", "asked.repo =="),
        "the first of several families": ("if len(names) > 1:", "if len(names) > 9:"),
    }),
    Planted("targets/lists.py", "targets/test_lists.py", {
        "shards by number of families": ("before += counts[family]", "before += 1"),
        "a shard beyond the last": ("int(match[1]) <= int(match[2])", "int(match[2])"),
    }),
    Planted("cli/gate.py", "checks/test_gate_command.py -k exit_codes_of_gate", {
        "a gate that never fails": ("    if code := 2 if wrong_usage",
                                    "    if code := 0 if not wrong_usage"),
    }),
    Planted("cli/verify.py", "cli/test_verify_ci.py -k is_a_line or of_several", {
        "the largest code": ("first_code({one.exit_code", "max({one.exit_code"),
    }),
    Planted("outputs/ci.py", "outputs/test_ci.py -k annotation or github_shows", {
        "nine annotations": ("lines[: ANNOTATIONS - 1]", "lines[: ANNOTATIONS - 2]"),
        "a percent sign": ('.replace("%", "%25")', ""),
    }),
    Planted("outputs/exports.py", "outputs/test_export.py", {
        "an apostrophe of its own": ('(*FORMULA, "\'")', "FORMULA"),
        "two reports of one pair": ("(twin := pairs.setdefault(pair, report.folder)) !=",
                                    "(twin := report.folder) !="),
    }),
)  # fmt: skip


class Copy:
    """A copy of the package, with its bytecode, and the tests of the checkout run on it."""

    def __init__(self, folder: Path) -> None:
        self.src = folder / "src"
        shutil.copytree(ROOT / "src", self.src)
        (folder / "registry").symlink_to(ROOT / "registry")
        compileall.compile_dir(self.src, quiet=2)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(self.src), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        sys.path.insert(0, str(self.src))
        self.passes = functools.cache(lambda tests: self.end_of(tests) == PASSED)

    @contextmanager
    def planted(self, file: str, old: str, new: str) -> Iterator[bool]:
        """Plant a text for another while it lasts. Yields whether that stands there once."""
        path = self.src / "shadow" / file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(old) != 1 or old == new:
            yield False
            return
        before = path.stat()
        path.write_text(text.replace(old, new), encoding="utf-8")
        try:
            yield True
        finally:  # with the time that its bytecode knows
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def end_of(self, tests: tuple[str, ...]) -> int:
        """Run tests in a fork until one fails, and return how pytest ends."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        try:
            options = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist")
            os._exit(pytest.main([*options, *tests]))
        finally:
            os._exit(NOTHING)


def killed(copy: Copy, one: Planted, old: str, new: str) -> str:
    """Plant a mutant and return what came of it: killed, survived, or why that is not known."""
    file, _, words = one.tests.partition(" -k ")
    every = (f"tests/{file}",)
    for tests in ((*every, "-k", words), every) if words else (every,):
        if not copy.passes(tests):
            continue
        with copy.planted(one.file, old, new) as is_planted:
            if not is_planted:
                return "not planted: the text does not stand there once"
            if copy.end_of(tests) in (FAILED, HUNG):
                return "killed"
    return "survived" if copy.passes(every) else f"not known: {file} fails before"


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--list", action="store_true", help="name the mutants, and plant none")
    asked.add_argument("--only", metavar="NAME", help="plant those with this in their names")
    options = asked.parse_args()
    chosen = [
        (one, name, *texts)
        for one in MUTANTS
        for name, texts in one.mutants.items()
        if options.only is None or options.only in f"{one.file}: {name}"
    ]
    if options.list:
        print("\n".join(f"{one.file}: {name}" for one, name, *_ in chosen))
        return 0
    os.chdir(ROOT)
    first = hypothesis.Phase.explicit, hypothesis.Phase.generate  # the first failure is enough
    hypothesis.settings.register_profile("first", phases=first, database=None)
    hypothesis.settings.load_profile("first")  # from which tests/effort.py goes on
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        for one, name, old, new in chosen:
            start = time.monotonic()
            outcome = killed(copy, one, old, new)
            alive += outcome != "killed"
            print(f"{time.monotonic() - start:5.1f} s  {outcome:8}  {one.file}: {name}", flush=True)
    print(f"{len(chosen)} mutants, {len(chosen) - alive} killed")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
