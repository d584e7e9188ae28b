"""Words of the screens that are neither columns, heads of tables nor terms of the glossary."""

from __future__ import annotations

from collections.abc import Mapping

from shadow.claims.explanations import EXPLANATIONS
from shadow.claims.footprint import GATES
from shadow.places.names import name_rules
from shadow.reasons import REASONS
from shadow.reports.heads import Head
from shadow.telling.structure import TURNED

LABELS = {
    "concentrated": "more concentrated than every broad training of the reference",
    "distributed": "less concentrated than every narrow one",
    "mixed": "narrow and broad trainings both have such values, or the figures disagree",
    "indeterminate": "like noise of its own profile: nothing tells it from rounding",
    "not assessable": "a gate failed, or the reference has no trainings of this size or norm",
}
ALIGNED = Head(
    "the change has more of its energy (follows) or less (avoids) in the base's 16 leading"
    " directions than the sizes of its rows and columns alone would put there, by at least"
    f" {TURNED} of an even share. Otherwise it neither follows nor avoids them",
    "alignment_left",
)
NULL = (
    "the same delta with a random sign for each entry: the sizes of the entries stay, the structure"
    " goes"
)
OF_SCREENS = {
    "null": Head(NULL, "null_participation_ratio"),
    "x null": Head(f"how many times the value of the null; the null is {NULL}"),
    "noise of the same profile": Head(f"the null: {NULL}"),
    "sign-flip null": Head(f"the null: {NULL}", "null_participation_ratio"),
    "reference": Head(
        "trainings of `shadow lab` whose data are known, which the label is compared with. `shadow"
        " explain label` has the bounds that come from them"
    ),
    "gate": Head(
        "a condition under which figures can be those of a fine-tune; `shadow explain gates` lists"
        " them"
    ),
    "inside layers": Head("medians over the matrices of the layers, without embeddings and head"),
    "tokens": Head("rows of the embedding that changed", "embedding_rows_changed"),
    "not alone": Head(
        "the explanation is excluded for the change as a whole, and not for the directions of it"
        " that stand out"
    ),
    "directions": Head(
        "singular vectors of a change, or their effective number", "participation_ratio"
    ),
    "stand out": Head(
        "singular values above the null edge, which noise of the same profile does not reach",
        "spikes",
    ),
    "attention : mlp": Head(
        "energy of the change in attention over that in the MLPs; to be held against the same ratio"
        " of parameters",
        "attention_to_mlp",
    ),
    "vision : language": Head(
        "energy of the change in the vision tower over that in language", "vision_to_language"
    ),
    "projector : language": Head(
        "energy of the change in the projector over that in language", "projector_to_language"
    ),
    "in brackets": Head(
        "spread over layers: how far the figure would move with other layers, not with other runs"
    ),
    "even share": Head(
        "what 16 directions would hold if the energy lay evenly: 16 / rows, or 16 / columns"
    ),
    "follows": ALIGNED,
    "avoids": ALIGNED,
    "neither follows nor avoids": ALIGNED,
    "left out": Head("not compared, or not measured, for the reason that stands beside it"),
    "other explanations": Head(
        "what else may have left these figures, each answered by `no`, `fits` or `cannot be"
        " excluded`; `shadow explain finding` lists them"
    ),
    "nats": Head("the unit of a loss with the natural logarithm: 1 nat is 1.44 bits"),
    "auc": Head(
        "how well a figure tells two groups of trainings apart: the chance that it is larger in one"
        " of the first than in one of the second. 0.5 tells nothing; 0 and 1 separate them all"
    ),
    "cosine": Head(
        "in `shadow lineage`, that of the delta with the delta of the step before: 0 by chance, 1"
        " if both point the same way"
    ),
    "has no vote": Head("shown beside the figures that decide the verdict, and not one of them"),
    "cannot be excluded": Head("these figures neither exclude the explanation nor speak for it"),
    "fits": Head("these figures are as the explanation would have them, which is no proof"),
    "done": Head("the report of the pair is there"),
    "kept": Head(
        "a finished report is there that differs from what was asked for; --overwrite replaces it"
    ),
    "pending": Head("the audit of the pair has not begun"),
    "not judged": Head("the report has no figure that the rule names, or only null values"),
    "failed": Head(
        "of a rule: its condition is true. Of a pair: it could not be audited, and the error"
        " says why"
    ),
    "passed": Head("of a rule: its condition is not true. Of a gate: its condition holds"),
}


def other_words() -> Mapping[str, Head]:
    """By what stands on the screen, in small letters: what it means."""
    module = Head(
        "a module: what role a matrix has in the model, by the name of its tensor", "module"
    )
    explanation = Head(
        "another explanation of the same figures; `shadow explain finding` says how it is answered"
    )
    return {
        **{
            word: Head(f"a label: {text}. `shadow explain label` has the bounds")
            for word, text in LABELS.items()
        },
        **{
            name: Head(f"a reason for which a tensor is not measured: {one.text}")
            for name, one in REASONS.items()
        },
        **{name: Head(f"a gate: it passes when {text}") for name, text in GATES.items()},
        **dict.fromkeys(name_rules().modules, module),
        **dict.fromkeys(EXPLANATIONS.values(), explanation),
        **OF_SCREENS,
    }
