"""What the claim `mixture` needs measured: a model beside those that it may be mixed of.

All shards are at hand at once, as the same tensor of every model is read tile by tile together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from shadow.audits.machine_limits import machine_limits
from shadow.audits.memory import default_jobs
from shadow.audits.runtime import Progress, Runtime
from shadow.audits.scan import fetch_all, require_unchanged
from shadow.audits.verify.lined import found_all, opened_models, role_of, whole_numbers
from shadow.audits.workers import views
from shadow.checkpoints.opening import Checkpoint
from shadow.checkpoints.pairing import Filter, MatrixPair, Skipped, pair_checkpoints
from shadow.claims.verify.mixture import Found, Mixture, NotFound, Weight, mixture
from shadow.claims.verify.scanned import Apart
from shadow.claims.verify.verification import Verification
from shadow.errors import ShadowError
from shadow.spectra.lazy import Matrix
from shadow.spectra.masks import Masked, masked
from shadow.spectra.mixture import Read, read, sums_and_rest
from shadow.spectra.mixture_fit import Fit, Likely, Mixed, fit, likely
from shadow.targets.references import AnyReference
from shadow.text import counted

# a head that shares the embedding's bytes, or that no model reads, is no loss; whole numbers are
# compared apart
NO_LOSS = ("tied", "not_float")
# weights are sought in the smallest tensors first: this share of all entries, or so many
FEWEST, MOST = 32, 1 << 23
UNREAD = ("quantized", "unknown_dtype", "unreadable", "shape_differs")


def verify_mixture(
    of: Mapping[str, str],
    checkpoints: Sequence[AnyReference],
    base: AnyReference | None,
    runtime: Runtime,
    scratch: Path,
) -> Verification:
    """Whether the first of the checkpoints is a merge of the others."""
    named = dict(zip(of, [*checkpoints, *([base] if base else [])], strict=True))
    opened = opened_models(found_all(named, runtime, scratch), runtime, scratch)
    target, *others = opened
    paired = [pair_checkpoints(other, target, Filter()) for other in others]
    untied = _untied(target, "tuned", paired[0][1])
    if untied is not target:
        target = untied
        others = [
            _untied(one, "base", of_one) for one, (_, of_one) in zip(others, paired, strict=True)
        ]
        paired = [pair_checkpoints(other, target, Filter()) for other in others]
    skipped = [of_side for _, of_side in paired]
    lone, unread = _apart(skipped)
    for name, (pairs, _) in zip(list(of)[1:], paired, strict=True):
        side = name.replace("--base", "the base")
        lone += [_more_rows(pair, side) for pair in pairs if pair.base is not None and pair.detail]
    alone = {pair.tuned.info.name for pairs, _ in paired for pair in pairs if pair.base is None}
    lone += [Apart(name, "tuned", "not in every model") for name in sorted(alone)]
    by_key = [{pair.key: pair for pair in pairs if pair.base is not None} for pairs, _ in paired]
    common = [
        key
        for key, pair in by_key[0].items()
        if pair.rows * pair.cols and all(key in of_other for of_other in by_key)
    ]
    fetch_all(opened, runtime)
    off = _whole_numbers(lone, unread, skipped, target, others)
    lines = [[of_other[key] for of_other in by_key] for key in common]
    tensors, first = _tensors(lines, target, others, has_base=base is not None, runtime=runtime)
    off += [
        Apart(one.name, "tuned", "some entries are not finite")
        for one in tensors
        if not one.sums.finite
    ]
    tensors = [one for one in tensors if one.sums.finite]
    if not tensors:
        raise ShadowError(f"{target.reference}: no tensor is finite in all of these models")
    found = _found(tensors, len(checkpoints) - 1, first, has_base=base is not None)
    require_unchanged(opened)
    formats = sorted({one.stored for one in tensors})
    measured = Mixture(len(tensors), formats, base is not None, found, lone, off, unread)
    answer, against = mixture(measured)
    return Verification("mixture", of, answer, against)


def _untied(checkpoint: Checkpoint, side: str, skipped: Sequence[Skipped]) -> Checkpoint:
    """The checkpoint with a head of its own, where it stores one that its config ties."""
    heads = (one for one in skipped if one.side == side and one.reason == "tied")
    if all(one.info.alias_of for one in heads):
        return checkpoint
    return replace(checkpoint, config={**checkpoint.config, "tie_word_embeddings": False})


def _whole_numbers(
    lone: list[Apart],
    unread: list[Apart],
    skipped: Sequence[Sequence[Skipped]],
    target: Checkpoint,
    others: Sequence[Checkpoint],
) -> list[Apart]:
    """Tensors of whole numbers, which no merge computes, whose values no other model has. Those
    that some have are added to unread, and those that not all models have to lone.
    """
    off = []
    numbers = [[one for one in of_side if one.reason == "not_float"] for of_side in skipped]
    mine = [one for one in numbers[0] if one.side == "tuned"]
    theirs = [[one for one in of_side if one.side == "base"] for of_side in numbers]
    for one in mine:
        apart = partial(Apart, one.info.name, "tuned")
        partners = [
            next((each for each in of_other if _is_alike(one, each)), None) for of_other in theirs
        ]
        if None in partners:
            lone.append(apart("not in every model"))
            continue
        own = whole_numbers(target, one.info.name)
        equal = [
            each is not None
            and (values := whole_numbers(other, each.info.name)) is not None
            and own is not None
            and np.array_equal(own, values)
            for other, each in zip(others, partners, strict=True)
        ]
        if any(equal) and not all(equal):
            unread.append(apart("whole numbers that are not equal in all models"))
        elif not any(equal):
            off.append(apart("whole numbers that no other model has"))
    for of_other in theirs:
        for one in of_other:
            if not any(_is_alike(one, each) for each in mine):
                lone.append(Apart(one.info.name, "base", "not in TUNED"))
    return off


def _is_alike(one: Skipped, other: Skipped) -> bool:
    """Whether two tensors are of one place, or of one name but for a prefix."""
    names = one.info.name, other.info.name
    return (
        one.place == other.place
        or names[0].endswith(f".{names[1]}")
        or names[1].endswith(f".{names[0]}")
    )


def _apart(skipped: Sequence[Sequence[Skipped]]) -> tuple[list[Apart], list[Apart]]:
    """Tensors that not all models have, and those that are not read."""
    lone: dict[str, Apart] = {}
    unread: dict[str, Apart] = {}
    packed = {
        role_of(one.place) for of_side in skipped for one in of_side if one.reason == "quantized"
    }
    for of_side in skipped:
        for one in of_side:
            if one.reason in NO_LOSS:
                continue
            apart = Apart(
                one.info.name, one.side,
                one.detail or ("not in every model" if one.side == "tuned" else "not in TUNED"),
            )  # fmt: skip
            is_unread = one.reason in UNREAD or role_of(one.place) in packed
            (unread if is_unread else lone)[one.info.name] = apart
    return list(lone.values()), list(unread.values())


def _more_rows(pair: MatrixPair, name: str) -> Apart:
    """The rows that only one side of a pair has of a vocabulary. name: of the base's side."""
    assert pair.base is not None, "paired"
    more = pair.tuned.shape[0] - pair.base.shape[0]
    rows = counted(abs(more), "row", "rows")
    if more > 0:
        return Apart(pair.tuned.info.name, "tuned", f"{rows} that {name} lacks", is_shared=True)
    return Apart(pair.base.info.name, "base", f"{rows} of {name} that TUNED lacks", is_shared=True)


