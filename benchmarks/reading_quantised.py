"""How fast are quantised matrices read, beside BF16 ones? Millions of parameters a CPU second.

A matrix of each format is read tile by tile to float32, as an audit reads it the first time: the
bytes of the file (which the system has in memory), their numbers, and the copy into the audit's
buffer. Bytes are random, so that only the layout is that of a model. The best of the rounds counts.
`library`: the decoding of GGUF types by the package `gguf` alone, which takes no file and keeps
nothing. For other formats the libraries want a GPU, or make a model of it; their decoders are ours.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated

import gguf
import numpy as np
import torch
import typer
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Type
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from shadow.checkpoints.opening import open_folder
from shadow.checkpoints.packed_tensors import AT_ONCE
from shadow.spectra.spectrum import Workspace, blocks, read_block, tiles

ROWS, COLS = 2048, 4096
GROUP = 128
TYPES = (
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS", "IQ3_S", "IQ2_XXS", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
)  # fmt: skip
MODULE = "model.layers.0.mlp.up_proj"


def numbers(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Random bits."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng(0).integers(0, 120, count, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def scales(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.rand(*shape).to(dtype)


def gptq(bits: int) -> dict[str, Tensor]:
    return {
        "qweight": numbers(COLS * bits // 32, ROWS, dtype=torch.int32),
        "qzeros": numbers(COLS // GROUP, ROWS * bits // 32, dtype=torch.int32),
        "scales": scales(COLS // GROUP, ROWS),
    }


def nf4() -> dict[str, Tensor]:
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLS]}
    state = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    return {
        "weight": numbers(ROWS * COLS // 2, 1),
        "weight.absmax": scales(ROWS * COLS // 64, dtype=torch.float32),
        "weight.quant_map": torch.rand(16),
        "weight.quant_state.bitsandbytes__nf4": state,
    }


def mlx(bits: int) -> dict[str, Tensor]:
    shape = ROWS, COLS // 64
    words = numbers(ROWS, COLS * bits // 32, dtype=torch.int32).view(torch.uint32)
    return {"weight": words, "scales": scales(*shape), "biases": scales(*shape)}


def fp8(name: str, *of: int) -> dict[str, Tensor]:
    raw = numbers(ROWS, COLS, dtype=torch.float8_e4m3fn)
    return {"weight": raw, name: scales(*of, dtype=torch.float32)}


PACKED = {
    "GPTQ-4": (lambda: gptq(4), {"quant_method": "gptq", "bits": 4}),
    "GPTQ-4, order": (
        lambda: gptq(4) | {"g_idx": torch.randperm(COLS).int() // GROUP},
        {"quant_method": "gptq", "bits": 4},
    ),
    "GPTQ-3": (lambda: gptq(3), {"quant_method": "gptq", "bits": 3}),
    "GPTQ-8": (lambda: gptq(8), {"quant_method": "gptq", "bits": 8}),
    "AWQ-4": (
        lambda: {
            "qweight": numbers(COLS, ROWS // 8, dtype=torch.int32),
            "qzeros": numbers(COLS // GROUP, ROWS // 8, dtype=torch.int32),
            "scales": scales(COLS // GROUP, ROWS),
        },
        {"quant_method": "awq", "bits": 4},
    ),
    "NF4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "LLM.int8()": (
        lambda: {
            "weight": numbers(ROWS, COLS, dtype=torch.int8),
            "SCB": scales(ROWS, dtype=torch.float32),
        },
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ),
    "pack-quantized": (
        lambda: {
            "weight_packed": numbers(ROWS, COLS // 8, dtype=torch.int32),
            "weight_scale": scales(ROWS, COLS // GROUP),
            "weight_shape": torch.tensor([ROWS, COLS]),
        },
        {"quant_method": "compressed-tensors"},
    ),
    "W8A8": (
        lambda: {"weight": numbers(ROWS, COLS, dtype=torch.int8), "weight_scale": scales(ROWS, 1)},
        {"quant_method": "compressed-tensors"},
    ),
    "FP8, rows": (lambda: fp8("weight_scale", ROWS, 1), {"quant_method": "compressed-tensors"}),
    "FP8, blocks": (
        lambda: fp8("weight_scale", ROWS // 128, COLS // 128),
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    "NVFP4": (
        lambda: {
            "weight_packed": numbers(ROWS, COLS // 2),
            "weight_scale": numbers(ROWS, COLS // 16, dtype=torch.float8_e4m3fn),
            "weight_global_scale": torch.ones(1),
        },
        {"quant_method": "compressed-tensors"},
    ),
    "MXFP4": (
        lambda: {
            "weight_packed": numbers(ROWS, COLS // 2),
            "weight_scale": numbers(ROWS, COLS // 32),
        },
        {"quant_method": "compressed-tensors"},
    ),
    "MLX-4": (lambda: mlx(4), {"bits": 4, "group_size": 64}),
    "MLX-6": (lambda: mlx(6), {"bits": 6, "group_size": 64}),
}  # fmt: skip


def written(folder: Path, name: str) -> Path:
    """A checkpoint of one matrix."""
    if name == "BF16":
        made, config = {"weight": torch.randn(ROWS, COLS).bfloat16()}, {}
    elif name in PACKED:
        make, config = PACKED[name]
        made = make()
    else:
        block, size = GGML_QUANT_SIZES[Type[name.removeprefix("GGUF ")]]
        raw = numbers(ROWS, COLS // block * size).numpy()
        path = folder / "a.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=Type[name.removeprefix("GGUF ")])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
    tensors = {f"{MODULE}.{piece}": one.contiguous() for piece, one in made.items()}
    save_file(tensors, folder / "model.safetensors")
    told = {"model_type": "llama", "quantization_config": config} if config else {}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def alone(kind: str, rounds: int) -> float:
    """How fast the package decodes a type, as many blocks at a time as we ask it for."""
    block, size = GGML_QUANT_SIZES[Type[kind]]
    raw = numbers(ROWS * COLS // block, size).numpy()
    decoder, step, best = getattr(quants, kind), AT_ONCE // block, 0.0
    decoder.init_grid()
    for _ in range(rounds):
        began = time.process_time()
        with np.errstate(all="ignore"):
            for first in range(0, len(raw), step):
                decoder.dequantize_blocks(raw[first : first + step])
        best = max(best, ROWS * COLS / 1e6 / (time.process_time() - began))
    return best


def main(
    only: Annotated[list[str] | None, typer.Argument(help="Formats; none: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    torch.set_num_threads(1)
    space, rates = Workspace(), {}
    heads = "format", "library", "tiles", "blocks", "beside BF16"
    table = Table(*heads, title="Mparameters a CPU s")
    for name in ("BF16", *PACKED, *(f"GGUF {kind}" for kind in TYPES)):
        if only and name != "BF16" and not any(word in name for word in only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = open_folder(str(written(Path(folder), name)))
            (info,) = checkpoint.tensors.values()
            for number, cut in enumerate((tiles, blocks)):
                best = 0.0
                for _ in range(rounds):
                    tensor = checkpoint.tensor(info)
                    began = time.process_time()
                    for index, _ in cut(tensor):
                        read_block(tensor, index, "base", torch.float32, space)
                    best = max(best, ROWS * COLS / 1e6 / (time.process_time() - began))
                rates[name, number] = best
        beside = rates[name, 0] / rates["BF16", 0]
        library = f"{alone(name.split()[1], rounds):.0f}" if name.startswith("GGUF") else ""
        ours = (f"{rates[name, number]:.0f}" for number in (0, 1))
        table.add_row(name, library, *ours, f"{beside:.2f}")
    Console(width=80).print(table)


if __name__ == "__main__":
    typer.run(main)
