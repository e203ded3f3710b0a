"""What `vlm serve` gives 1, 8 and 32 clients at once, beside one request at a time, and what a JSON schema costs.

    python -m benchmarks.serving [--requests 64] [--rounds 3] [--tokens 32] [--model FOLDER]

Without --model it is one of the shipped model's shape with random weights, for speed does not ask what weights mean,
and the shipped one has said all after a few tokens. Requests are about the example charts, over HTTP, a picture in each
as a data: URL; all pictures were seen before. Replies are sampled hot with a seed a request, so that each is of exactly
`--tokens` tokens (requests whose reply ends before are left out) and the same every time: how many are equal to
`VLM.chat`'s is told. "One at a time" is `VLM.chat` in this process, without HTTP. Each round measures everything once;
ratios are taken within a round, and the median of the rounds is told. /health is asked 50 times a second by another
process while 32 clients are served; its slowest hundredth is limited to 100 ms, the cost of a schema to 5 %. The last
line is JSON.
"""

import argparse
import base64
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# As the server has it for its model.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import httpx
import torch

from vlm import VLM, GenerationConfig
from vlm.bench.random_models import random_model
from vlm.machine import hardware

CHARTS = sorted((Path(__file__).parent.parent / "examples").glob("*.png"))
CLIENTS = (1, 8, 32)
TEMPERATURE = 2.0
# Longer than any reply here may be.
FORM = {"type": "array", "items": {"type": "number"}, "minItems": 1000}
SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": FORM}}}
HEALTH_LIMIT_S, SCHEMA_LIMIT = 0.1, 0.05


@contextlib.contextmanager
def server(model: str) -> Iterator[str]:
    """Run `vlm serve` and give its address once the model is loaded."""
    options = ["--port", "0", "--json", "--slots", str(max(CLIENTS)), "--model", model]
    command = [sys.executable, "-m", "vlm", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            process.stdout.readline()
            url = json.loads(process.stdout.readline())["url"]
            while httpx.get(f"{url}/ready").status_code != 200:
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def request(number: int, num_tokens: int) -> dict:
    """Return the body of a request of its own."""
    url = "data:image/png;base64," + base64.b64encode(CHARTS[number % len(CHARTS)].read_bytes()).decode()
    text = {"type": "text", "text": f"What is the value of bar {number}?"}
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}]
    return {"messages": messages, "max_tokens": num_tokens, "temperature": TEMPERATURE, "seed": number}


def served(url: str, bodies: list[dict], num_clients: int, **more) -> tuple[float, list[dict]]:
    """Return the seconds that `num_clients` at once take for `bodies`, and the choices they got."""
    with httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=num_clients)) as client:

        def ask(body: dict) -> dict:
            answer = client.post("/v1/chat/completions", json=body | more)
            answer.raise_for_status()
            return answer.json()["choices"][0]

        with ThreadPoolExecutor(num_clients) as threads:
            begun = time.perf_counter()
            choices = [*threads.map(ask, bodies)]
            return time.perf_counter() - begun, choices


def alone(vlm: VLM, bodies: list[dict]) -> tuple[float, list[str]]:
    """Return the seconds for `bodies` one after the other in this process, and the replies."""
    configs = [
        GenerationConfig(max_new_tokens=body["max_tokens"], temperature=TEMPERATURE, seed=body["seed"])
        for body in bodies
    ]
    begun = time.perf_counter()
    texts = [vlm.chat(body["messages"], config=config).text for body, config in zip(bodies, configs, strict=True)]
    return time.perf_counter() - begun, texts


def poll(url: str, started, stop, times) -> None:
    """Say `started`, ask /health until `stop` is set, and put into `times` how long each answer took."""
    found = []
    with httpx.Client(base_url=url, timeout=60) as client:
        client.get("/health")
        started.set()
        while not stop.wait(0.02):
            begun = time.perf_counter()
            client.get("/health").raise_for_status()
            found.append(time.perf_counter() - begun)
    times.put(found)


