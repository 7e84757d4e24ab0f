"""A fake of vLLM's server: one base model, and LoRA adapters that come and go while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from gateway.testing.chat import Answer, echo
from gateway.testing.openai import FakeOpenAI
from gateway.testing.server import Refusal


class FakeVLLM(FakeOpenAI):
    """An OpenAI-compatible server on loopback that loads adapters as vLLM does.

    `adapters` are those that are loaded, name -> folder. A folder without `adapter_config.json`, a name that is
    loaded already, one that is not and a chat with an unknown model are refused in vLLM's words. `runtime_loading`
    False: a server that was started without `VLLM_ALLOW_RUNTIME_LORA_UPDATING`.
    """

    def __init__(
        self,
        answer: Answer = echo,
        *,
        base: str = "base-model",
        runtime_loading: bool = True,
        api_key: str | None = None,
    ) -> None:
        super().__init__(answer, models=[base], api_key=api_key)
        self.base, self.runtime_loading = base, runtime_loading
        self._adapters: dict[str, str] = {}

    @property
    def adapters(self) -> Mapping[str, str]:
        """Name -> folder of every adapter that is loaded."""
        return dict(self._adapters)

    def restart(self) -> None:
        """Stop and start on the same port; what was loaded is forgotten, as a real server forgets it."""
        self.stop()
        self._adapters.clear()
        self.models = [self.base]
        self.start()

    def routes(self) -> list[web.RouteDef]:
        own = [web.post("/v1/chat/completions", self._chat_with_known)]
        if self.runtime_loading:
            own += [
                web.post("/v1/load_lora_adapter", self._load),
                web.post("/v1/unload_lora_adapter", self._unload),
            ]
        return [*own, *(route for route in super().routes() if route.path != "/v1/chat/completions")]

    async def _chat_with_known(self, request: web.Request) -> web.StreamResponse:
        model = (await request.json()).get("model")
        if model not in self.models:
            raise Refusal(404, f"The model `{model}` does not exist.", code="404")
        return await self._chat(request)

    async def _load(self, request: web.Request) -> web.Response:
        asked: dict[str, Any] = await request.json()
        name, folder = asked.get("lora_name"), asked.get("lora_path")
        if not name or not folder:
            raise Refusal(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self._adapters:
            raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(folder) / "adapter_config.json").is_file():
            raise Refusal(404, f"Loading lora {name} failed: No adapter found for <path>")
        self._adapters[name] = folder
        self.models.append(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json()).get("lora_name")
        if not name:
            raise Refusal(400, "'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self._adapters:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.")
        del self._adapters[name]
        self.models.remove(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")
