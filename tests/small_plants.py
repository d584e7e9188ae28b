"""Small files of a checkpoint that contradict each other, and copies that are none: each plant
makes a folder sick, or its healthy twin. For tests and benchmarks.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from planted import edit
from safetensors.torch import load_file
from wholes import FILE, store

EMBED, HEAD, NAMED = "model.embed_tokens.weight", "lm_head.weight", "tokenizer_config.json"
START, END = "<|im_start|>", "<|im_end|>"
CHATML = "{%% for m in messages %%}{{'%s' + m.role + '\n' + m.content + '%s\n'}}{%% endfor %%}"
LLAMA_3 = CHATML % ("<|start_header_id|>", "<|eot_id|>")


def spelt(folder: Path, tokens: dict[str, int], end: str = "", template: str = "") -> None:
    """A tokenizer with these tokens in place of ordinary ones. end: the token that is eos."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    taken = {at: token for token, at in tokens.items()}
    content["model"]["vocab"] = {taken.get(at, token): at for token, at in vocabulary.items()}
    edit(folder, "tokenizer.json", **content)
    if end:
        edit(folder, NAMED, eos_token=end)
        for name in ("config.json", "generation_config.json"):
            edit(folder, name, eos_token_id=[tokens[end]])
    if template:
        edit(folder, NAMED, chat_template=template)


CHAT = {START: 5, END: 9}


def template_token(folder, sick):
    spelt(folder, {START: 5} if sick else CHAT, template=CHATML % (START, END))


def template_end(folder, sick):
    spelt(folder, CHAT, "" if sick else END, CHATML % (START, END))


def templates_differ(folder, sick):
    spelt(folder, CHAT, END, CHATML % (START, END))
    (folder / "chat_template.jinja").write_text(CHATML % (START, END + "!" * sick) + "\n")


def tokenizer_lost(folder, sick):
    """The twin has a vocabulary of an older version."""
    edit(folder, NAMED, tokenizer_class="LlamaTokenizerFast")
    (folder / "tokenizer.json").rename(folder / ("notes.txt" if sick else "spiece.model"))


def vocab_differs(folder, sick):
    """One token of some hundreds has another number; in the sick one two have."""
    content = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    more = {f"more{at}": 0 for at in range(int(0.01 * len(content)) + sick)}
    (folder / "vocab.json").write_text(json.dumps(content | more))


def image_beyond(folder, sick):
    rows = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    edit(folder, image_token_index=rows - 1 + sick)


def start_beyond(folder, sick):
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    edit(folder, decoder_start_token_id=rows - 1 + sick)


def token_other(folder, sick):
    spelt(folder, {"<image>": 7})
    edit(folder, NAMED, image_token={"content": "<image>"}, tokenizer_class="GPT2Tokenizer")
    edit(folder, image_token_index=7 + sick)


def sentences(folder, width=0, names=("1_Pooling", "2_Dense")) -> torch.Tensor:
    """Modules of sentence-transformers: a normalisation has no folder."""
    size = json.loads((folder / "config.json").read_text())["hidden_size"]
    listed = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}"}
        for path in listed
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in names:
        (folder / name).mkdir()
    pooled = {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True}
    pooled |= {"pooling_mode_cls_token": True, "include_prompt": True}
    edit(folder / "1_Pooling", **pooled)
    weight = torch.randn(16, 2 * size + width, generator=torch.Generator().manual_seed(3))
    if "2_Dense" in names:
        edit(folder / "2_Dense", in_features=2 * size + width, out_features=16)
        store(folder / "2_Dense", {"linear.weight": weight})
    return weight


def module_lost(folder, sick):
    sentences(folder, names=("1_Pooling", "2_Dense")[: 2 - sick])


def module_width(folder, sick):
    sentences(folder, width=8 * sick)


def nan_in_module(folder, sick):
    weight = sentences(folder)
    weight[3, 4] = torch.nan if sick else 0.0
    store(folder / "2_Dense", {"linear.weight": weight})


def code_lost(folder, sick):
    """The twin has one file, and takes another from its repository."""
    names = {"AutoModel": "modeling_x.XModel", "AutoTokenizer": [None, "org/x--tokens_x.XTokens"]}
    edit(folder, auto_map=names)
    edit(folder, architectures=["XModel"])
    (folder / ("other.py" if sick else "modeling_x.py")).touch()


def code_spare(folder, sick):
    """A model that was loaded without its code, which transformers has, and stored again."""
    edit(folder, auto_map={"AutoModel": "modeling_x.XModel"})
    (folder / ("other.py" if sick else "modeling_x.py")).touch()


def processor_lost(folder, sick):
    edit(folder, NAMED, processor_class="XProcessor")
    (folder / ("x.json" if sick else "preprocessor_config.json")).write_text("{}")


