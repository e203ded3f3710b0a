"""`vlm serve` before it serves: what it refuses, and what its options become."""

import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from vlm.cli import main
from vlm.commands.serve import _engine_options, _settings


def run(*arguments: object):
    return CliRunner().invoke(main, ["serve", *map(str, arguments)])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.com"])
def test_other_machines_are_let_in_with_keys_only(host):
    result = run("--host", host)
    assert result.exit_code == 2
    assert "--api-key-file" in result.stderr
    assert "--no-auth" in result.stderr


def test_keys_and_none_exclude_each_other(tmp_path):
    (tmp_path / "keys").write_text("sk-0123456789abcdef")
    result = run("--no-auth", "--api-key-file", tmp_path / "keys")
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_a_bad_key_file_ends_it_before_anything_starts(tmp_path):
    (tmp_path / "keys").write_text("no key")
    result = run("--port", 0, "--api-key-file", tmp_path / "keys")
    assert result.exit_code == 1
    assert "is no key" in result.stderr
    assert run("--port", 0, "--api-key-file", tmp_path / "none").exit_code == 1


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "address already in use" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", 70000),
        ("--slots", 0),
        ("--max-body-mb", 0),
        ("--timeout", 0),
        ("--quantize", "int2"),
        ("--kv-cache-dtype", "fp8"),
    ],
)
def test_options_out_of_range_are_wrong_usage(option, value):
    assert run(option, value).exit_code == 2


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "prometheus_client", "llguidance"])
def test_a_missing_extra_is_one_sentence(missing):
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from click.testing import CliRunner\nfrom vlm.cli import main\n"
        "result = CliRunner().invoke(main, ['serve'])\nprint(result.exit_code, result.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("1 error: vlm serve needs")
    assert "run: pip install " in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1


def parsed(*arguments: object) -> dict:
    command = main.commands["serve"]
    options = command.make_context("serve", [str(argument) for argument in arguments]).params
    return {name: value for name, value in options.items() if name != "as_json"}


def test_every_option_arrives(tmp_path):
    options = parsed(
        *("--model", "folder", "--device", "cpu", "--dtype", "float32", "--reference", "transformers"),
        *("--slots", 3, "--max-queue", 4, "--max-new-tokens", 5, "--timeout", 6, "--allow-urls"),
        *("--kv-cache-dtype", "int8", "--views", 2, "--all-patches"),
        *("--max-images", 7, "--max-body-mb", 8, "--served-model-name", "a", "--served-model-name", "b"),
    )
    engine, settings = _engine_options(options), _settings(options)
    assert (engine.source, engine.device, engine.dtype, engine.reference) == (
        "folder",
        "cpu",
        "float32",
        "transformers",
    )
    assert (engine.num_slots, engine.max_queue, engine.max_new_tokens, engine.timeout_s) == (3, 4, 5, 6.0)
    assert engine.allow_urls
    assert (engine.kv_cache_dtype, engine.num_views, engine.thin) == ("int8", 2, False)
    assert settings.allow_urls
    assert (settings.max_images, settings.max_body_bytes, settings.names) == (7, 8 * 2**20, ("a", "b"))
    assert settings.check_host
    assert not _settings(parsed("--no-auth")).check_host
    keyed = _settings(parsed("--api-key-file", tmp_path / "keys"))
    assert (keyed.check_host, keyed.api_key_file) == (False, tmp_path / "keys")


def test_images_are_not_fetched_by_default():
    options = parsed()
    assert not _settings(options).allow_urls
    assert not _engine_options(options).allow_urls
