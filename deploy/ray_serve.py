"""The server on several machines, with Ray Serve: readers, each with a model, and a front that shares requests out.

    serve run deploy.ray_serve:build model=/models/Llama-3.2-11B-Vision-Instruct readers=4 gpus=1

A reader is what `vlm serve` runs, with its routes, limits and keys. Questions about one picture go to one reader, which
has it encoded already; to the next one in that picture's own order if that one is busy. `docs/serving.md` has more.
"""

import asyncio
import hashlib
import random
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.responses import StreamingResponse

from vlm.serving.app import create_app
from vlm.serving.engine import Engine
from vlm.serving.http.json_lines import log_to
from vlm.serving.http.limits import RequestLimits
from vlm.serving.refusal import Refusal
from vlm.serving.settings import EngineOptions, ServerSettings

MAX_WAITING = 64
"""Requests that wait at the front because all readers are busy; one more is told so at once."""

# Base64, in a data: URL or as Ollama has it. Looked for where a run begins, so that it takes one pass.
_PICTURE = re.compile(rb"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{128,}")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
"""Passed on, all of them: a reader asks for the key first, and then says what it does not take."""
_SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")


def picture_key(body: bytes) -> str:
    """Return what tells the first picture of a request from others; empty where there is none."""
    found = _PICTURE.search(body.replace(rb"\/", b"/"))  # some clients write / as \/
    return hashlib.sha256(found[0]).hexdigest() if found else ""


class ByPicture(RequestRouter):
    """Sends requests with the same first argument, a key, to the same replica as long as it has room.

    Each key has its own order of replicas (rendezvous hashing): when one comes or goes, only its pictures move.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        key = pending_request.args[0] if pending_request is not None else ""
        if not key:
            return [[replica] for replica in random.sample(candidate_replicas, len(candidate_replicas))]
        return [[replica] for replica in sorted(candidate_replicas, key=lambda each: _weight(key, each))]


def _weight(key: str, replica: RunningReplica) -> bytes:
    return hashlib.sha256(f"{key} {replica.replica_id.unique_id}".encode()).digest()


@serve.deployment(
    max_queued_requests=MAX_WAITING, request_router_config=RequestRouterConfig(request_router_class=ByPicture)
)
class Reader:
    """One model and its routes."""

    async def __init__(self, options: EngineOptions, settings: ServerSettings):
        log_to(sys.stderr)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._engine = Engine(options)
        self._app = create_app(self._engine, settings)
        await self._engine.start()
        while not self._engine.ready:
            self.check_health()
            await asyncio.sleep(0.1)

    def check_health(self) -> None:
        if self._engine.failure is not None:
            raise RuntimeError(self._engine.failure.message)

    async def __call__(self, key: str, scope: dict, body: bytes) -> AsyncIterator[dict]:
        """Yield what the application sends. `key` is for the router. Cancelled when the client goes away."""
        messages: asyncio.Queue = asyncio.Queue()
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict:
            return pending.pop() if pending else await asyncio.Event().wait()

        answering = asyncio.create_task(self._app(scope, receive, messages.put))
        answering.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-reader", self._name.encode())]
                yield message
        finally:
            answering.cancel()


front = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
front.add_middleware(RequestLimits, settings=ServerSettings())


@front.exception_handler(Refusal)
def _answer_refusal(request: Request, refusal: Refusal) -> Response:
    return refusal.response(request.scope)


# `serve.ingress` pickles Front's routes as the class is made: what they use must be defined before it.
async def _bodies(messages) -> AsyncIterator[bytes]:
    try:
        async for message in messages:
            yield message.get("body", b"")
    finally:
        messages.cancel()


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@serve.ingress(front)
class Front:
    """Takes requests in, and passes them on to a reader."""

    def __init__(self, readers: DeploymentHandle):
        self._readers = readers.options(stream=True)

    @front.api_route("/{path:path}", methods=METHODS)
    async def pass_on(self, request: Request) -> Response:
        body = await request.body()
        scope = {name: request.scope[name] for name in _SCOPE}
        messages = self._readers.remote(picture_key(body), scope, body)
        try:
            start = await anext(messages)
        except BackPressureError:
            raise Refusal(
                429, "queue_full", "all readers are busy; try again soon", headers={"retry-after": "1"}
            ) from None
        answer = StreamingResponse(_bodies(messages), start["status"])
        # Ray's HTTP server adds that one, the same, to every answer.
        answer.raw_headers = [header for header in start["headers"] if header[0] != b"x-request-id"]
        return answer


class Options(BaseModel):
    """What `serve run` may be told, as name=value."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    dtype: str = "auto"
    quantize: str | None = None
    readers: int = 2
    gpus: float = 0
    """Of one reader."""
    slots: int = 8
    """Requests that a reader answers together; as many more wait there before the next reader is asked."""
    api_key_file: Path | None = None
    """A path that every machine has."""


def build(options: Options) -> serve.Application:
    """Return the application for `serve run`."""
    engine = EngineOptions(
        source=options.model,
        dtype=options.dtype,
        quantize=options.quantize,
        num_slots=options.slots,
        max_queue=options.slots,
    )
    settings = ServerSettings(api_key_file=options.api_key_file, check_host=options.api_key_file is None)
    readers = Reader.options(
        num_replicas=options.readers,
        max_ongoing_requests=2 * options.slots,
        ray_actor_options={"num_gpus": options.gpus},
    )
    return Front.bind(readers.bind(engine, settings))
