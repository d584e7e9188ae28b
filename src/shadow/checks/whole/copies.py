"""`whole`: copies that files name: rows of tokens in templates, embeddings that a class shares, and
modules in memory that are one or should be.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from shadow.checks.whole.names import are_equal, fetch, is_of_mtp, says_tied
from shadow.checks.whole.part import FAULT, NOTE, FindingRule
from shadow.text import and_list, several

if TYPE_CHECKING:
    from torch import Tensor

    from shadow.checkpoints.opening import Checkpoint
    from shadow.checks.whole.vocabulary import Vocabulary
    from shadow.run.runtime import Runtime
    from shadow.run.scan import Read, Swept

SHARED = re.compile(r"(.*\.)?(?:encoder|decoder)\.embed_tokens\.weight")
LAYER = re.compile(r"(?P<owner>(?:.+?\.)?(?:layers?|h|blocks?|blk)\.[0-9]+)\.(?P<rest>.+)")
MEMORY = "memory"  # the source of a model in memory
MOST = 512  # tokens of a template whose rows are compared
NEAR = 0.05  # how far from the mean of all a new row begins, in norms of the mean; at most 0.02
AT_ONCE = 1 << 13  # rows that are read to sum them
RULES: Mapping[str, FindingRule] = {
    "token_rows": FindingRule(
        FAULT,
        "rows of tokens that the chat template writes are zero or equal: {other}",
        "Such rows were never trained, and the model cannot tell where a turn begins or ends.",
        "Train these rows, or use the template that the model was trained with.",
    ),
    "added_rows": FindingRule(
        NOTE,
        "rows of added tokens are equal: {other}",
        "New rows often begin as one row, such as the mean of all; training moves them apart.",
        "Train these rows if the model is to use their tokens.",
    ),
    "added_mean": FindingRule(
        NOTE,
        "rows of added tokens are the mean of all rows before them, or nearly so: {other}",
        "Programs that add tokens begin their rows so, and training moves them away.",
        "Train these rows if the model is to use their tokens.",
    ),
    "copy_differs": FindingRule(
        FAULT,
        "a copy of {other} with other values",
        "Tools take one or the other, so the model depends on who loads it.",
        "Store the tensor of the last step in both.",
    ),
    "head_equal": FindingRule(
        NOTE,
        "equal to {other}, though config does not tie them",
        "The model has a head of its own that is no different, as if it were tied.",
        "Set `tie_word_embeddings` to true, or restore the head that was trained.",
    ),
    "tie_broken": FindingRule(
        FAULT,
        "config ties it to {other}, but in memory they are two tensors",
        "A training moves them apart, and loaders of the saved model take one or the other.",
        "Call `model.tie_weights()` before training and saving.",
    ),
    "module_twice": FindingRule(
        FAULT,
        "it is the same module as {other}",
        "Both change together, and a saved file has one of them alone.",
        "Copy the module with `copy.deepcopy` where the layers are made.",
    ),
}


# the code of a rule, a tensor or module, and the other one, or the tokens whose rows it is about
Copy = tuple[str, str, str]


def gather_copies(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    tokens: Mapping[str, int],
    added: Mapping[str, int],
    swept: Sequence[Swept],
    runtime: Runtime,
) -> list[Copy]:
    """Find what is a copy, or is none although it should be. tokens: those that templates write.
    added: those that were added to the vocabulary. swept: none where values are not read.
    """
    seen = {tensor.info.name: tensor.extremes for tensor in swept}
    copies = [*_in_memory(checkpoint, vocabulary)]
    for code, name, other in _in_files(checkpoint, vocabulary):
        if {name, other} <= seen.keys():
            # equal sums say that it is worth reading
            is_equal = seen[name] == seen[other] and are_equal(checkpoint, (name, other), runtime)
            if is_equal == (code == "head_equal"):
                copies.append((code, name, other))
    embedding = next(filter(seen.__contains__, vocabulary.embeddings), "")
    numbers = {**tokens, **added}
    if embedding and numbers:
        info = checkpoint.tensors[embedding]
        fetch(checkpoint, [info], runtime)
        table = checkpoint.tensor(info)
        owners = defaultdict[bytes, list[str]](list)
        small = []  # rows whose norm may be that of a mean
        usual = seen[embedding].energy / info.shape[0]
        for token, row in [*numbers.items()][:MOST]:
            is_reserved = token not in tokens and re.search("[0-9]", token)  # for later
            if 0 <= row < info.shape[0] and not is_reserved:
                entries = table.seen(itemgetter(row))[()].float()  # of this row, and no others
                owners[entries.numpy().tobytes()].append(token)
                energy = float(entries.square().sum())
                is_late = 2 * row > info.shape[0]
                if is_late and 0 < energy < usual / 2:
                    small.append((row, token, entries))
        for content, own in owners.items():
            written = [token for token in own if token in tokens]
            if len(written) > 1 or (written and not any(content)):
                copies.append(("token_rows", embedding, and_list(written)))
            elif len(own) > 1 and any(content):
                copies.append(("added_rows", embedding, several(own)))
        if means := _means(table, small):
            copies.append(("added_mean", embedding, several(means)))
    return copies


def _means(table: Read, small: Iterable[tuple[int, str, Tensor]]) -> list[str]:
    """The tokens whose rows are the mean of all rows before them."""
    import torch

    tokens = []
    total = torch.zeros(())
    end = 0
    for row, token, entries in sorted(small, key=itemgetter(0)):
        for begin in range(end, row, AT_ONCE):
            rows = slice(begin, min(row, begin + AT_ONCE))
            part = table.seen(itemgetter(rows))
            total = total + part[()].double().sum(0)
        end = row
        mean = total / row
        if (entries - mean).norm() < NEAR * mean.norm():
            tokens.append(token)
    return tokens


def _in_files(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Iterator[Copy]:
    """Yield tensors that a class, or its training, has as copies of others."""
    config = checkpoint.config
    tensors = checkpoint.tensors
    embedding = next(iter(vocabulary.embeddings), "")
    head = next(iter(vocabulary.heads), "")
    is_shared = config.get("share_encoder_decoder_embeddings") is not False
    for name, info in tensors.items():
        other = ""
        if (shared := SHARED.fullmatch(name)) and is_shared:
            other = f"{shared[1] or ''}shared.weight"
        elif is_of_mtp(name, config) and name.endswith(".embed_tokens.weight"):
            other = embedding
        elif is_of_mtp(name, config) and name.endswith(".shared_head.head.weight"):
            other = head
        if other in tensors and tensors[other].shape == info.shape:
            yield "copy_differs", name, other
    if head and not says_tied(config, default=True):
        yield "head_equal", head, embedding


def _in_memory(checkpoint: Checkpoint, vocabulary: Vocabulary) -> Iterator[Copy]:
    """Yield a head that is no longer its embedding, and layers that are one module."""
    roots = {name: info.alias_of or name for name, info in checkpoint.tensors.items()}
    is_tied = says_tied(checkpoint.config, default=False)
    if vocabulary.heads and is_tied and MEMORY in checkpoint.sources:
        head = vocabulary.heads[0]
        embedding = vocabulary.embeddings[0]
        if roots[head] != roots[embedding]:
            yield "tie_broken", head, embedding
    others = defaultdict[str, set[str]](set)  # by layer, the layers that its tensors are of
    for match in filter(None, map(LAYER.fullmatch, roots)):
        root = roots[match[0]]
        others[match["owner"]].add(root.removesuffix(f".{match['rest']}"))
    for owner, layers in others.items():
        other = min(layers)
        if len(layers) == 1 and other != owner and LAYER.fullmatch(f"{other}.x"):
            yield "module_twice", owner, other
