"""What the matrices inside layers show of a change, as far as storage lets them: the questions that
explanations and sentences share.
"""

from __future__ import annotations

from shadow.summary.layer_medians import LOW
from shadow.summary.record import PairRecord

CLEAR = 4.0  # floor_ratio from which an unknown rounding hardly matters
USUAL_RANK = 256  # of adapters
LIKE_NOISE = 0.03  # concentration within which a pair is like noise
BY_CHANCE = 0.03  # of the matrices of a rounded copy: more do not pass for changed
STANDING_OUT = 0.1  # of the energy of the median matrix, from which its spikes count
DIFFERENT = 0.05  # how far the norm before storage has to be from the stored one to matter


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
    else:  # a file of more bits may hold what fewer rounded
        unknown += inside.unexplained_in_more_bits
    return bool(2 * unknown >= max(1, inside.matrices))


def is_low_rank(record: PairRecord) -> bool:
    """Whether the median update has a rank that adapters have, and few of its directions."""
    inside, side = record.inside_layers, record.figures.short_side
    if inside.rank_most is None or side is None or 2 * inside.rank_known < inside.matrices:
        return False
    return bool(inside.rank_most <= min(USUAL_RANK, LOW * side))


def has_sizes(record: PairRecord) -> bool:
    """Whether sizes of matrices differ, so that their median need not be that of any."""
    least, most = record.inside_layers.short_side_least, record.inside_layers.short_side_most
    return least is not None and most is not None and least < most


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
    return bool(abs(unrounded - stored) >= DIFFERENT * stored)


def few_bits(record: PairRecord) -> str | None:
    """Through which few bits most matrices of the tuned side went: `tuned` as few distinct values
    in a row show, `format` where a side is stored in 8 bits; None where nothing shows any.
    """
    inside = record.inside_layers
    of_base = has_few_values(record, "base")  # whose values the tuned side may have
    if record.recognised.zeroed is None and not of_base and has_few_values(record, "tuned"):
        return "tuned"
    return "format" if inside.in_8_bits and 2 * inside.in_8_bits > inside.matrices else None


def has_few_values(record: PairRecord, side: str) -> bool:
    """Whether most matrices of a side have few distinct values in a row."""
    few, judged = few_of(record, side)
    return few > 0 and judged < 2 * few


def few_of(record: PairRecord, side: str) -> tuple[int, int]:
    """How many matrices of a side have few distinct values in a row, of how many."""
    inside = record.inside_layers
    return int(inside[f"levels_{side}_few"] or 0), int(inside[f"levels_{side}_judged"] or 0)