def _tensors(
    lines: Sequence[Sequence[MatrixPair]],
    target: Checkpoint,
    others: Sequence[Checkpoint],
    *,
    has_base: bool,
    runtime: Runtime,
) -> tuple[list[Mixed], Likely | None]:
    """Every tensor with its sums of products, and in the same pass what weights leave of it that
    the smallest tensors agree with.
    """
    jobs = runtime.jobs or default_jobs(
        [line[0] for line in lines], runtime.limits or machine_limits()
    )
    order = sorted(range(len(lines)), key=lambda one: lines[one][0].rows * lines[one][0].cols)
    entries = np.cumsum([lines[one][0].rows * lines[one][0].cols for one in order])
    few = 1 + int(np.searchsorted(entries, min(entries[-1] / FEWEST, MOST)))
    found: dict[int, Mixed] = {}
    first: Likely | None = None
    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        for some in (order[:few], order[few:]):
            measure = partial(_mixed, target=target, others=others, has_base=has_base, first=first)
            for number, one in zip(some, pool.map(measure, [lines[n] for n in some]), strict=True):
                found[number] = one
                done, total = len(found), len(lines)
                runtime.show(Progress(done=done, total=total, cost_done=done, cost_total=total))
            if len(found) < len(lines) and all(one.sums.finite for one in found.values()):
                sides = len(others) - has_base
                first = likely([found[number] for number in some], sides, has_base)
    return [found[number] for number in range(len(lines))], first