@contextlib.contextmanager
def polled(url: str) -> Iterator[list[float]]:
    """Ask /health from another process while a block runs; the list is filled at its end."""
    spawn, found = multiprocessing.get_context("spawn"), []
    started, stop, times = spawn.Event(), spawn.Event(), spawn.Queue()
    process = spawn.Process(target=poll, args=(url, started, stop, times))
    process.start()
    started.wait()
    yield found
    stop.set()
    found += times.get()
    process.join()


def measure(url: str, vlm: VLM, bodies: list[dict], num_rounds: int) -> dict:
    """Return the figures."""
    rates = {name: [] for name in ("alone", *CLIENTS, "schema")}
    health, same = [], 0
    num_tokens = len(bodies) * bodies[0]["max_tokens"]
    for _ in range(num_rounds):
        alone_s, texts = alone(vlm, bodies)
        rates["alone"].append(num_tokens / alone_s)
        for num_clients in CLIENTS:
            with polled(url) if num_clients == max(CLIENTS) else contextlib.nullcontext([]) as times:
                seconds, choices = served(url, bodies, num_clients)
            health += times
            rates[num_clients].append(num_tokens / seconds)
            same += sum(choice["message"]["content"] == text for choice, text in zip(choices, texts, strict=True))
        rates["schema"].append(num_tokens / served(url, bodies, max(CLIENTS), **SCHEMA)[0])

    def ratio(name: str | int, other: str | int) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))

    return {
        "same_replies": same / (num_rounds * len(CLIENTS) * len(bodies)),
        "tokens_per_s": {str(name): statistics.median(values) for name, values in rates.items()},
        "ratio_to_alone": {str(name): ratio(name, "alone") for name in CLIENTS},
        "schema_cost": 1 - ratio("schema", max(CLIENTS)),
        "health_polls": len(health),
        "health_p99_s": sorted(health)[int(len(health) * 0.99)],
    }


def show(figures: dict) -> None:
    print(f"    one at a time, VLM.chat  {figures['tokens_per_s']['alone']:8.1f} tokens a second")
    for name, ratio in figures["ratio_to_alone"].items():
        print(f"    {name:>2} clients over HTTP     {figures['tokens_per_s'][name]:8.1f}  ratio {ratio:5.2f}")
    print(f"    the same with a schema   {figures['tokens_per_s']['schema']:8.1f}  ", end="")
    print(f"{figures['schema_cost']:.1%} slower (limit {SCHEMA_LIMIT:.0%})")
    print(
        f"    /health meanwhile        p99 {1000 * figures['health_p99_s']:.0f} ms of {figures['health_polls']} ",
        end="",
    )
    print(f"(limit {1000 * HEALTH_LIMIT_S:.0f} ms); {figures['same_replies']:.1%} of the replies are VLM.chat's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="of each reply")
    parser.add_argument("--model", help="a folder; random weights where none is given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model is None:
            shipped = VLM.from_pretrained()
            VLM(random_model(shipped.model.config), shipped.tokenizer).save_pretrained(folder)
        run(arguments, arguments.model or folder)


def run(arguments: argparse.Namespace, model: str) -> None:
    """Measure `model` and print the figures."""
    vlm = VLM.from_pretrained(model)
    about = {"device": hardware(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    print(*(f"{name} {value}" for name, value in (about | versions).items()), sep=", ")
    with server(model) as url:
        bodies = [request(number, arguments.tokens) for number in range(2 * arguments.requests)]
        # Warms everything up, too: the schema is compiled, the pictures are encoded on both sides.
        _, choices = served(url, bodies, 8)
        full = [body for body, choice in zip(bodies, choices, strict=True) if choice["finish_reason"] == "length"]
        bodies = full[: arguments.requests]
        alone(vlm, bodies[: len(CHARTS)])
        served(url, bodies[:2], 1, **SCHEMA)
        num = {"requests": len(bodies), "rounds": arguments.rounds, "tokens": arguments.tokens}
        print(f"{num['requests']} requests about {len(CHARTS)} charts, ", end="")
        print(f"{num['tokens']} tokens each, {num['rounds']} rounds")
        figures = measure(url, vlm, bodies, arguments.rounds)
    show(figures)
    print(json.dumps(num | figures | about | versions))


if __name__ == "__main__":
    main()
