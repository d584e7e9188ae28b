"""The terms that texts of `shadow` use, each with one meaning: for `shadow explain`, and for
docs/style.md.
"""

from __future__ import annotations

from collections.abc import Mapping

GLOSSARY: Mapping[str, Mapping[str, str]] = {  # sections; "term, other name": meaning, in Markdown
    "Models and files": {
        "base": "the model that the tuned model was trained from; nothing else is called base",
        "tuned": "the model that was trained from the base",
        "delta": "the difference tuned − base, of a matrix or of the whole model",
        "update, change": "what training did to the weights; the delta is what is stored of it",
        "checkpoint": "the files of one model: a folder, or a repository of the Hub at one commit",
        "reference": "what you type for a checkpoint: `./DIR` or `org/name[@revision]`",
        "family": "checkpoints of one lineage under one name, and the pairs of them to audit",
        "stage": "a named checkpoint of a family, such as `base`, `sft`, `instruct`",
        "pair": "two checkpoints that are compared, written `base..sft`",
        "sibling": "one of two models tuned from the same base",
        "target": "what you type for pairs: `FAMILY`, `FAMILY:PAIR`, or a glob",
        "registry": "the files that define families",
        "list": "a file of targets, audited one after another",
        "tensor": "a named array in a checkpoint",
        "matrix": "a tensor, or a part of one, with two dimensions; what is measured",
        "component": (
            "the part of a model a matrix belongs to: language, vision, projector, audio, other"
        ),
        "layer": "the number of a block, from 0; embeddings and the head are outside the layers",
        "module": "the role of a matrix: `attn.q`, `mlp.up`, `embed` and so on, a closed list",
        "expert": "one of several parallel MLPs of a layer, with its own matrices",
        "subject": "which of the three was measured: base, tuned or delta",
        "adapter": "a low-rank update (LoRA) that is stored instead of the tuned weights",
        "task": "what an engine carries out: a pair, or a part of one",
        "engine": "what carries out tasks: this process, or Ray",
        "driver": "the process of the command that hands tasks to an engine",
        "part": "with `--parts`, a stretch of a pair's matrices that is measured by itself",
        "shard": (
            "one of several files of a checkpoint; with `--shard`, one of several parts of a list"
        ),
    },
    "Results": {
        "audit": "the measurement of one pair or several",
        "report": (
            "what an audit of one pair writes: a folder with Parquet files and `summary.json`"
        ),
        "row": "one matrix of one subject, in `matrices.parquet`",
        "column": "a value that every row has; `shadow explain COLUMN` defines it",
        "figure": (
            "one number about a pair, such as a median over matrices; a drawing is a *figure for a"
            " paper*"
        ),
        "summary": "the figures of a pair in words, in the terminal and in `summary.json`",
        "finding": ("a headline and sentences at the top of a summary, made of figures alone"),
        "spread over layers": (
            "how far a figure would move with other layers; it says nothing of other runs (in JSON:"
            " `intervals`)"
        ),
        "interval": (
            "a confidence interval over runs, bases or reports, as of the lab and of correlations"
        ),
        "lineage": "the stages that come from one base, in the order in which they were trained",
        "step": "a pair of a lineage: two stages, of which the second was trained from the first",
        "chain": "steps of a lineage that follow one another",
        "gate": (
            "a condition under which figures can be those of a fine-tune; a pair passes or fails it"
        ),
        "rule": (
            "a condition of yours on a figure (`--fail-on`, `--policy`, `--against`); it is met"
            " or not"
        ),
        "label": (
            "one of five words: concentrated, distributed, mixed, indeterminate, not assessable"
        ),
        "axis": "a figure that a label rests on, and that does not follow from the others",
        "lab": "the experiments with small models that were trained on known data",
        "reference of known trainings": "the results of the lab that labels are compared with",
        "score": "a benchmark result that somebody else measured",
        "skipped": "not measured, for a reason that the report gives",
    },
    "Numbers": {
        "spectrum": "the singular values of a matrix, in descending order",
        "norm": "the Frobenius norm, unless another is named",
        "energy": "the square of the norm: the sum of the squared singular values",
        "relative norm": "the norm of the delta divided by that of the base",
        "effective rank": "exp of the entropy of the singular values (Roy & Vetterli 2007)",
        "stable rank": "the energy divided by the largest squared singular value",
        "participation ratio, PR": (
            "the effective number of directions: 1 / sum q², q the shares of energy; a strong few"
            " and a flat rest give a number in between"
        ),
        "direction": "a singular vector, or a combination of them",
        "leading directions": (
            "the 16 singular vectors of the base matrix with the largest singular values"
        ),
        "equally strong directions": (
            "how coherent a change is: as coherent as one with so many directions of one singular"
            " value (`equivalent_directions`); a measure, not a count"
        ),
        "token coverage": (
            "how many equally changed tokens would have the same sum of squared shares of the"
            " embedding's change (`embedding_row_participation_ratio`)"
        ),
        "rank one": "of a single direction: the most concentrated that a change can be",
        "effective number": (
            "how many equal parts would be as even: of layers the exponential of the entropy of"
            " their shares (3.6 of 4 layers are nearly all), of directions the participation ratio"
        ),
        "null": "the same delta with a random sign for each entry: the same sizes, no structure",
        "profile": (
            "how large the rows and the columns of a matrix are; noise of the same profile has"
            " random signs and the same sizes"
        ),
        "null PR": "the participation ratio of the null",
        "concentration": (
            "how far the PR lies below the null PR: ln(null PR / PR) / ln(null PR); 0 is as the"
            " null, 1 is rank one"
        ),
        "spike": "a singular value above the edge of the null",
        "noise": (
            "what independent entries of the same sizes would have; a change like noise has no"
            " structure that is measured here"
        ),
        "rounding": (
            "the error of storing a weight in a format such as bf16; `floor_ratio` is the delta's"
            " norm over that of the rounding"
        ),
        "residual stream": "the vector that the layers of a transformer read from and write to",
        "overlap": "how far two subspaces of singular vectors agree, from 0 to 1",
        "margin": "the smallest difference that a comparison counts",
    },
}


def terms() -> list[str]:
    """Every term, one by one."""
    return [
        name for section in GLOSSARY.values() for names in section for name in names.split(", ")
    ]


def meaning_of(word: str) -> str | None:
    """What a term of the glossary means; None where it is none. Case does not matter."""
    for section in GLOSSARY.values():
        for names, text in section.items():
            if word.lower() in names.lower().split(", "):
                return text
    return None
