"""`vlm bench`: speed, each figure beside the limit of the machine and beside its peers."""

import sys

import click

from vlm.commands.options import json_option
from vlm.commands.terminal import Command, say, say_json

# Named as the methods of `Bench` that measure them.
_PARTS = ("cold", "text", "long", "large", "pictures", "questions")


@click.command(cls=Command, short_help="Measure speed, beside this machine's limits and its peers.")
@click.option("--quick", is_flag=True, help="A look at small shapes, in about a minute; not for the record.")
@click.option("--only", type=click.Choice(_PARTS), multiple=True, help="A part of it; may be given several times.")
@json_option
def bench(quick: bool, only: tuple[str, ...], as_json: bool):
    """Measure on the CPU how near the model comes to what this machine can do.

    First the limits: bytes read from memory and arithmetic of matrix products a second. Then each operation as a share
    of the limit that binds it, and how many times faster than transformers, with the same random weights, it is.
    Both are run in turn. The shapes are those of the 1B text model, of a vision model of that size and of layers of the
    11B. A full run needs 14 GB of memory and 8 GB of disk for a moment; without transformers its columns stay empty.
    Where llama_cpp is installed, the 1B text model is compared with llama.cpp too.

    \b
    vlm bench --quick
    vlm bench --only text --only pictures
    vlm bench --json > today.json
    """
    from vlm.bench.measure import machine
    from vlm.bench.run import Bench, record

    about = machine() | {"command": " ".join(["vlm", *sys.argv[1:]]), "quick": quick}
    say(f"{about['processor']}, {about['threads']} threads, {about['versions']}\n{about['command']}")
    measured = Bench(quick=quick)
    found = measured.limits
    say(f"\nlimits: {found.bytes_per_s / 1e9:.1f} GB/s read")
    for name, speed in found.operations_per_s.items():
        say(f"        {speed / 1e9:.0f} GFLOP/s in {name}")
    say(f"\n{'':48}{'ms':>10}{'of limit':>10}{'beside the peer':>18}")
    rows = []
    for row in measured.rows(dict.fromkeys(only) or _PARTS):
        share = "" if row.share is None else f"{row.share:.0%}"
        beside = row.peer if row.beside is None else f"{row.beside:.2f} x"
        say(f"{row.name:48}{row.seconds * 1e3:10.1f}{share:>10}{beside:>18}")
        rows.append(record(row))
    if as_json:
        speeds = {"bytes_per_s": found.bytes_per_s, "operations_per_s": found.operations_per_s}
        say_json(about | {"limits": speeds, "rows": rows})
