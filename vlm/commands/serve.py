"""`vlm serve`: the model behind HTTP, in OpenAI's and in Ollama's form."""

import importlib.util
import signal
import socket
import sys
from pathlib import Path

import click

from vlm.commands.options import FiniteRange, json_option, kv_cache_dtype_option, low_memory_option, model_options
from vlm.commands.terminal import Command, say, say_json
from vlm.errors import VLMError
from vlm.packages import missing

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
_MEGABYTE = 2**20


_CLIENT_OPTIONS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all."),
    click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one."),
    click.option(
        "--served-model-name",
        "names",
        multiple=True,
        metavar="NAME",
        help="What clients call the model; may be given again. [default: its folder's name]",
    ),
    click.option(
        "--api-key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="A key a line, # for comments. Read again when it changes.",
    ),
    click.option("--no-auth", is_flag=True, help="Listen beyond this machine without keys."),
    click.option("--allow-urls", is_flag=True, help="Fetch images by http(s), from the public internet alone."),
)
_LIMIT_OPTIONS = (
    click.option(
        "--slots", type=click.IntRange(1), default=8, show_default=True, help="Most requests answered together."
    ),
    click.option(
        "--max-queue",
        type=click.IntRange(0),
        default=32,
        show_default=True,
        help="Most requests that may wait; others get 429.",
    ),
    click.option(
        "--max-new-tokens", type=click.IntRange(1), help="Most tokens of a reply. [default: what the context leaves]"
    ),
    click.option(
        "--max-images", type=click.IntRange(1), default=16, show_default=True, help="Most images in one request."
    ),
    click.option(
        "--max-body-mb", type=click.IntRange(1), default=32, show_default=True, help="Largest request; then 413."
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=FiniteRange(1),
        default=300.0,
        show_default=True,
        help="Seconds a request may take, waiting too; then 504.",
    ),
)


def _serving_options(command):
    """Add the options that say who may ask, and how much."""
    for option in reversed((*_CLIENT_OPTIONS, *_LIMIT_OPTIONS)):
        command = option(command)
    return command


@click.command(cls=Command, short_help="Answer over HTTP, as OpenAI's and Ollama's servers do.")
@model_options
@kv_cache_dtype_option
@low_memory_option
@_serving_options
@json_option
def serve(as_json: bool, **options):
    """Answer over HTTP. OpenAI's and Ollama's clients work with it as they are.

    \b
    vlm serve
    vlm serve --model ./Llama-3.2-11B-Vision-Instruct --served-model-name llama3.2-vision
    vlm serve --host 0.0.0.0 --api-key-file keys.txt
    vlm serve --port 0 --json

    \b
    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
      -d '{"messages": [{"role": "user", "content": "Hello"}]}'

    It listens at once; GET /ready says when the model is loaded. Beyond this machine it listens only with keys, or
    with --no-auth behind something that asks for them. SIGTERM lets running requests end. Each request leaves one line
    of JSON on standard error. With --json standard output holds {"url": ...}.
    """
    _check_installed()
    from vlm.serving.app import create_app
    from vlm.serving.engine import Engine
    from vlm.serving.http.json_lines import log_to
    from vlm.serving.http.server import HTTPServer

    _check_keys(options)
    settings = _settings(options)
    log_to(sys.stderr)
    with _listen(options["host"], options["port"]) as listener:
        engine = Engine(_engine_options(options))
        server = HTTPServer(create_app(engine, settings), engine, settings)
        _announce(listener, settings, as_json)
        server.run(sockets=[listener])
    if engine.failure is not None:
        raise VLMError(engine.failure.code, engine.failure.message)
    if server.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt


def _check_installed() -> None:
    if absent := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise missing("vlm serve", *absent)


def _check_keys(options: dict) -> None:
    from vlm.loopback import is_loopback

    if options["no_auth"] and options["api_key_file"] is not None:
        raise click.UsageError("--no-auth and --api-key-file exclude each other; leave one out")
    if not is_loopback(options["host"]) and options["api_key_file"] is None and not options["no_auth"]:
        raise click.UsageError(
            f"--host {options['host']:.60} lets other machines ask, and there are no keys; give --api-key-file, or "
            "--no-auth where something in front asks for them"
        )


def _settings(options: dict):
    from vlm.serving.settings import ServerSettings

    keys, is_open = options["api_key_file"], options["no_auth"]
    return ServerSettings(
        names=options["names"],
        api_key_file=keys,
        check_host=keys is None and not is_open,
        allow_urls=options["allow_urls"],
        max_images=options["max_images"],
        max_body_bytes=options["max_body_mb"] * _MEGABYTE,
    )


def _engine_options(options: dict):
    from vlm.serving.settings import EngineOptions

    names = ("device", "dtype", "quantize", "kv_cache_dtype", "reference", "allow_urls", "low_memory", "adapters")
    names += ("num_views", "thin", "max_queue", "timeout_s", "max_new_tokens")
    named = {name: options[name] for name in names}
    return EngineOptions(source=options["model"], num_slots=options["slots"], **named)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises: VLMError."""
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or "it cannot be used").lower()
        raise VLMError(
            "invalid_request", f"cannot listen on {host:.60}, port {port}: {reason:.60}; give another --host or --port"
        ) from None


def _announce(listener: socket.socket, settings, as_json: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    keys = "clients need a key" if settings.api_key_file else "no keys are asked for"
    say(f"listening on {url}; {keys}; GET {url}/ready says when the model is loaded")
    if as_json:
        say_json({"url": url})
