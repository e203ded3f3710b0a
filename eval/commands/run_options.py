"""The options of `vlm-eval run`, in groups, as its help shows them."""

import click

from vlm.commands.options import FiniteRange


def _options(*options):
    """Return a decorator that adds `options`, which the help shows in this order."""

    def add(command):
        for option in reversed(options):
            command = option(command)
        return command

    return add


what_is_asked = _options(
    click.option(
        "--data",
        "places",
        metavar="PATH",
        multiple=True,
        required=True,
        help="The folder or file with the data; for several tasks one that holds all, or TASK=PATH for each.",
    ),
    click.option("--out", metavar="DIR", required=True, help="The run's folder; a run that is there is resumed."),
    click.option("--prompt", metavar="PRESET", help="How to ask (see vlm-eval list). [default: the task's own]"),
    click.option("--split", metavar="NAME[,NAME]", help="Part of the data, as validation, or human in ChartQA."),
    click.option("--variant", metavar="NAME", help="Version of the data, as opaque in AI2D."),
    click.option("--limit", type=click.IntRange(1), help="Only the first so many samples of each task."),
    click.option(
        "--samples",
        metavar="ID[,ID]",
        multiple=True,
        help="Only these samples, by the ids in predictions.jsonl; may be given again, as an id with a comma needs.",
    ),
    click.option("--blank-images", is_flag=True, help="Show empty pictures: what is answered without looking."),
    click.option("--max-new-tokens", type=click.IntRange(1), help="Most tokens of a reply. [default: the preset's]"),
    click.option("--temperature", type=FiniteRange(0), default=0.0, show_default=True, help="0 is greedy decoding."),
    click.option(
        "--top-p",
        type=FiniteRange(0, 1),
        default=1.0,
        show_default=True,
        help="Nucleus sampling, above temperature 0.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        help="Seed of sampling. [default: 0, above temperature 0]",
    ),
    click.option(
        "--likelihood",
        type=click.Choice(["options", "letters"]),
        help="Also measure how likely each option, or its letter, is as the reply; scored without any parsing.",
    ),
)
who_answers = _options(
    click.option(
        "--backend",
        type=click.Choice(["local", "openai"]),
        default="local",
        show_default=True,
        help="This project's model in a process of its own, or a server that speaks OpenAI's chat completions.",
    ),
    click.option(
        "--base-url", metavar="URL", help="Of the server, as http://localhost:8000/v1. The key: OPENAI_API_KEY."
    ),
    click.option("--concurrency", type=click.IntRange(1), help="Questions a server is asked at once. [default: 8]"),
    click.option("--batch-size", type=click.IntRange(1), help="Questions computed together. [default: what fits]"),
    click.option(
        "--timeout",
        "timeout_s",
        type=FiniteRange(0, min_open=True),
        default=600.0,
        show_default=True,
        help="Seconds that a sample which hangs may cost; a server is waited for so long, twice at most.",
    ),
    click.option(
        "--max-restarts",
        type=click.IntRange(0),
        help="Times in a row that the model's process is started again without an answer. [default: 3]",
    ),
)
how_it_goes = _options(
    click.option("--shard", metavar="I/N", help="Only the I-th of N parts; score merges them when all are done."),
    click.option(
        "--engine",
        type=click.Choice(["here", "ray"]),
        default="here",
        show_default=True,
        help="In this process, or in shards that Ray runs, on a cluster or on this machine.",
    ),
    click.option("--workers", type=click.IntRange(1), help="Shards that Ray runs. [default: 2]"),
    click.option("--new-run", is_flag=True, help="Start anew; earlier answers are moved into a folder, not deleted."),
    click.option("--retry-errors", is_flag=True, help="Ask again the samples that ended in an error."),
    click.option(
        "--max-errors",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="More samples than these ending in an error make the exit status 1; every other is answered all the same.",
    ),
    click.option("--no-report", is_flag=True, help="Leave report.html out."),
)
