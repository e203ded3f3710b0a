"""OpenAI's routes."""

from starlette.requests import Request
from starlette.responses import Response

from vlm.serving.generation import GenerationResponse
from vlm.serving.http.json_body import BodyReader
from vlm.serving.http.json_text import json_response
from vlm.serving.openai.requests import read_chat, read_completion
from vlm.serving.refusal import no_route
from vlm.serving.served_model import ServedModel
from vlm.serving.settings import ServerSettings


class OpenAIRoutes:
    """Chat completions, completions, and the list of models."""

    def __init__(self, engine, settings: ServerSettings, model: ServedModel, bodies: BodyReader):
        self._engine, self._settings, self._model, self._bodies = engine, settings, model, bodies

    def add_to(self, app) -> None:
        """Register the routes."""
        app.add_api_route("/v1/chat/completions", self.chat_completions, methods=["POST"])
        app.add_api_route("/v1/completions", self.completions, methods=["POST"])
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/v1/models/{name:path}", self.one_model, methods=["GET"])

    async def chat_completions(self, request: Request) -> Response:
        return await self._generate(request, read_chat)

    async def completions(self, request: Request) -> Response:
        return await self._generate(request, read_completion)

    async def models(self) -> Response:
        return json_response({"object": "list", "data": [self._card(name) for name in self._model.names]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not name:
            raise no_route(request.method, request.scope["path"])
        return json_response(self._card(self._model.check_name(name)))

    async def _generate(self, request: Request, read) -> Response:
        asked = await self._bodies.read_object(
            request, lambda body: read(body, self._settings, self._model.check_name(body.get("model")))
        )
        return GenerationResponse(self._engine, asked.jobs, asked.format, prompts=asked.prompts, stream=asked.stream)

    def _card(self, name: str) -> dict:
        return {
            "id": name,
            "object": "model",
            "created": self._model.created,
            "owned_by": "sightline",
            "root": self._model.names[0],
            "max_model_len": self._model.about.max_context,
        }
