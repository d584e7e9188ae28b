"""What a finding says of a pair, sentence by sentence, held against the truth: a function for each
code, which yields whether a statement holds (None: the truth does not decide it), and what is true.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Literal

# threads of matrices this small only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from histories import WAYS, Made, Pair
from partners import renumbered, rows_of
from safetensors.torch import save_file
from stated import WIDE, figures_of, held, near, written
from truths import Truth, place_of

import shadow
from shadow.targets.families import given_pair
from shadow.targets.references import parse_reference
from shadow.telling.reading import AuditReport

STORED, BEFORE, COHERENT, KEPT = 0.01, 0.12, 0.25, 0.1  # how far a figure may be from the truth
FIGURE = 0.02  # and any other
HARDLY = 0.3  # of the entries of an update, from which it counts as masked
Word = Literal["true", "absent", "false", "not judged"]
# whether a statement holds, None where the truth does not decide it, `absent` where its range is
# too wide to say anything; and what is true
Judged = Iterator[tuple[bool | Literal["absent"] | None, str]]


# what a shelf has that is taken as it is there: nothing, pairs, or pairs with their reports
Taken = Literal["nothing", "pairs", "reports"]


class Case:
    """A pair, its truth, and what its report says.

    shelf: a folder that keeps the pair, its report and the answers of verify; taken: what of these
    is not made again, whatever version made it. Sentences are always those of this code.
    """

    def __init__(
        self, pair: Pair, folder: Path, shelf: Path | None = None, taken: Taken = "nothing"
    ) -> None:
        self.pair, self._folder = pair, folder
        self.kept = folder / "kept" if shelf is None else shelf / safe(pair.name)
        path = self.kept / "made.pt"
        has_pair = taken != "nothing" and path.exists()
        self.made: Made = torch.load(path, weights_only=False) if has_pair else pair.make()
        if not has_pair or taken == "pairs":
            shutil.rmtree(self.kept, ignore_errors=True)
            shutil.copytree(self._audited().folder, self.kept / "report")
            torch.save(self.made, path)
        self.report = AuditReport(self.kept / "report")
        self.summary = self.report.summary
        self.by_number = Truth(self.made)
        self.partners, made = renumbered(self.made)
        self.truth = Truth(made, self.summary.figures.matrices_rounded > 0)
        self.finding = self.summary.finding
        self.codes = [one.code for one in self.finding.sentences]
        deltas = self.report.deltas
        self.rows = deltas[deltas["tensor"].isin(self.truth.inside)] if len(deltas) else deltas

    def answer(self, claim: str, **asked: str) -> str:
        """The outcome of `verify`, and the reason."""
        path = self.kept / "verified.json"
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        if claim not in known:
            found = shadow.verify(claim, *map(str, self.sides), **asked)
            known[claim] = f"{found.outcome}: {found.reason}"
            path.write_text(json.dumps(known))
        return known[claim]

    @cached_property
    def sides(self) -> list[Path]:
        """Both checkpoints, written when they are asked for."""
        sides = {"base": self.made.base, "tuned": self.made.tuned}
        return [
            save(self._folder / name, one, {"model_type": self.pair.config, **config})
            for (name, one), config in zip(sides.items(), self.made.configs, strict=True)
        ]

    def _audited(self) -> AuditReport:
        target = given_pair(*(parse_reference(str(one)) for one in self.sides))
        if self.pair.label:
            family, _, name = self.pair.label.partition(":")
            target = replace(target, family=family, name=name)
        return shadow.audit(target, output=self._folder / "reports", overwrite=True, jobs=1)

    def is_true(self, *facts: str) -> bool:
        """Whether one of these was done, in the words of MEANINGS."""
        return bool({*facts} & {*self.made.recorded, *self.made.facts})

    @property
    def text(self) -> str:
        """Headline and sentences, without what is said of other models."""
        said = [one.text for one in self.finding.sentences if one.code != "published"]
        return " ".join([self.finding.headline, *said])

    def known(self, column: str) -> list[str]:
        """The matrices inside layers of which the report knows 1/X or another figure."""
        rows = self.rows
        if not len(rows):
            return []
        there = rows[column].notna()
        if column == "kept":
            there |= rows["kept_reason"] == "nothing_rounded"
        if column == "equivalent_directions":
            there |= rows["excess_purity_unrounded"].notna() | (rows["floor_ratio"] >= 4)
            there |= rows["kept_reason"] == "nothing_rounded"
        return list(rows["tensor"][there])


def safe(name: str) -> str:
    """The name of a pair as that of a folder."""
    return re.sub(r"[^\w.]+", "-", name)


def save(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {n: one.contiguous().clone() for n, one in tensors.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def judged_directions(case: Case, values: list[float], names: list[str], what: str) -> Judged:
    """1/X, or a range of it, of these matrices."""
    truths = case.truth.directions(names)
    if not truths:
        if not case.made.update and case.made.update is not None:
            yield False, f"{what}: there is no update"
        return
    holds = held(values, truths, COHERENT)
    yield holds, f"1/X of {what} is {written(truths)}"


def judged_before(case: Case, values: list[float], text: str) -> Judged:
    """The norm before storage, of all that changed or of the matrices that it is known of."""
    if case.made.update is None:
        return
    truths = case.truth.norm()
    if "; known for " in text:  # of all, or of these
        deltas = case.report.deltas
        known = deltas["relative_norm_unrounded"].notna()
        known |= deltas["kept_reason"] == "nothing_rounded"
        truths += case.truth.norm(list(deltas["tensor"][known]))
    recorded = f"before storage the update was {written(100 * one for one in truths)} %"
    yield held(values, truths, BEFORE), recorded


# ---------------------------------------------------------------------------- sentences


def size(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    truth = case.truth
    if before := figures_of(figures, "figures.relative_norm_overall_unrounded"):
        yield from judged_before(case, before, text)
    stored = figures.get("figures.relative_norm_overall")
    if stored is not None:
        recorded = f"as stored the change is {100 * truth.stored_norm():.3g} %"
        yield abs(stored - truth.stored_norm()) <= STORED * truth.stored_norm(), recorded
        norms = truth.norm()
        if any(norms) and not before and "s stored" not in text:
            recorded = f"before storage the update was {written(100 * one for one in norms)} %"
            yield near(stored, norms, BEFORE), f"it is not said to be as stored; {recorded}"
    for place, value in figures.items():
        parts = place.split(".")
        if parts[-1] == "energy_share" and parts[0] in ("modules", "components"):
            share = truth.energy_share(names_at(case, parts))
            yield abs(value - share) <= FIGURE, f"{'.'.join(parts[1:-1])} holds {100 * share:.3g} %"
        if parts[-1] == "parameter_share" and parts[0] in ("modules", "components"):
            whole, own = (
                sum(truth.base[name].size for name in names)
                for names in (truth.changed, names_at(case, parts))
            )
            yield abs(value - own / whole) <= FIGURE, f"it has {own / whole:.1%} of the parameters"
    places = {place_of(name)[:2] for name in truth.changed}
    if "all of it in" in text and not re.search(r"all of it in [\w., ]+ \(\d", text):
        yield len(places) == 1, f"changed are {sorted(places)}"
    if found := re.search(r"nly matrices of layers? ([\d, toand]+?) changed", text):
        layers = {at for name in truth.inside if (at := place_of(name)[2]) is not None}
        yield _numbers(found[1]) == layers, f"layers {sorted(layers)} changed"
    if found := re.search(r"Inside [^,]+, layers? ([\d, toand]+?) holds? ([\d.]+) %", text):
        inside = [one for one in truth.inside if place_of(one)[0] == _main(truth.inside)]
        own = [name for name in inside if place_of(name)[2] in _numbers(found[1])]
        share = truth.energy_share(own) / truth.energy_share(inside)
        yield abs(float(found[2]) / 100 - share) <= FIGURE, f"they hold {share:.1%}"
    yield from only_rounded(case, text)
    if "Unchanged:" in text:
        yield from unchanged(case, text)


def only_rounded(case: Case, text: str) -> Judged:
    if found := re.search(r"([\d,]+) (?:more )?matri(?:x|ces)(?: is| are)? only rounded", text):
        count = len(case.truth.only_rounded)
        yield int(found[1].replace(",", "")) == count, f"{count} matrices are only rounded"


def _main(names: Iterable[str]) -> str:
    """The component that sentences are about: the language model where it changed."""
    components = [place_of(name)[0] for name in names]
    if "language" in components:
        return "language"
    return max(components, key=components.count)


def names_at(case: Case, parts: list[str]) -> list[str]:
    """The matrices of `modules.language.mlp.up.…` or `components.vision.…`."""
    module = ".".join(parts[2:-1])
    return [
        name
        for name in case.truth.changed
        if place_of(name)[0] == parts[1] and module in ("", place_of(name)[1])
    ]


def _numbers(text: str) -> set[int]:
    found: set[int] = set()
    for one in re.findall(r"(\d+)(?: to (\d+))?", text):
        found |= set(range(int(one[0]), int(one[1] or one[0]) + 1))
    return found


PARTS = {
    "vision": "the vision tower",
    "language": "the language model",
    "projector": "the projector",
}
WORDS = {"head": "the head", "embed": "the embeddings", "router": "the router"}
LAYERS = r"layers? (\d+(?:(?:, | and | to )\d+)*)(?: of (the [a-z ]+?))?(?=,| and |\.|$)"


def unchanged(case: Case, text: str) -> Judged:
    """Components, modules and layers that are called unchanged."""
    tail = text.split("Unchanged: ")[1].split(". ")[0]
    layers = [(_numbers(one[1]), one[2]) for one in re.finditer(LAYERS, tail)]
    named = {*re.split(r", (?:and )?| and |\.$", re.sub(LAYERS, "", tail))}
    several = len({place_of(name)[0] for name in case.truth.base}) > 1
    for name in case.truth.difference:
        component, module, layer = place_of(name)
        part, word = PARTS[component], WORDS.get(module, module)
        whole = several and component not in ("language", "projector")
        said = bool(named & {part, f"{word} of {part}" if whole else word})
        said |= any(layer in some and of in (None, part) for some, of in layers)
        yield not said, f"{name} changed"


def of_change(case: Case, text: str) -> Judged:
    """What is said of the change of matrices in layers, where there is none, or as if of all."""
    if "renumbered" in case.made.recorded and case.is_true("permuted"):
        yield False, "nothing that differs was trained: it stands at other numbers"
    found = re.search(r"\ball ([\d,]+) matrices inside", text)
    if found is not None:
        count = len(case.truth.inside)
        yield int(found[1].replace(",", "")) == count, f"{count} matrices inside layers changed"


def coherent(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    yield from of_change(case, text)
    beyond, _ = case.truth.beyond_noise(3.0)
    if case.made.update:
        total = len(case.truth.inside)
        yield 2 * beyond >= total, f"{beyond} of {total} updates have more structure than noise"
    elif case.made.update is not None and not case.made.few_bits:
        yield False, "there is no update"
    values = figures_of(figures, "inside_layers.equivalent_directions")
    if values and (found := re.search(r"along ([\d,.]+) to ([\d,.]+) equally", text)):
        values = [float(one.replace(",", "")) for one in found.groups()]
    if values:
        names = case.known("equivalent_directions")
        yield from of_few(case, names, text)
        yield from judged_directions(case, values, names, "the median matrix")


def of_few(case: Case, names: list[str], text: str) -> Judged:
    """A median of fewer than half of the matrices that does not say so."""
    if 2 * len(names) < len(case.truth.inside) and not re.search(r"\b\d+ of (the )?\d+ m", text):
        yield False, f"it is known of {len(names)} of {len(case.truth.inside)} matrices"


def low_rank(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    yield from of_change(case, text)
    recorded = figures_of(figures, "inside_layers.rank_most")
    true = case.truth.rank(case.truth.inside)
    if not recorded or case.made.update is None:
        return
    if true is None:
        yield False, "there is no update"
        return
    yield from of_few(case, case.known("kept"), text)
    yield true <= max(recorded), f"the update needs {true:.0f} directions for 99.9 % of its energy"


def noise(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    yield from of_change(case, text)
    if "flatter" in text:
        yield from flat(case)
        return
    if case.made.update is None:
        return
    beyond, _ = case.truth.beyond_noise()
    if case.made.scaled:
        yield False, "rows or columns were scaled by a factor each"
    recorded = f"{beyond} of {len(case.truth.inside)} updates have more structure than noise"
    yield 2 * beyond < max(1, len(case.truth.inside)), recorded


def flat(case: Case) -> Judged:
    if not case.made.update:
        return
    _, flatter = case.truth.beyond_noise()
    recorded = f"{flatter} of {len(case.truth.inside)} updates are flatter than noise"
    yield 2 * flatter >= len(case.truth.inside), recorded


def kept(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    if "fits too poorly" in text:
        yield from unexplained(case)
        return
    values = figures_of(figures, "inside_layers.kept")
    if not values or case.made.update is None:
        return
    truths = list(case.truth.kept(case.known("kept")))
    if case.made.also is not None:
        truths.append(1.0)  # what is stored is what was trained
    if (other := case.truth.kept_of_rounded()) is not None:
        truths.append(other)
    holds = any(min(values) - KEPT <= one <= max(values) + KEPT for one in truths)
    if holds and max(values) > WIDE * min(values):
        holds = "absent"
    yield holds, f"{written(100 * one for one in truths)} % are the update's"


def rounded_away(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    yield from of_change(case, text)
    if case.made.update is None:
        return
    true = min(case.truth.kept())
    yield true <= 0.25 + KEPT, f"{100 * true:.2g} % of what is stored are the update's"


def rounding(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    """A copy that was only rounded, or `may be nothing else`."""
    if says_copy(case, text):
        yield copied(case, text)
        return
    true = min(case.truth.kept())
    if case.made.update and case.made.rounded != "message":
        yield true < 0.75, f"{100 * true:.2g} % of what is stored are the update's"
    floor, value = case.truth.floor_ratio(), figures.get("figures.floor_ratio")
    if floor is not None and value is not None:
        yield near(value, [floor], 0.15), f"it is {floor:.2g} times the rounding of its values"


def says_copy(case: Case, text: str) -> bool:
    return "as in a copy" in text or "only rounded" in text or "another format" in text


def copied(case: Case, text: str = "") -> tuple[bool, str]:
    """Whether the tuned side is the base and nothing else, but for a rounding; where the text names
    exceptions, whether there are any.
    """
    update = case.made.update
    if re.search(r"\b(but for (?!rounding)|all but|except|besides?|other than|apart from)", text):
        return bool(update), "nothing else changed"
    if update is None:
        return False, "it is no copy"
    if changed := [name for name, D in update.items() if D.any()]:
        return False, f"{len(changed)} tensors changed by more, such as {changed[0]}"
    return case.made.few_bits != ("tuned",), "it went through few bits"


def unexplained(case: Case) -> Judged:
    """Absent of an even update that was rounded once, from a base as it was stored: it says that
    one rounding fits too poorly, not that there was none.
    """
    made, rounded = case.made, case.made.rounded
    if any(one.dtype == torch.float32 for one in made.base.values()) and rounded == "once":
        rounded = "master"  # the base's own, in more bits
    other = made.uneven or made.scaled or made.ways.get("weight_decay") or not made.update
    yield bool(rounded not in ("once", "no") or other) or "absent", f"it was rounded: {rounded}"


def few_values(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    if "could be judged" not in text:
        yield from of_change(case, text)
    if "part or all of the change may be the rounding" in text:
        share = case.truth.stored_norm(case.truth.inside)
        yield share < 1, f"it is {share:.3g} times the weights: no rounding is"
    if "in_8_bits" in str(figures):
        sides = (*case.made.base.values(), *case.made.tuned.values())
        yield any(one.element_size() == 1 for one in sides), "no side is stored in 8 bits"
        return
    for side in ("base", "tuned"):
        if any(f"levels_{side}" in place for place in figures):
            recorded = f"through few bits went: {case.made.few_bits or 'none'}"
            yield side in case.made.few_bits, recorded


def mostly_copy(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    """Some tensors changed by more, and all others only by a cast."""
    update = case.made.update
    if update is None:
        yield False, "it is no copy"
        return
    beside = [name for name in case.truth.difference if name in update and update[name].any()]
    cast = len(case.truth.difference) - len(beside)
    yield bool(beside) and cast > 0, f"{len(beside)} tensors changed by more, {cast} by a cast"
    if "recognised.casts.beside" in figures:
        recorded = figures["recognised.casts.beside"]
        yield recorded == len(beside), f"{len(beside)} tensors changed by more"


ELSEWHERE = ("rotated", "permuted", "layer dropped", "layer inserted", "renumbered")


def unrelated(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    """Another model; or where the text says so, the same at other places or in another basis."""
    if "difference is no change" in text:
        yield not case.made.update, "it was trained, or edited, to be so"
    holds = case.made.apart or ("rotated" in text and case.is_true(*ELSEWHERE))
    yield holds, f"done was: {case.pair.name}"


def identical(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    truth = case.truth
    if text.startswith("The weights are the same"):
        yield not truth.difference, f"{len(truth.difference)} tensors changed"
    yield not truth.changed, f"{len(truth.changed)} matrices changed"


def vectors(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    own = [one for one in case.truth.difference if one not in case.truth.changed]
    if "vectors.changed" in figures:
        yield figures["vectors.changed"] == len(own), f"{len(own)} vectors changed"


def only_vectors(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    yield not case.truth.changed, f"{len(case.truth.changed)} matrices changed"
    yield from vectors(case, text, figures)


def done(recorded: str, *facts: str) -> Callable[[Case, str, Mapping[str, float]], Judged]:
    """Whether one of these was done, and what is true if not."""
    return lambda case, text, figures: iter([(case.is_true(*facts), recorded)])


def units_moved(unit: str) -> Callable[[Case, str, Mapping[str, float]], Judged]:
    """Layers or experts that are others of the base, and those of the base that are none."""

    def judge(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
        found = {name: there for name, there in case.partners.items() if f".{unit}s." in name}
        number = re.compile(rf"(?<={unit}s\.)\d+")
        pairs = {name: (int(number.search(name)[0]), int(number.search(there)[0]))
                 for name, there in found.items()}  # fmt: skip
        run = rf"{unit}s? (\d+)(?: to (\d+))? (?:is|are) the base's (\d+)"
        for first, last, start in re.findall(run, text, re.IGNORECASE):
            for at in range(int(first), int(last or first) + 1):
                own = [there for here, there in pairs.values() if here == at]
                holds = 2 * own.count(at + int(start) - int(first)) > len(own) > 0
                yield holds, f"{unit} {at} is of {sorted({*own})}"
        for numbers in re.findall(rf"the base's {unit}s? ([^;.]*?) (?:is|are) missing", text,
                                  re.IGNORECASE):  # fmt: skip
            for at in map(int, re.findall(r"\d+", numbers)):
                yield at not in [there for _, there in pairs.values()], f"{unit} {at} is there"

    return judge


def matrices_moved(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    """Attention of layers that is that of others."""
    for layer, there in re.findall(
        r"of layer (\d+), [^;]*? base's layer (\d+)", text, re.IGNORECASE
    ):
        own = {one for name, one in case.partners.items() if f"layers.{layer}.self_attn" in name
               and "proj.weight" in name}  # fmt: skip
        holds = bool(own) and all(f"layers.{there}." in one for one in own)
        yield holds, f"attention of layer {layer} is {sorted(own)}"


def rows_moved(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    """Rows of the vocabulary that are rows of the base, and those in front of them."""
    base, tuned = (side["model.embed_tokens.weight"].double().numpy()
                   for side in (case.made.base, case.made.tuned))  # fmt: skip
    of_base, of_tuned = rows_of(base, tuned)
    for key, value in figures.items():
        truth = {"rows": len(of_tuned), "in_front": of_tuned[0], "base_rows": len(base),
                 "tuned_rows": len(tuned)}  # fmt: skip
        yield value == truth[key.rpartition(".")[2]], f"{len(of_base)} rows are of the base"


def only_moved(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    moved = {name for name, there in case.partners.items() if name != there}
    yield bool(moved) or "rows" in text, "everything has the base's number"
    if exchanged := re.search(r"layers (\d+) and (\d+) exchanged", text):
        in_layers = re.compile(r"\.layers\.({}|{})\.".format(*exchanged.groups()))
        yield moved == {*filter(in_layers.search, case.partners)}, "other tensors moved"


def zeroed(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    yield case.truth.zeroed(), "entries changed that are not 0 now"
    if (share := figures.get("recognised.zeroed.share")) is not None:
        truth = case.truth
        shares = [np.count_nonzero(truth.difference[n]) / truth.base[n].size for n in truth.changed]
        yield abs(share - median(shares)) <= FIGURE, f"{median(shares):.1%} of the entries changed"


def few_entries(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    count = case.truth.entries_changed()
    yield figures.get("recognised.few_entries.entries") == count, f"{count} entries changed"


def left_out(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    """Rows that a vocabulary gained or lost, and whether what is missing is missing."""
    rows = case.truth.other_rows.values()
    if found := re.search(r"(grew by|lost) ([\d,]+) rows?", text):
        by = int(found[2].replace(",", "")) * (1 if found[1] == "grew by" else -1)
        yield any(tuned - base == by for base, tuned in rows), f"rows, before and after: {[*rows]}"
    if "only in the base" in text:
        yield from missing(case, text.split("(only in the base)")[0])


def missing(case: Case, text: str) -> Judged:
    """A head that is the embedding is not missing."""
    gone = [name for name in case.truth.base if name not in case.truth.tuned]
    yield bool(gone), "every tensor of the base is in the tuned model"
    if "the head" in text:
        yield any("lm_head" in name for name in gone), "the head is the embedding"


def part_shared(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    for value in figures.values():
        share = case.truth.part_shared()
        yield abs(value - share) <= FIGURE, f"matrices of both have {share:.1%} of the parameters"


def replaced(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    holds = case.is_true("replaced", *ELSEWHERE) or case.pair.name.endswith(
        "one matrix replaced by noise"
    )
    yield holds, "no matrix was replaced, exchanged or reordered"


def masked(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    share = case.truth.hardly_moved()
    recorded = f"{share:.0%} of the entries moved by less than a tenth of the root mean square"
    yield share >= HARDLY, recorded


def published(case: Case, text: str, figures: Mapping[str, float]) -> Judged:
    """The mean over all tensors that have a partner of their shape, but for the smallest."""
    truth, value = case.truth, figures.get("published.value")
    norms = {
        name: float(np.linalg.norm(D) / np.linalg.norm(truth.base[name]))
        for name, D in truth.difference.items()
        if truth.base[name].any()
    }
    counted = [name for name in truth.base if truth.base[name].size >= 1000]
    lost = [name for name, (base, tuned) in truth.other_rows.items() if tuned < base]
    whole = [name for name in counted if name in truth.shared and name not in lost]
    if value is None or not whole or case.made.configs != ({}, {}):
        return
    mean = sum(norms.get(name, 0.0) for name in whole) / len(whole)
    yield near(value, [mean], FIGURE), f"the mean of {len(whole)} tensors is {100 * mean:.3g} %"


SENTENCES: Mapping[str, Callable[[Case, str, Mapping[str, float]], Judged]] = {
    "size": size, "coherent": coherent, "low_rank": low_rank, "noise": noise, "kept": kept,
    "rounded_away": rounded_away, "rounding": rounding, "copy": rounding, "few_values": few_values,
    "unrelated": unrelated, "not_comparable": unrelated, "layers_moved": units_moved("layer"),
    "experts_moved": units_moved("expert"), "matrices_moved": matrices_moved,
    "rows_moved": rows_moved,
    "identical": identical, "vectors": vectors, "only_vectors": only_vectors,
    "scaled": done("the base was not multiplied by one factor", "scaled"),
    "zeroed": zeroed, "few_entries": few_entries, "left_out": left_out, "part_shared": part_shared,
    "mostly_copy": mostly_copy, "replaced": replaced, "masked": masked, "published": published,
}  # fmt: skip


def way_of(case: Case, code: str) -> bool | None:
    """Whether this was done; None where the history does not decide it."""
    return {**WAYS, **case.made.ways}.get(code)


def explanation(case: Case, code: str, name: str, answer: str) -> tuple[Word, str]:
    way = way_of(case, code)
    done = f"done was: {case.pair.name}"
    if code == "merged_adapter" and "few directions" in name:  # whatever made them few
        rank = case.truth.rank(case.truth.inside)
        side = min((min(case.truth.base[one].shape) for one in case.truth.inside), default=0)
        few = 4 * rank <= side if rank is not None else False if case.made.update == {} else None
        way = True if way else few
        done = f"{done}, of rank {rank}"
    elif code == "merged_adapter" and case.made.rotated:
        way = "low-rank" not in name
    if way is None:
        return "not judged", ""
    if answer == "cannot_be_excluded":
        return "absent", ""
    return ("true" if (answer == "fits") == way else "false"), done


def verified(case: Case) -> Iterator[tuple[str, str, Word, str]]:
    """Answers of `verify`: the claim, what it says, the word, and what is true."""
    if not case.pair.kind.startswith("kinds"):
        return
    truth = case.by_number
    same: bool | None = not truth.difference and not truth.other_rows
    same &= len(truth.shared) == len(truth.base) == len(truth.tuned)
    if any(case.made.configs):  # the same weights under other names, or not: a matter of words
        same = None
    yield _answered("verify same", case.answer("same"), same)
    moved: bool | None = None
    part = "experts" if any(".experts." in name for name in truth.base) else "mlp"
    places = {name: place_of(name) for name in truth.shared}
    of_mlp = [n for n, at in places.items() if at[0] == "language" and at[1].startswith(part)]
    if not of_mlp:
        return
    if any(name not in truth.difference for name in of_mlp):
        moved = False
    elif (update := case.made.update) is not None:
        moved = all(name in update and update[name].any() for name in of_mlp)
    answer = case.answer("trained", moved=f"language.layers.*.{part}.*")
    yield _answered("verify trained", answer, moved)


def _answered(name: str, answer: str, truth: bool | None) -> tuple[str, str, Word, str]:
    outcome = {"holds": True, "does_not_hold": False}.get(answer.partition(":")[0])
    word: Word = "true" if outcome == truth else "false"
    if truth is None:
        word = "not judged"
    elif outcome is None:
        word = "absent"
    return name, answer, word, f"done was: {truth}"
