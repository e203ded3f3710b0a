"""The web application: routes around an engine, and the layers that every request goes through before one."""

import contextlib

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from vlm.serving.http.access_log import AccessLog
from vlm.serving.http.json_body import BodyReader
from vlm.serving.http.json_text import json_response
from vlm.serving.http.keys import KeyCheck, KeyFile
from vlm.serving.http.limits import RequestLimits
from vlm.serving.metrics import Metrics
from vlm.serving.ollama.routes import OllamaRoutes
from vlm.serving.openai.routes import OpenAIRoutes
from vlm.serving.refusal import Refusal, internal_error, no_route, wrong_method
from vlm.serving.served_model import RETRY_AFTER_S, ServedModel
from vlm.serving.settings import ServerSettings

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def create_app(engine, settings: ServerSettings) -> ASGIApp:
    """Return the application. It starts `engine` when it is started, and stops it when it ends.

    From the outside in: the log, the limits, the keys, the routes. A request without a key is refused before a byte of
    its body is read.

    Raises: VLMError for an API key file that holds no proper keys.
    """
    keys = None if settings.api_key_file is None else KeyFile(settings.api_key_file)
    metrics, model, bodies = Metrics(engine), ServedModel(engine, settings), BodyReader()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        await engine.start()
        try:
            yield
        finally:
            if not engine.draining:
                await engine.drain(settings.drain_s)

    # No pages about the API: they would be open to all, and load scripts from elsewhere.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(Refusal, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_fault)
    _add_status_routes(app, engine, metrics)
    OpenAIRoutes(engine, settings, model, bodies).add_to(app)
    OllamaRoutes(engine, settings, model, bodies).add_to(app)
    return AccessLog(RequestLimits(KeyCheck(app, keys, check_host=settings.check_host), settings), metrics)


def _add_status_routes(app: FastAPI, engine, metrics: Metrics) -> None:
    async def health() -> Response:
        return json_response({"status": "ok"})

    async def ready() -> Response:
        if engine.ready and not engine.draining:
            return json_response({"status": "ready"})
        code = "draining" if engine.draining else "loading"
        message = "the server is about to stop" if engine.draining else "the model is being loaded; try again soon"
        raise Refusal(503, code, message, headers={"retry-after": str(RETRY_AFTER_S)})

    async def figures() -> Response:
        return Response(metrics.text(), media_type=PROMETHEUS_TEXT)

    for path, endpoint in (("/health", health), ("/ready", ready), ("/metrics", figures)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"])


def _answer_refusal(request: Request, refusal: Refusal) -> Response:
    return refusal.response(request.scope)


def _answer_http(request: Request, error: HTTPException) -> Response:
    """Answer what the router refuses by itself."""
    if error.status_code == 405:
        refusal = wrong_method(request.method, (error.headers or {}).get("Allow", "another"))
    else:
        refusal = no_route(request.method, request.scope["path"])
    return refusal.response(request.scope)


def _answer_nobody(request: Request, error: ClientDisconnect) -> Response:
    request.scope["access"]["left"] = True
    return Response()


def _answer_fault(request: Request, error: Exception) -> Response:
    return internal_error(request.scope["access"]["id"]).response(request.scope)
