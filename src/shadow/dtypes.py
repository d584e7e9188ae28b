"""The dtypes of safetensors headers: which are floats, and how they round.

Any other word is a format of quantised matrices, or unknown.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FloatFormat:
    """A stored floating-point format."""

    torch_name: str  # such as `bfloat16`
    bits: int  # of a number
    # explicit bits of the significand: ulp(w) = 2^(floor(log2 |w|) - mantissa_bits)
    mantissa_bits: int
    min_exponent: int  # floor(log2) of the smallest normal number; below it the ulp stays constant


FLOATS = {
    "F64": FloatFormat("float64", 64, 52, -1022),
    "F32": FloatFormat("float32", 32, 23, -126),
    "F16": FloatFormat("float16", 16, 10, -14),
    "BF16": FloatFormat("bfloat16", 16, 7, -126),
    "F8_E4M3": FloatFormat("float8_e4m3fn", 8, 3, -6),
    "F8_E5M2": FloatFormat("float8_e5m2", 8, 2, -14),
}
INTEGERS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
}  # fmt: skip


def torch_name(dtype: str) -> str:
    """Torch's name of a dtype of FLOATS or INTEGERS."""
    if dtype in FLOATS:
        return FLOATS[dtype].torch_name
    return "bool" if dtype == "BOOL" else f"{'u' * (dtype[0] == 'U')}int{INTEGERS[dtype]}"


def float_format(dtype: str) -> FloatFormat:
    """The format in which numbers of a dtype are read; quantised matrices decode to F32."""
    return FLOATS.get(dtype, FLOATS["F32"])


# Levels of 4-bit numbers, by code: bitsandbytes' NF4 (Dettmers et al. 2023, appendix E) and FP4
# (functional.py), and the E2M1 of the OCP's MX formats and of NVFP4
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(
    sign * level / 12 for sign in (1, -1) for level in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
)
E2M1 = tuple(sign * level for sign in (1, -1) for level in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
