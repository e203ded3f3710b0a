"""How the page is served: in a way that is safe behind a proxy on the internet. Needs the extra `demo`."""

from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from vlm.demo.guard import MAX_FILE_BYTES, Guard
from vlm.demo.theme import CSS, THEME, WORDS
from vlm.loopback import is_loopback

MAX_WAITING = 32
"""Calls that wait for the model; one more is told so at once."""


def launch(blocks: gr.Blocks, folder: Path, *, host: str, port: int) -> None:
    """Serve `blocks` until the process is asked to end; `folder` is where uploads and what is made for the page lie.

    On a loopback `host` only requests to localhost are answered: a proxy before it sends `Host: localhost`, and the
    name that it was asked by as `X-Forwarded-Host`. Rates of requests are for the proxy to bound: Gradio has nothing
    for that. Nor has it for the time of a call, which runs to its end even when nobody ever listened; what bounds it is
    the number of pictures and the length of an answer.
    """
    # What Gradio has as defaults stands here too where safety rests on it.
    blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    guarding = {"folder": folder, "functions": frozenset(blocks.fns), "check_host": is_loopback(host)}
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        strict_cors=True,
        show_error=False,
        max_file_size=MAX_FILE_BYTES,
        allowed_paths=[],
        state_session_capacity=256,
        app_kwargs={"middleware": [Middleware(Guard, **guarding)]},
        theme=THEME,
        css=CSS,
        i18n=WORDS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        quiet=True,
    )
