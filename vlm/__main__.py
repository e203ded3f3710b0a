"""`python -m vlm` is the `vlm` command."""

from vlm.cli import main

if __name__ == "__main__":
    main(prog_name="vlm")
