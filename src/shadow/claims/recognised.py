"""What the figures of a pair show of its change beyond doubt, or as far as storage lets them: the
questions that explanations and sentences share.
"""

from __future__ import annotations

from shadow.claims.answer import Claim, ErrorRate, table
from shadow.claims.draft import Draft
from shadow.summary.layer_medians import LOW
from shadow.summary.record import PairRecord

CLEAR = 4.0  # floor_ratio from which an unknown rounding hardly matters
USUAL_RANK = 256  # of adapters
LIKE_NOISE = 0.03  # concentration within which a pair is like noise
BY_CHANCE = 0.03  # of the matrices of a rounded copy: more do not pass for changed
STANDING_OUT = 0.1  # of the energy of the median matrix, from which its spikes count
DIFFERENT = 0.05  # how far the norm before storage has to be from the stored one to matter
MANY = 0.25  # of the changed matrices in layers: an order of neurons changes 3 of 7
PLANTED = ErrorRate(
    0,
    240,
    "benchmarks/rearranged.py: decoders of 4 to 8 layers and widths of 32 to 128; 40 pairs each"
    " with a layer dropped, one inserted, layers negated and neurons permuted, each up to 10 % of"
    " noise, and 40 trained and 40 unrelated pairs",
)
RECOGNISED = table(
    Claim(
        "copy",
        "rounded copy",
        "every changed tensor is the other side's tensor in another format",
        needs=("recognised.casts.tensors", "recognised.casts.beside"),
        null="at least one entry that is not the other side's in another format",
    ),
    Claim(
        "mostly_copy",
        "rounded copy with changes",
        "most changed tensors are the other side's tensors in another format; some are not",
        needs=("recognised.casts.tensors", "recognised.casts.beside"),
    ),
    Claim(
        "scaled",
        "scaled base",
        "every changed matrix is the base's times one factor",
        needs=("recognised.scaled.matrices", "recognised.scaled.factor"),
    ),
    Claim(
        "zeroed",
        "pruned base",
        "in every changed matrix, some entries became 0 and all others stayed the same",
        needs=("recognised.zeroed.matrices", "recognised.zeroed.share"),
    ),
    Claim(
        "replaced",
        "replaced matrices",
        "some matrices have little in common with the base's, while the others are close to it",
        needs=("recognised.replaced.matrices", "recognised.replaced.cosine_most"),
    ),
    Claim(
        "scaled_lines",
        "scaled rows or columns",
        "one factor for each row, or each column, explains most of the change of some matrices",
        needs=("recognised.scaled_lines.matrices", "recognised.scaled_lines.share"),
        null="a share of about 1 / the length of a row or column",
    ),
    Claim(
        "few_entries",
        "few entries",
        "fewer entries of each changed matrix changed than it has rows and columns",
        needs=("recognised.few_entries.entries", "recognised.few_entries.of"),
    ),
    Claim(
        "masked",
        "masked entries",
        "in most changed matrices of layers, the share of entries that stayed the same is at least"
        " 30 points above what rounding leaves of normal updates",
        needs=("recognised.masked.matrices", "recognised.masked.excess"),
        null="an excess of about 0, as after a training of all entries",
    ),
    Claim(
        "few_rows",
        "few tokens",
        "only a few rows of an embedding changed",
        needs=("recognised.few_rows",),
    ),
    Claim(
        "layers_moved",
        "moved layers",
        "layers have the content of other layers of the base, as after layers were dropped or"
        " inserted",
        needs=("recognised.rearranged.moved.layers",),
        null="not found between unrelated models",
        error_rate=PLANTED,
    ),
    Claim(
        "negated",
        "negated matrices",
        "matrices are the base's with the opposite sign, apart from some training",
        needs=("recognised.rearranged.negated.matrices",),
        null="not found between unrelated models",
        error_rate=PLANTED,
    ),
    Claim(
        "reordered",
        "reordered neurons",
        "matrices are the base's with rows or columns in another order, apart from some training",
        needs=("recognised.rearranged.reordered.matrices",),
        null="not found between unrelated models",
        error_rate=PLANTED,
    ),
)


