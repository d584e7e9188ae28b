"""What lies beside the weights of a planted checkpoint: a tokenizer, Mistral's own files."""

from pathlib import Path

import planted
from safetensors.torch import load_file


def tokenizer(folder: Path, size: int, extra: tuple[str, ...] = ()) -> None:
    """A tokenizer of so many tokens, the last three special, and further ones beyond these."""
    special = ("<bos>", "<eos>", "<pad>", *extra)
    numbers = {token: size - 3 + at for at, token in enumerate(special)}
    added = [{"id": number, "content": token} for token, number in numbers.items()]
    model = {"type": "BPE", "vocab": {f"t{at}": at for at in range(size - 3)}, "merges": []}
    planted.edit(folder, "tokenizer.json", model=model, added_tokens=added)
    names = {f"{token[1:-1]}_token": token for token in special[:3]}
    planted.edit(folder, "tokenizer_config.json", **names)
    ids = {f"{token[1:-1]}_token_id": numbers[token] for token in special[:3]}
    for name in ("config.json", "generation_config.json"):
        planted.edit(folder, name, **ids)


def of_mistral(folder: Path, change: float = 1.0) -> None:
    """The weights under Mistral's names, with rows of q and k in its order."""
    words = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3", "embed_tokens": "tok_embeddings", "lm_head": "output",
    }  # fmt: skip
    found = {}
    for name, one in load_file(folder / "model.safetensors").items():
        own = name.removeprefix("model.")
        for theirs, mistral in words.items():
            own = own.replace(theirs, mistral)
        if ".wq." in own or ".wk." in own:
            heads = 4 if ".wq." in own else 2
            one = one.view(heads, 2, -1, *one.shape[1:]).transpose(1, 2).reshape(one.shape)
        found[own] = one * change
    planted.write(folder, found, name="consolidated.safetensors")
