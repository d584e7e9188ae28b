"""Every sentence about pairs of known history, judged: true, absent or false.

    python benchmarks/sentences.py              # writes docs/evidence.md; trains models first
    python benchmarks/sentences.py --table      # writes the table anew from docs/lab
    python benchmarks/sentences.py --kind parts # pairs whose kind has this in its name, printed
    python benchmarks/sentences.py --only NAME  # one pair and all that is said of it, printed
    python benchmarks/sentences.py --taken reports  # judges kept reports; `pairs`: kept pairs anew

histories.py and kinds.py make the pairs, truths.py says what is true of each,
judging.py holds sentences against it. What was trained and the reports are kept in a folder: a run
that was cut off goes on from there, and sentences that changed are judged without measuring again.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, get_args

import headlines
import judging
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from evidence.evidence_parts import DOCS, FOLDER, bounds, put
from histories import Pair
from judging import Case, Judged, Taken, Word, safe, written
from kind_models import SIZES, SPECIAL, base
from kinds import kind_pairs, planted
from truths import place_of

import shadow
from shadow.checks.explanations import EXPLANATIONS, RECOGNISED
from shadow.outputs.markdown import plain

DATA = FOLDER / "sentences.parquet"
WHERE = "docs/evidence.md"
README = DOCS.parent / "README.md"
SENTENCE = r"Of \d+ kinds\s.*?such\s+kinds\s+do\)\."  # in README.md
RATES = Path(shadow.__file__).parent / "checks" / "error_rates.json"
CACHE = Path(tempfile.gettempdir()) / "shadow-sentences"
REPORTS = "reports"  # in it: a folder for each pair
WORDS = get_args(Word)


@dataclass(frozen=True)
class Verdict:
    """One sentence or answer of a finding, and whether it is true."""

    pair: str
    kind: str
    code: str
    words: str
    word: Word
    truth: str


# ---------------------------------------------------------------------------- what is missing


def _has(pattern: str) -> Callable[[Case], bool]:
    return lambda case: re.search(pattern, case.text, re.IGNORECASE) is not None


def _code(*codes: str) -> Callable[[Case], bool]:
    return lambda case: any(one in case.codes for one in codes)


def _fits(code: str) -> Callable[[Case], bool]:
    return lambda case: any(
        (one.code, one.answer) == (code, "fits") for one in case.finding.other_explanations
    )


_few_bits = _has("as few distinct values as a copy|stored in 8 bits")


def _names_what_changed(case: Case) -> bool:
    """Whether it says, other than as a part that has its share, which tensors are no copy."""
    text = re.sub(r"spread over the modules in proportion to their size \([^)]*\)", "", case.text)
    words = {"head": "the head", "embed": "embeddings", "norm": "norms"}
    modules = {place_of(name)[1] for name in case.made.update or {}}
    return any(words.get(module, module) in text for module in modules)


MEANINGS: Mapping[str, Callable[[Case], bool]] = {
    "copy": _has("only rounded|a copy of the base|only stored in it"),
    "same": _code("identical"),
    "beside": _names_what_changed,
    "dequantised": _has("dequantised"),
    "few bits": lambda case: _few_bits(case) or _fits("quantised_copy")(case),
    "low_rank": lambda case: _code("low_rank")(case) or _fits("merged_adapter")(case),
    "scaled": _code("scaled"),
    "zeroed": _code("zeroed"),
    "masked": _code("masked"),
    "only vectors": _code("only_vectors"),
    "unrelated": _code("unrelated"),
    "layer dropped": _code("layers_moved"),
    "layer inserted": _code("layers_moved"),
    "rotated": _has("entry by entry"),
    "renumbered": _code(
        "not_comparable", "layers_moved", "matrices_moved", "experts_moved", "rows_moved"
    ),
    "1/X": lambda case: "equivalent_directions" in _places(case),
    "norm before storage": lambda case: "overall_unrounded" in _places(case),
    "rounded away": _code("rounded_away", "rounding"),
    "flatter than noise": _has("flatter than noise"),
}


def _places(case: Case) -> str:
    return " ".join(place for one in case.finding.sentences for place in one.figures)


def expected(case: Case) -> list[str]:
    """What a finding should say: by what was done, and by what storage left of an update."""
    found, truth = list(case.made.recorded), case.truth
    if not case.made.update or not truth.inside or case.made.recorded or case.made.also is not None:
        return found
    share = min(truth.kept())
    beyond, flatter = truth.beyond_noise()
    if share < 0.2:
        return [*found, "rounded away"]
    if 2 * flatter > len(truth.inside):
        found.append("flatter than noise")
    elif 2 * beyond > len(truth.inside) and share > 0.3:
        found.append("1/X")
    stored = truth.stored_norm()
    if share > 0.3 and not judging.near(stored, truth.norm(), 0.1):
        found.append("norm before storage")
    return found


# ---------------------------------------------------------------------------- all of a pair


def verdicts(case: Case) -> Iterator[Verdict]:
    """Of the headline, every sentence, every answer, and what is missing."""

    def made(code: str, words: str, word: Word, truth: str) -> Verdict:
        return Verdict(case.pair.name, case.pair.kind, code, words, word, truth)

    def of(code: str, words: str, found: Judged) -> Verdict:
        judged = list(found)
        wrong = [truth for holds, truth in judged if holds is False]
        word: Word = "not judged"
        if wrong:
            word = "false"
        elif any(holds == "absent" for holds, _ in judged):
            word = "absent"
        elif any(holds for holds, _ in judged):
            word = "true"
        return made(code, words, word, "; ".join(dict.fromkeys(wrong)))

    yield of("headline", case.finding.headline, headlines.headline(case))
    for one in case.finding.sentences:
        if one.code in judging.SENTENCES:
            yield of(one.code, one.text, judging.SENTENCES[one.code](case, one.text, one.figures))
        else:
            yield made(one.code, one.text, "not judged", "")
    for each in case.finding.other_explanations:
        word, truth = judging.explanation(case, each.code, each.name, each.answer)
        words = f"{each.name}: {each.answer.replace('_', ' ')}, as {each.reason}"
        yield made(each.code, words, word, truth if word == "false" else "")
    for code, words, word, truth in judging.verified(case):
        yield made(code, words, word, truth if word == "false" else "")
    for name in expected(case):
        if not MEANINGS[name](case):
            yield made(f"missing: {name}", "", "absent", "")


# ---------------------------------------------------------------------------- the page


def page(found: list[Verdict]) -> str:
    """All that is printed: the part of docs/evidence.md, what is absent, and what is false."""
    wrong = [line(one) for one in _false(found)] or ["None."]
    missing = Counter(one.code for one in found if one.word == "absent")
    absent = ", ".join(f"{code} {count}" for code, count in missing.most_common())
    return "\n".join([part(found), f"Absent: {absent}.", *wrong])


def part(found: list[Verdict]) -> str:
    """The table in docs/evidence.md; last, how many kinds may have a false statement, with 95 %."""
    groups: dict[str, list[Verdict]] = {}
    for one in found:
        groups.setdefault(one.kind.removeprefix("kinds: "), []).append(one)
    heads = ["group", "kinds", "pairs", *WORDS, "kinds with one false", "at most"]
    rows = [heads, ["---"] * len(heads)]
    for group, own in [*groups.items(), ("**all**", found)]:
        counts = Counter(one.word for one in own)
        kinds, wrong = ({kind_of(one.pair) for one in some} for some in (own, _false(own)))
        numbers = [len(kinds), len({one.pair for one in own}), *(counts[word] for word in WORDS)]
        rows.append([group, *map(str, [*numbers, len(wrong)]), _most(len(wrong), len(kinds))])
    parts = ["| " + " | ".join(row) + " |" for row in rows]
    wrong = sorted({f"{one.code} of {kind_of(one.pair)}" for one in _false(found)})
    rates = [f"{code} {wrong} of {of}" for code, (wrong, of) in error_rates(found).items()]
    said = f"False: {'; '.join(wrong)}." if wrong else "None was false."
    return "\n".join([*parts, "", said, "", f"False by claim: {', '.join(rates)}."])


def _most(wrong: int, of: int) -> str:
    return f"{100 * bounds(wrong, of)[1]:.2g} %"


def kind_of(pair: str) -> str:
    """The kind of change: of whatever base, seed and size."""
    name = re.sub(r": (\w+) \d$", "", pair)
    return re.sub(r"(?:,| to)? (?:0\.\d+|\de-\d+)$", "", name)


def rate(found: list[Verdict]) -> str:
    """What README.md says of it. Pairs of one kind are not independent: the unit is the kind."""
    kinds, wrong = ({kind_of(one.pair) for one in some} for some in (found, _false(found)))
    got = f"{len(wrong)} got a statement" if wrong else "none got a statement"
    pairs = len({one.pair for one in found})
    return (
        f"Of {len(kinds)} kinds of change whose history is known ({pairs} made pairs), {got} that"
        f" was judged false (with 95 %, at most {_most(len(wrong), len(kinds))} of such kinds do)."
    )


def _false(some: Iterable[Verdict]) -> list[Verdict]:
    return [one for one in some if one.word == "false"]


def saved(found: list[Verdict]) -> None:
    """Statements of every pair, claim and word, in docs/lab."""
    counts = Counter((one.kind, one.pair, _claim(one), one.word) for one in found)
    columns = dict(zip(("kind", "pair", "code", "word"), zip(*counts, strict=True), strict=True))
    table = pa.table({**columns, "statements": pa.array(counts.values(), pa.int16())})
    pq.write_table(table, DATA, compression="zstd")


def kept_verdicts() -> list[Verdict]:
    """The verdicts that docs/lab has, without words."""
    rows = pq.read_table(DATA).to_pylist()
    return [
        Verdict(row["pair"], row["kind"], row["code"], "", row["word"], "")
        for row in rows
        for _ in range(row["statements"])
    ]


def write_table(found: list[Verdict]) -> None:
    """The table in docs/evidence.md, the sentence in README.md, and the error rates that `shadow
    explain` tells.
    """
    put("evidence.md", "sentences", part(found))
    text = README.read_text(encoding="utf-8")
    (before,) = re.findall(SENTENCE, text, re.DOTALL)
    README.write_text(text.replace(before, textwrap.fill(rate(found), 150)), encoding="utf-8")
    rates = {"where": WHERE, "answers": error_rates(found)}
    RATES.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")


def error_rates(found: list[Verdict]) -> dict[str, tuple[int, int]]:
    """By claim: how many of its answers and sentences were false, of those that truth decides."""
    rates = {}
    for code, claim in {**RECOGNISED, **EXPLANATIONS}.items():
        if claim.error_rate is not None and claim.error_rate.where != WHERE:
            continue  # measured by a script of its own
        own = [one.word for one in found if _claim(one) == code]
        if decided := own.count("true") + own.count("false"):
            rates[code] = (own.count("false"), decided)
    return rates


def _claim(one: Verdict) -> str:
    """The claim that a verdict is of; the sentence of a copy has the code of another one too."""
    return "copy" if one.code == "rounding" and "in another format" in one.words else one.code


def line(one: Verdict) -> str:
    words = plain(textwrap.shorten(one.words, 320))
    return f"- **{plain(one.pair)}**, {one.code}: {words} *True: {plain(one.truth)}.*"


def method() -> str:
    """A digest of the package and of these scripts: what a verdict rests on."""
    here, package = Path(__file__).parent, Path(shadow.__file__).parent
    names = ("histories", "truths", "judging", "headlines", "stated", "sentences")
    files = [*sorted(package.rglob("*.py")), *sorted(package.rglob("*.yaml"))]
    files += [*(here / f"{name}.py" for name in names), *sorted(here.glob("kind*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def all_verdicts(
    pairs: Sequence[Pair], cache: Path, jobs: int, taken: Taken = "nothing"
) -> Iterator[Verdict]:
    """Of every pair; those that this version of everything has judged are read from the folder.

    taken: what of the folder is taken as it is there; of reports, no other pair.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"verdicts-{method()}{f'-{taken}' * (taken != 'nothing')}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    there: dict[str, list[dict[str, str]]] = dict(json.loads(line) for line in lines)
    left = [pair.name for pair in by_base(pairs) if pair.name not in there]
    if taken == "reports":
        left = [name for name in left if (cache / REPORTS / safe(name) / "made.pt").exists()]
    elif any(pair.kind.startswith("kinds") for pair in pairs):
        for name in (*SIZES, *SPECIAL):
            base(name, cache)  # two processes would train the same
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        work = [pool.submit(judged_pair, name, cache, taken) for name in left]
        for one in as_completed(work):
            found = one.result()
            own = [asdict(verdict) for verdict in found]
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([found[0].pair, own]) + "\n")
            there[found[0].pair] = own
            print(f"{found[0].pair}: {len(_false(found))} false", file=sys.stderr, flush=True)
    for pair in pairs:
        yield from (Verdict(**one) for one in there.get(pair.name, ()))


