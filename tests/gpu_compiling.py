"""Compiles the kernels of a decode step as Triton does on a GPU, without one: python -m tests.gpu_compiling."""

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vlm.gpu import kernels

WEIGHTS = {16: "*bf16", 8: "*i8", 4: "*i32"}


def compiled(kernel, arch: int, types: dict, constants: dict, num_warps: int = 4):
    """Return `kernel` compiled; what `types` leaves out is an int, what it gives as None is left out by the caller."""
    signature, fixed = {}, {}
    for index, name in enumerate(kernel.arg_names):
        is_fixed = name in constants or types.get(name, "") is None
        signature[name] = "constexpr" if is_fixed else types.get(name, "i32")
        if is_fixed:
            fixed[index,] = constants.get(name)
    source = ASTSource(kernel, signature, fixed)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": num_warps})


def all_kernels(arch: int) -> None:
    for bits, has_zeros in ((16, False), (8, False), (4, False), (4, True)):
        scales, zeros = None if bits == 16 else "*bf16", "*bf16" if has_zeros else None
        for gated, adds in ((False, False), (True, False), (False, True)):
            types = dict.fromkeys(("x", "norm", "residual", "gate", "out"), "*bf16") | {"eps": "fp32"}
            types |= {"norm": None} if adds else {"residual": None, "gate": None}
            num_weights = 1 if adds else 2 if gated else 3
            for place in range(3):
                parts = (WEIGHTS[bits], scales, zeros) if place < num_weights else (None, None, None)
                types |= dict(zip((f"w{place}", f"s{place}", f"z{place}"), parts, strict=True))
            constants = {"BITS": bits, "GROUP": 128, "COLS": 4096, "GATED": gated, "ROWS_EACH": 4, "COLS_EACH": 1024}
            compiled(kernels.product_of_one_row, arch, types, constants)
        if bits < 16:
            types = dict.fromkeys(("x", "out", "scales"), "*bf16") | {
                "w": "*u8" if bits == 4 else "*i8",
                "zeros": zeros,
            }
            constants = {"BITS": bits, "GROUP": 128, "COLS": 4096, "X_EACH": 16, "ROWS_EACH": 32, "COLS_EACH": 128}
            compiled(kernels.product_of_rows, arch, types, constants)
    for kept, scales in (("*bf16", None), ("*i8", "*bf16")):
        types = {"heads": "*bf16", "cos": "*fp32", "sin": "*fp32", "position": "*i64", "queries": "*bf16"}
        types |= {"keys": kept, "values": kept, "key_scales": scales, "value_scales": scales}
        compiled(kernels.rotate_and_keep, arch, types, {"NUM_QUERIES": 32, "NUM_KEYS": 8, "WIDTH": 128}, num_warps=1)
        for mask, norm in itertools.product((None, "*i1"), (None, "*bf16")):
            types |= {"mask": mask, "norm": norm, "eps": "fp32", "softmax_scale": "fp32"}
            types |= dict.fromkeys(("sums", "tops", "totals"), "*fp32")
            constants = {"REPEATS": 4, "QUERIES_EACH": 16, "WIDTH": 128, "PART": 256, "KEYS_EACH": 64}
            compiled(kernels.attend_in_parts, arch, types, constants)
    types = dict.fromkeys(("sums", "tops", "totals"), "*fp32") | {"out": "*bf16"}
    compiled(kernels.join_parts, arch, types, {"PARTS": 128, "WIDTH": 128})


if __name__ == "__main__":
    # Ampere, Hopper.
    for arch in (80, 90):
        all_kernels(arch)
    print("compiled")
