"""`python -m eval` is the `vlm-eval` command."""

from eval.cli import main

if __name__ == "__main__":
    main(prog_name="vlm-eval")