def by_base(pairs: Sequence[Pair]) -> list[Pair]:
    """The first pair of every kind before all others: a run that is cut off has seen each."""
    last = {": narrow 0": 0, ": moe 0": 0, ": wide 0": 2, ": narrow 1": 3, ": wide 1": 4}

    def place(pair: Pair) -> int:
        return next((at for ending, at in last.items() if pair.name.endswith(ending)), 1)

    return sorted(pairs, key=place)


def judged_pair(name: str, cache: Path, taken: Taken = "nothing") -> list[Verdict]:
    """The verdicts of the pair of that name."""
    torch.set_num_threads(1)
    pair = next(pair for pair in all_pairs(cache) if pair.name == name)
    with tempfile.TemporaryDirectory() as folder:
        return list(verdicts(Case(pair, Path(folder), cache / REPORTS, taken)))


def all_pairs(cache: Path) -> list[Pair]:
    return [*planted(), *kind_pairs(cache)]


def printed(pair: Pair, folder: Path) -> str:
    """One pair, and all that is said of it."""
    case = Case(pair, folder)
    lines = [pair.name, ""]
    for one in verdicts(case):
        truth = f"  <- {one.truth}" if one.truth else ""
        lines.append(f"{one.word.upper():11} {one.code}: {one.words}{truth}")
    truth = case.truth
    if case.made.update:
        lines += [
            "",
            f"true: norm {written(truth.norm())}, stored {truth.stored_norm():.3g},"
            f" kept {written(truth.kept())}, 1/X {written(truth.directions(truth.inside))},"
            f" rank {truth.rank(truth.inside)}, decay cosine {truth.decay_cosine()},"
            f" beyond noise and flatter {truth.beyond_noise()} of {len(truth.inside)}",
        ]
    return "\n".join(lines)


def main(
    only: Annotated[str | None, typer.Option(help="Print the pair of this name.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of what was trained.")] = CACHE,
    kind: Annotated[str | None, typer.Option(help="Only kinds with this in their name.")] = None,
    jobs: Annotated[int, typer.Option(help="How many processes judge pairs.")] = 1,
    table: Annotated[bool, typer.Option("--table", help="Of what docs/lab has.")] = False,
    taken: Annotated[Taken, typer.Option(help="What kept pairs or reports are taken.")] = "nothing",
) -> None:
    """Make the pairs, audit and judge them, and write their table in docs/evidence.md."""
    torch.set_num_threads(1)
    if table:
        write_table(kept_verdicts())
    elif only is not None:
        (pair,) = (pair for pair in all_pairs(cache) if pair.name == only)
        with tempfile.TemporaryDirectory() as folder:
            print(printed(pair, Path(folder)))
    else:
        chosen = [pair for pair in all_pairs(cache) if kind is None or kind in pair.kind]
        found = list(all_verdicts(chosen, cache, jobs, taken))
        if kind is not None:
            print(page(found))
            return
        saved(found)
        write_table(found)


if __name__ == "__main__":
    typer.run(main)
