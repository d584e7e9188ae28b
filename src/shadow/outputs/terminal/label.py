"""What the label can say, the bounds behind it and how often it errs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shadow.claims.reference import bases_of, reach
from shadow.outputs.terminal.typeset import fixed

if TYPE_CHECKING:
    from shadow.claims.reference import Calibration


WORDS = {
    "concentrated": "more concentrated than every broad training of the reference",
    "distributed": "less concentrated than every narrow one",
    "mixed": "narrow and broad trainings both have such values, or the figures disagree",
    "indeterminate": "like noise of its own profile: nothing tells it from rounding",
    "not assessable": "a gate failed, or the reference has no trainings of this size or norm",
}
LABEL_RULE = (
    "Concentration decides. Token coverage (embedding_row_participation_ratio) and attention to MLP"
    " (attention_to_mlp), which do not follow from it, may object: the label is mixed where one of"
    " them lies beyond its bound on the other side. The reference has trainings of about the pair's"
    " size and relative norm, with its optimiser (--optimizer) or with any. A label says where a"
    " spectrum lies, not what data caused it: data that are new to the base look like narrow data."
)
BOUNDS = (
    "If no training on n bases passes a bound, one new base in n + 1 passes it by chance. With one"
    " base of a size, the bound promises nothing about another."
)


def label_view(shipped: Calibration) -> RenderableType:
    """`explain label`: the five words, the bounds behind them, and how often they err."""
    words = Table.grid(padding=(0, 2))
    for word, text in WORDS.items():
        words.add_row(Text(word, "bold"), Text(text))
    heads = (
        "short side, optimiser",
        "narrow",
        "broad",
        "bases",
        "concentrated above",
        "distributed below",
    )
    bounds = _figures_table(*heads)
    for trainings in shipped.trainings:
        bound = trainings.bounds["concentration"]
        bounds.add_row(
            f"{trainings.short_side}, {trainings.optimizer or 'not given'}", str(trainings.narrow),
            str(trainings.broad),
            str(bases_of(trainings.short_side, trainings.optimizer)),
            fixed(bound.concentrated, 3), fixed(bound.distributed, 3),
        )  # fmt: skip
    rates = _figures_table("how often it errs", "cases", "bases", "95 %, of bases")
    for rate in shipped.rates:
        rates.add_row(
            rate.what, f"{rate.errors} of {rate.cases}", f"{rate.affected} of {rate.bases}",
            f"{rate.low:.2f} to {rate.high:.2f}",
        )  # fmt: skip
    made = ", ".join(f"{name} {value}" for name, value in shipped.made.items())
    return Group(
        Text.assemble(("label", "bold cyan"), "  what may be said of one pair, gates first"),
        Padding(words, (1, 0, 1, 2)),
        Padding(Text(reach(shipped)), (0, 0, 1, 0)),
        Text(LABEL_RULE, "dim"),
        Text(BOUNDS, "dim"),
        Padding(bounds, (1, 0)),
        rates,
        Padding(
            Text(f"Trainings of shadow lab, in registry/reference: {made}", "dim"), (1, 0, 0, 0)
        ),
    )


def _figures_table(*heads: str) -> Table:
    """A table of text, then numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    return table
