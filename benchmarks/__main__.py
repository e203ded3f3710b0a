"""Every benchmark in turn: `make bench`. Each prints its own table and can be run alone, the first as `vlm bench`."""

import argparse
import subprocess
import sys

BENCHMARKS = ("parity", "attention_memory", "load_memory")


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    failed = []
    for name, command in (("speed", ["vlm", "bench"]), *((name, [f"benchmarks.{name}"]) for name in BENCHMARKS)):
        print(f"\n== {name} ==\n", flush=True)
        if subprocess.run([sys.executable, "-m", *command]).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
