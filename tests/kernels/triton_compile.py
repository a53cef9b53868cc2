"""Compiles the kernels of some records for an H100, which takes no GPU, and prints how many there were.

`python triton_compile.py NAME...`; TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fenchel import divergence
from fenchel.kernels import triton as kernels

TYPES = {
    "n": "i32",
    "k": "i32",
    "scale": "fp32",
    "smoothing": "fp32",
    **dict.fromkeys(("x", "student", "teacher", "out"), "*bf16"),
    **dict.fromkeys(("target", "indices"), "*i64"),
    "listed": "*i32",
}
SOLVE = [
    {"Q": False, "HARD": True, "SMOOTH": True, "STORE": True},
    {"Q": True, "HARD": True, "SMOOTH": False, "STORE": False},
    {"Q": True, "HARD": False, "SMOOTH": False, "STORE": True},
]
GRADIENT = [
    {"Q": True, "GRAD_P": True, "GRAD_VALUE": True, "GRAD_THRESHOLD": True},
    {"Q": False, "GRAD_P": False, "GRAD_VALUE": True, "GRAD_THRESHOLD": False},
    {"Q": False, "GRAD_P": False, "GRAD_VALUE": False, "GRAD_THRESHOLD": True},
]
LENGTHS = (1, 4096, 131072)  # Triton makes a constant of an argument that is 1


def compile_one(function: Any, n: int, options: dict[str, Any]) -> None:
    """One kernel, with the arguments that a call has for contiguous rows of n classes."""
    launch = {name: options.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    if n == 1:
        options |= {"n": 1}
    signature, known, divisible = {}, {}, {}
    for i, name in enumerate(function.arg_names):
        if name in options:
            signature[name], known[(i,)] = "constexpr", options[name]
            continue
        signature[name] = TYPES.get(name, "i64" if name.endswith("stride") else "*fp32")
        if signature[name].startswith("*") or (n > 1 and (name == "n" or name.endswith("stride"))):
            divisible[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=known, attrs=divisible)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)


def compile_all(name: str) -> int:
    record = divergence(name)
    module, pairs = kernels._kernels(record), kernels._kernels(record, True)
    made = 0
    for n in LENGTHS:
        for flags in SOLVE:
            compile_one(module.solve_rows, n, kernels._solver_shape(n, record) | flags)
        for flags in GRADIENT:
            compile_one(module.differentiate_rows, n, kernels._shape(n) | flags)
        compile_one(pairs.distil_rows, n, kernels._shape(n) | {"STORE": True})
        compile_one(pairs.distil_buckets, n, kernels._shape(n) | {"STORE": True, "SLOTS": 64})
        made += len(SOLVE) + len(GRADIENT) + 2
    return made


if __name__ == "__main__":
    print(sum(map(compile_all, sys.argv[1:])))