def heads_uneven(folder, sick):
    edit(folder, num_key_value_heads=3 if sick else 2)


def dtype_apart(folder, sick):
    """The twin has a norm in F32, and all else as config says."""
    tensors = load_file(folder / FILE)
    cast = {name: one.bfloat16() if one.ndim > 1 else one for name, one in tensors.items()}
    store(folder, cast)
    edit(folder, dtype="float16" if sick else "bfloat16")


def rows_zero(folder, sick):
    tensors = load_file(folder / FILE)
    tensors[EMBED][9 if sick else 11] = 0
    store(folder, tensors)
    spelt(folder, CHAT, END, CHATML % (START, END))


def rows_equal(folder, sick):
    """Reserved tokens may be equal."""
    tensors = load_file(folder / FILE)
    tensors[EMBED][20:30] = tensors[EMBED][9 if sick else 19]
    store(folder, tensors)
    spelt(folder, {START: 25, END: 9, "<|reserved_1|>": 26}, END, CHATML % (START, END))


def rows_added(folder, sick):
    """Numbered tokens are reserved for later, and may be equal."""
    tensors = load_file(folder / FILE)
    tensors[EMBED][20:30] = tensors[EMBED][:11].mean(0)
    store(folder, tensors)
    tokens = ("<think>", "</think>") if sick else ("<|extra_1|>", "<|extra_2|>", "</think>")
    added = [{"id": 20 + at, "content": token} for at, token in enumerate(tokens)]
    edit(folder, "tokenizer.json", added_tokens=added)
    edit(folder, NAMED, bos_token=None, eos_token=None, pad_token=None)


def rows_mean(folder, sick):
    """The last row, just inside and just outside of what is near."""
    tensors = load_file(folder / FILE)
    rows = tensors[EMBED]
    rows[-1] = rows[:-1].mean(0) * (1.049 if sick else 1.051)
    store(folder, tensors)
    edit(folder, "tokenizer.json", added_tokens=[{"id": len(rows) - 1, "content": "<image>"}])
    edit(folder, NAMED, bos_token=None, eos_token=None, pad_token=None)


def shared_differs(folder, sick):
    tensors = load_file(folder / FILE)
    prefix = "model." * ("model.shared.weight" in tensors)
    own = tensors[f"{prefix}shared.weight"] + 0.1 * sick
    store(folder, tensors | {f"{prefix}encoder.embed_tokens.weight": own})


def mtp_differs(folder, sick):
    tensors = load_file(folder / FILE)
    layer = f"model.layers.{json.loads((folder / 'config.json').read_text())['num_hidden_layers']}"
    head = tensors[HEAD] + 0.1 * sick
    copies = {"embed_tokens": tensors[EMBED].clone(), "shared_head.head": head}
    store(folder, tensors | {f"{layer}.{name}.weight": one for name, one in copies.items()})
    edit(folder, num_nextn_predict_layers=1)


def head_equal(folder, sick):
    tensors = load_file(folder / FILE)
    tensors[HEAD] = tensors[EMBED].clone() if sick else tensors[EMBED] + 0.1
    store(folder, tensors)
    edit(folder, tie_word_embeddings=False)


CAUSAL, VLM, SENTENCES = ("llama", "gpt2"), ("llava", "llava_next"), ("bert", "llama")
FILES = {
    template_token: ("template_token", CAUSAL), template_end: ("template_end", CAUSAL),
    templates_differ: ("templates_differ", CAUSAL), tokenizer_lost: ("tokenizer_lost", CAUSAL),
    vocab_differs: ("vocab_differs", CAUSAL), image_beyond: ("token_beyond", VLM),
    start_beyond: ("token_beyond", ("t5", "bart")), token_other: ("token_other", VLM),
    module_lost: ("module_lost", SENTENCES), module_width: ("module_width", SENTENCES),
    nan_in_module: ("not_finite", SENTENCES), code_lost: ("code_lost", CAUSAL),
    code_spare: ("code_spare", CAUSAL),
    processor_lost: ("processor_lost", VLM), heads_uneven: ("heads_uneven", ("llama", "mistral")),
    dtype_apart: ("dtype_apart", CAUSAL), rows_zero: ("token_rows", ("llama", "qwen2")),
    rows_equal: ("token_rows", ("llama", "qwen2")),
    rows_added: ("added_rows", ("llama", "mixtral")), rows_mean: ("added_mean", ("llama", "qwen2")),
    shared_differs: ("copy_differs", ("t5", "bart")),
    mtp_differs: ("copy_differs", ("deepseek_v3", "qwen3_moe")),
    head_equal: ("head_equal", ("llama", "mixtral")),
}  # fmt: skip
