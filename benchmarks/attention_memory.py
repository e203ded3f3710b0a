"""Memory of attention over longer and longer texts: a score matrix grows with the square, flash attention linearly.

    python -m benchmarks.attention_memory [--lengths 1024 2048 4096 8192]

Each figure is the peak of a fresh process above what it held before the call, for 4 query heads over 2 key/value heads
of width 64 in float32, causal.
"""

import argparse
import json
import subprocess
import sys

from vlm.machine import peak_bytes, processor

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 64
KINDS = {
    "naive": "score matrix",
    "blockwise": "ours, readable",
    "attend": "ours, torch's kernel",
}


def measure(kind: str, length: int) -> int:
    """Return the peak bytes of one call in this process above what was held before it."""
    import torch

    from vlm.attention import attend, blockwise_attention

    torch.manual_seed(0)
    q = torch.randn(1, NUM_HEADS, length, HEAD_DIM)
    k, v = (torch.randn(1, NUM_KV_HEADS, length, HEAD_DIM) for _ in range(2))
    functions = {
        "naive": naive_attention,
        "blockwise": lambda q, k, v: blockwise_attention(q, k, v, causal=True),
        "attend": lambda q, k, v: attend(q, k, v, causal=True),
    }
    small = (x[:, :, :64] for x in (q, k, v))
    functions[kind](*small)
    before = peak_bytes()
    functions[kind](q, k, v)
    return peak_bytes() - before


def naive_attention(q, k, v):
    """Attention by the formula: every score at once, key/value heads repeated."""
    import torch

    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--child", nargs=2, metavar=("KIND", "LENGTH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(measure(arguments.child[0], int(arguments.child[1])))
        return
    print(f"peak memory of attention in MB, {processor()}, float32\n")
    print(f"{'length':>8}" + "".join(f"{title:>22}" for title in KINDS.values()))
    rows = []
    for length in arguments.lengths:
        row = {"length": length}
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.attention_memory", "--child", kind, str(length)]
            row[kind] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        rows.append(row)
        print(f"{length:>8}" + "".join(f"{row[kind] / 1e6:>22.1f}" for kind in KINDS), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