def _mixed(
    line: Sequence[MatrixPair],
    target: Checkpoint,
    others: Sequence[Checkpoint],
    *,
    has_base: bool,
    first: Likely | None,
) -> Mixed:
    pair = line[0]
    parts = partial(_parts, line, target, others, has_base)
    stored = pair.tuned.info.dtype
    place = pair.place
    kind = place.module.partition(".")[0]
    name = pair.tuned.info.name
    if pair.tuned.part.place.expert is not None and str(place.expert) not in name:
        name = f"{name}[{place.expert}]"
    if sum(char == "." for char in place.module) and place.module.endswith(("gate", "up")):
        name = name if place.module.rpartition(".")[2] in name else f"{name} ({place.module})"
    sums, rest = sums_and_rest(parts(), stored, first.asked if first else None)
    return Mixed(name, place.layer, kind, pair.tuned.info.name, stored, parts, sums, rest)


def _parts(
    line: Sequence[MatrixPair], target: Checkpoint, others: Sequence[Checkpoint], has_base: bool
) -> Iterator[Read]:
    """The tiles of a tensor of every model, of one shape."""
    found: list[Matrix] = []
    tuned: Matrix | None = None
    for pair, other in zip(line, others, strict=True):
        assert pair.base is not None, "paired"
        one, tuned = views(pair, pair.base, other, target)
        found.append(one)
    assert tuned is not None, "there are others"
    shapes = {tuple(matrix.shape) for matrix in (tuned, *found)}
    if len(shapes) > 1:  # rows in groups on one side only
        rows = min(pair.rows for pair in line)
        whole = [
            matrix[(slice(None),)].reshape(-1, line[0].cols)[:rows] for matrix in (tuned, *found)
        ]
        tuned, found = whole[0], [*whole[1:]]
    sides, base = (found[:-1], found[-1]) if has_base else (found, None)
    return read(tuned, base, sides)


def _found(
    tensors: Sequence[Mixed], sides: int, first: Likely | None, *, has_base: bool
) -> Found | NotFound:
    """What the claim judges."""
    linear = fit(tensors, sides, has_base, first)
    if isinstance(linear, Fit):
        return _linear(linear)
    if has_base and (dropped := masked(tensors, sides)):
        return _dropped(dropped)
    return NotFound(list(linear.weights), linear.rest, linear.apart, linear.entries)


def _linear(found: Fit) -> Found:
    weights = np.array(found.weights)
    sides = weights.shape[1]
    return Found(
        method=found.method,
        per=found.per,
        weights=[
            Weight(
                least=float(weights[:, side].min()),
                most=float(weights[:, side].max()),
                low=float(found.low[side]),
                high=float(found.high[side]),
            )
            for side in range(sides)
        ],
        t=found.t,
        in_steps=found.in_steps,
    )


def _dropped(found: Masked) -> Found:
    if found.method == "ties":
        factor = found.factors[0]
        # the weights of equal models are open
        weights = [Weight(factor, factor, -math.inf, math.inf)] if found.is_open else []
        return Found("ties", "model", weights, kept=found.kept, factor=factor)
    weights = [
        Weight(
            factor * kept, factor * kept, factor * (kept - 2 * error), factor * (kept + 2 * error)
        )
        for factor, kept, error in zip(found.factors, found.kept, found.errors, strict=True)
    ]
    return Found("dare", "model", weights, kept=found.kept)