def recognised(record: PairRecord) -> list[str]:
    """The codes of RECOGNISED that hold, in their order."""
    found, elsewhere = record.recognised, record.recognised.rearranged
    holds = {
        "copy": is_copy(record),
        "mostly_copy": is_mostly_copy(record),
        "few_rows": bool(found.few_rows),
        "layers_moved": elsewhere is not None and elsewhere.moved is not None,
        "negated": elsewhere is not None and elsewhere.negated is not None,
        "reordered": elsewhere is not None and elsewhere.reordered is not None,
    }
    return [code for code in RECOGNISED if (holds[code] if code in holds else vars(found)[code])]


def is_rearranged(record: PairRecord) -> bool:
    """Whether a comparison place by place shows no change: layers have moved, or MANY of the
    changed matrices are the base's own, negated or in another order.
    """
    found = record.recognised.rearranged
    if found is None:
        return False
    return found.moved is not None or 0 < MANY * found.changed <= found.matrices


def is_copy(record: PairRecord) -> bool:
    """Whether all that changed is the other side's in another format; no, of old reports."""
    casts = record.recognised.casts
    return casts is not None and casts.tensors > 0 and not casts.beside


def is_mostly_copy(record: PairRecord) -> bool:
    """Whether most tensors that changed are the other side's in another format, but not all."""
    casts = record.recognised.casts
    return casts is not None and 0 < casts.beside <= casts.tensors


def is_scaled_by_lines(record: PairRecord) -> bool:
    """Whether factors for rows or columns are the change of most matrices."""
    lines = record.recognised.scaled_lines
    return lines is not None and 2 * lines.matrices >= record.figures.matrices


def beyond_rounding(record: PairRecord) -> int:
    """Of a pair most matrices of which are rounded away: how many changed by more all the same, as
    where an adapter of some modules was merged. 0 where that may be chance.
    """
    inside = record.inside_layers
    return inside.known if inside.beyond_noise > BY_CHANCE * inside.matrices else 0


def is_lost(record: PairRecord) -> bool:
    """Whether so much may have been rounded away that what is stored hides the update."""
    inside, floor = record.inside_layers, record.figures.floor_ratio
    unknown = inside.rounded_away
    if floor is None or floor < CLEAR:
        unknown += inside.unexplained + inside.few_changed
    return 2 * unknown >= max(1, inside.matrices)


def is_low_rank(record: PairRecord) -> bool:
    """Whether the median update has a rank that adapters have, and few of its directions."""
    inside, side = record.inside_layers, record.figures.short_side
    if inside.rank_most is None or side is None or 2 * inside.rank_known < inside.matrices:
        return False
    return inside.rank_most <= min(USUAL_RANK, LOW * side)


def stands_out(record: PairRecord) -> bool:
    """Whether the median matrix has directions beyond noise, with enough energy to count."""
    spikes, energy = record.inside_layers.spikes, record.inside_layers.spike_energy
    return spikes is not None and energy is not None and spikes >= 1 and energy >= STANDING_OUT


def has_other_norm_unrounded(record: PairRecord) -> bool:
    """Whether the norm before storage is known, and differs enough from the stored one."""
    stored = record.figures.relative_norm_overall
    unrounded = record.figures.relative_norm_overall_unrounded
    if stored is None or unrounded is None:
        return False
    return abs(unrounded - stored) >= DIFFERENT * stored


def few_bits(draft: Draft) -> str | None:
    """Through which few bits most matrices of the tuned side went: `tuned` as few distinct values
    in a row show, `format` where a side is stored in 8 bits; None where nothing shows any. The
    counts are noted in the draft.
    """
    record, inside = draft.summary, draft.summary.inside_layers
    of_base = has_few_values(Draft(record), "base")  # whose values the tuned side may have
    if record.recognised.zeroed is None and not of_base and has_few_values(draft, "tuned"):
        return "tuned"
    if inside.in_8_bits and 2 * inside.in_8_bits > inside.matrices:
        draft.inside("in_8_bits")
        draft.inside("matrices")
        return "format"
    return None


def has_few_values(draft: Draft, side: str) -> bool:
    """Whether most matrices of a side have few distinct values in a row; the counts are noted."""
    few, judged = few_of(draft.summary, side)
    if not few or 2 * few <= judged:
        return False
    draft.inside(f"levels_{side}_few")
    draft.inside(f"levels_{side}_judged")
    return True


def few_of(record: PairRecord, side: str) -> tuple[int, int]:
    """How many matrices of a side have few distinct values in a row, of how many."""
    inside = record.inside_layers
    return int(inside[f"levels_{side}_few"] or 0), int(inside[f"levels_{side}_judged"] or 0)
