"""Ollama's routes. Those that manage models (pull, create, delete, ...) have no meaning here and are not offered."""

import datetime
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response

from vlm.serving.generation import GenerationResponse
from vlm.serving.http.json_body import BodyReader
from vlm.serving.http.json_text import json_response
from vlm.serving.ollama.replies import ChatFormat, GenerateFormat
from vlm.serving.ollama.requests import read_chat, read_generate
from vlm.serving.served_model import ServedModel
from vlm.serving.settings import ServerSettings

API_VERSION = "0.24.0"
"""Of the Ollama whose API this follows."""
_FOREVER = "9999-12-31T00:00:00Z"
_BITS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class OllamaRoutes:
    """Chat, generate, and what is told of the model."""

    def __init__(self, engine, settings: ServerSettings, model: ServedModel, bodies: BodyReader):
        self._engine, self._settings, self._model, self._bodies = engine, settings, model, bodies

    def add_to(self, app) -> None:
        """Register the routes."""
        app.add_api_route("/api/chat", self.chat, methods=["POST"])
        app.add_api_route("/api/generate", self.generate, methods=["POST"])
        app.add_api_route("/api/show", self.show, methods=["POST"])
        app.add_api_route("/api/tags", self.tags, methods=["GET"])
        app.add_api_route("/api/ps", self.running, methods=["GET"])
        app.add_api_route("/api/version", self.version, methods=["GET"])

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, read_chat, ChatFormat)

    async def generate(self, request: Request) -> Response:
        return await self._generate(request, read_generate, GenerateFormat)

    async def show(self, request: Request) -> Response:
        await self._bodies.read_object(
            request, lambda body: self._model.check_name(body.get("model") or body.get("name"))
        )
        about = self._model.about
        family = self._family()
        info = {
            "general.architecture": family,
            "general.parameter_count": about.num_parameters,
            f"{family}.context_length": about.max_context,
        }
        abilities = ["completion", *(["vision"] if about.has_images else [])]
        card = {"modelfile": "", "parameters": "", "template": "", "modified_at": self._modified_at()}
        return json_response(card | {"details": self._details(), "model_info": info, "capabilities": abilities})

    async def tags(self) -> Response:
        return json_response({"models": [self._card(name) for name in self._model.names]})

    async def running(self) -> Response:
        extra = {"expires_at": _FOREVER, "size_vram": 0, "context_length": self._model.about.max_context}
        return json_response({"models": [self._card(name) | extra for name in self._model.names]})

    async def version(self) -> Response:
        return json_response({"version": API_VERSION, "server": f"sightline {version('sightline-vlm')}"})

    async def _generate(self, request: Request, read, format) -> Response:
        def named(body: dict) -> tuple:
            name = self._model.check_name(body.get("model"))
            return name, read(body, self._settings, name)

        name, asked = await self._bodies.read_object(request, named)
        if asked is None:
            return json_response(format(name, with_logprobs=False).loaded())
        return GenerationResponse(self._engine, asked.jobs, asked.format, prompts=asked.prompts, stream=asked.stream)

    def _card(self, name: str) -> dict:
        about = self._model.about
        return {
            "name": name,
            "model": name,
            "modified_at": self._modified_at(),
            "size": about.num_bytes,
            "digest": self._model.digest,
            "details": self._details(),
        }

    def _details(self) -> dict:
        about, family = self._model.about, self._family()
        return {
            "parent_model": "",
            "format": "safetensors",
            "family": family,
            "families": [family],
            "parameter_size": _size(about.num_parameters),
            "quantization_level": _BITS.get(about.dtype, about.dtype),
        }

    def _family(self) -> str:
        return "mllama" if self._model.about.has_images else "llama"

    def _modified_at(self) -> str:
        return datetime.datetime.fromtimestamp(self._model.created, datetime.UTC).isoformat()


def _size(num_parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if num_parameters >= size:
            return f"{num_parameters / size:.1f}{unit}"
    return str(num_parameters)
