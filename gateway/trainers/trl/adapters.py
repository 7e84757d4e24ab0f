"""Adapters in a running server, by the API that vLLM has for it and that our own small server speaks, too.

Source: vLLM's documentation of LoRA adapters, "Dynamically serving LoRA Adapters": `POST /v1/load_lora_adapter` and
`/v1/unload_lora_adapter`, which a server has that was started with `--enable-lora` and
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import openai

from gateway.errors import UnpromptError

_SECONDS = 120.0
"""A first adapter may take a while: the server reads it and warms up."""


class ServingFailed(UnpromptError):
    """The server does not take the adapter. The text says what it answered, and the remedy where one is known."""


class Adapters:
    """The adapters of the server at `base_url`; `sleep` is for tests."""

    def __init__(self, base_url: str, api_key: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._api = openai.OpenAI(base_url=base_url, api_key=api_key or "none", max_retries=0, timeout=_SECONDS)
        self._base_url, self._key, self._sleep = base_url, api_key, sleep

    def names(self) -> set[str]:
        """The models that the server has, base models too.

        Raises:
            ServingFailed: it gives no usable answer.
        """
        try:
            return {model.id for model in self._api.models.list()}
        except (openai.APIError, ValueError, TypeError, AttributeError) as error:
            raise self._failed("does not list its models", error) from error

    def load(self, name: str, folder: str, *, patience: float = 0.0) -> None:
        """Let the server read the adapter in `folder`; one that is there already is left as it is. A server that is
        down or starting is asked again for `patience` seconds.

        Raises:
            ServingFailed: it refuses, or stays away.
        """
        pause = 0.2
        while True:
            try:
                return self._load(name, folder)
            except ServingFailed as error:
                if patience <= 0 or not isinstance(error.__cause__, openai.APIConnectionError):
                    raise
            self._sleep(pause)
            patience, pause = patience - pause, min(2 * pause, 10.0)

    def _load(self, name: str, folder: str) -> None:
        if name in self.names():
            return
        try:
            self._api.post("/load_lora_adapter", body={"lora_name": name, "lora_path": folder}, cast_to=str)
        except openai.APIError as error:
            if "already been loaded" not in str(error):  # by somebody between our two questions
                raise self._failed(f"does not load {name} from {folder}", error) from error

    def unload(self, name: str) -> None:
        """Let the server forget an adapter; one that is not there is no error.

        Raises:
            ServingFailed: it refuses, or is away.
        """
        try:
            self._api.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=str)
        except openai.APIError as error:
            if "cannot be found" not in str(error):
                raise self._failed(f"does not unload {name}", error) from error

    def _failed(self, what: str, error: Exception) -> ServingFailed:
        reason = " ".join(str(error).split())
        if isinstance(error, openai.NotFoundError) and "No adapter found" not in reason:
            reason += "; start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        text = f"the server at {self._base_url} {what}: {reason}"[:400]
        return ServingFailed(text.replace(self._key, "[key]") if self._key else text)
