"""A tiny model of every architecture that transformers has a config and a class for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from companions import tokenizer
from planted import edit

from shadow.checks.whole.names import MTP_KEYS

MOST = 30_000_000  # parameters
LAYERS = r"(num|n)_(hidden_)?layers?|.*num_(hidden_|attention_)?layers|.*_layers|n_layer|.*depth|layers|num_hidden_groups|num_.*_blocks"  # fmt: skip # noqa: E501
TOKEN = r".*_token_(id|index)s?"
# what has an entry a layer, which is made again from the number of layers
BY_LAYER = (
    r".*layer_types|layers_block_type|.*attention_types|mlp_only_layers|per_layer_config"
    r"|_?out_(features|indices)|stage_names|no_rope_layers|moe_layers|.*_layer_ids|kv_shared.*"
    r"|transformers_version|architectures"
)
SIZES = {
    r".*vocab_size": 120, r".*(key_value|kv)_heads|n_head_kv|multi_query_group_num": 2,
    r".*heads?|.*_nhead": 4, r".*head_dim|d_kv|.*head_size|kv_channels": 16,
    r".*hidden_size|d_model|n_embd|.*emb(ed|edding)_(dim|size)|.*embd|dim|.*_dim|d_ff|n_inner"
    r"|.*intermediate_size|ffn_hidden_size|.*feedforward.*|d_inner|.*width": 64,
    r".*max_\w*position.*|n_positions|n_ctx|.*max_seq.*": 128, r".*experts?|.*experts_total": 4,
    r".*num_experts_per_tok(en)?|.*top_?k|moe_k|num_selected_experts": 2,
    r"n_group|topk_group": 1, r".*image_size": 32, r".*patch_size": 8,
}  # fmt: skip
Rule = Callable[[str, int], int]


def changed(value: Any, rule: Rule, key: str = "") -> Any:
    """A config with its whole numbers made smaller, at every depth."""
    if isinstance(value, dict):
        made = {k: changed(v, rule, str(k)) for k, v in value.items()
                if not re.fullmatch(BY_LAYER, str(k))}  # fmt: skip
        for kv in ("num_key_value_heads", "num_kv_heads"):  # some classes need as many as queries
            if kv in made and value[kv] == value.get("num_attention_heads"):
                made[kv] = made["num_attention_heads"]
        return made
    if isinstance(value, list | tuple):
        return [changed(one, rule, key) for one in value]
    if type(value) is not int:
        return value
    if re.fullmatch(TOKEN, key):
        return 0 if key.startswith("pad") else value if value < 60 else 3 + value % 50
    return rule(key, value)


def small(key: str, value: int) -> int:
    return next(
        (min(value, most) for name, most in SIZES.items() if re.fullmatch(name, key)), value
    )


def scaled(key: str, value: int) -> int:
    if "vocab_size" in key or "expert" in key:
        return min(value, 120 if "vocab_size" in key else 4)
    return value // 8 if value >= 128 else value


def shallow(rule: Rule) -> Rule:
    return lambda key, value: min(value, 2) if re.fullmatch(LAYERS, key) else rule(key, value)


def deep(rule: Rule) -> Rule:
    return lambda key, value: value if re.fullmatch(LAYERS, key) else rule(key, value)


def as_is(key: str, value: int) -> int:
    return min(value, 120) if "vocab_size" in key else value


RULES = (shallow(small), deep(small), shallow(scaled), deep(scaled), shallow(as_is))


def pairs() -> Iterator[tuple[str, str]]:
    """Every model type, and the classes that the auto classes have for it."""
    import transformers
    from transformers.models.auto import modeling_auto

    tables = [one for name, one in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    found = {
        (kind, name)
        for table in tables
        for kind, value in table.items()
        for name in ([value] if isinstance(value, str) else value)
        if re.search(r"Model$|For[A-Z]\w+$|LMHead|Backbone$|Encoder$|Decoder$", name)
    }
    return (pair for pair in sorted(found) if hasattr(transformers, pair[1]))


def save(kind: str, name: str, folder: Path, shard: str = "1GB", **more: object) -> None:
    """A tiny model with a tokenizer of its words; matrices that begin at zero have moved. Raises
    what transformers raises for the last of RULES that was tried.
    """
    import transformers

    settings, cls = transformers.CONFIG_MAPPING[kind], getattr(transformers, name)
    for rule in RULES:
        try:
            config = settings.from_dict(changed(settings().to_dict(), rule) | more)
            with torch.device("meta"):
                size = sum(one.numel() for one in cls(config).parameters())
            if size > MOST:
                raise ValueError(f"{size:,} parameters")
            break
        except Exception:
            if rule is RULES[-1]:
                raise
    text = config.get_text_config()
    words = getattr(text, "vocab_size", None)
    words = words if isinstance(words, int) and words > 3 else 0
    if words and not hasattr(config, "feat_extract_norm"):
        for at, token in enumerate(("bos", "eos", "pad")):
            config.__dict__[f"{token}_token_id"] = text.__dict__[f"{token}_token_id"] = (
                words - 3 + at
            )
    for key in MTP_KEYS:  # layers that transformers has no modules for
        for part in (config, text):
            if getattr(part, key, None):
                setattr(part, key, 0)
    torch.manual_seed(0)
    model = cls(config).float()
    with torch.no_grad():
        for one in model.parameters():
            if one.numel() and (one == one.flatten()[0]).all() and one.ndim > 1:
                one += 0.02 * torch.randn(one.shape)
            elif not one.isfinite().all():
                one.copy_(torch.randn(one.shape))
    model.save_pretrained(folder, max_shard_size=shard)
    if words and not hasattr(config, "feat_extract_norm"):
        tokenizer(folder, words)
    else:
        edit(folder)
