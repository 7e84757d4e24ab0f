"""Requests to a service that has an API of its own: JSON in, one JSON object out.

The client is that of the `openai` package, which knows proxies, timeouts and uploads, and whose errors the
rest of a run goes by: no second set of them.
"""

from __future__ import annotations

from typing import Any

import openai

from gateway.trainers import TrainerSettings

Json = dict[str, Any]

REQUEST_SECONDS = 120.0


def client(settings: TrainerSettings, base_url: str = "") -> openai.OpenAI:
    """The client of a service, by default at the settings' own base URL."""
    # Never None: the package would then send the key of the environment to a foreign base URL.
    # No retries of its own: it would repeat a create whose answer was lost, and start a second job.
    return openai.OpenAI(
        api_key=settings.api_key or "none",
        base_url=base_url or settings.base_url,
        max_retries=0,
        timeout=REQUEST_SECONDS,
    )


class Api:
    """A JSON API below a base URL. Every call raises `openai.APIError` for a refusal or no answer, and `ValueError`
    for an answer that is no JSON object."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client
        self.url = str(client.base_url)

    def get(self, path: str, **query: str | int) -> Json:
        return _object(self._client.get(path, cast_to=object, options={"params": dict(query)}))

    def post(self, path: str, body: Json | None = None, **query: str | int) -> Json:
        return _object(self._client.post(path, cast_to=object, body=body or {}, options={"params": dict(query)}))

    def send(self, path: str, name: str, content: Any, **fields: str) -> Json:
        """Upload a file as one part of a form, beside these fields."""
        kind = {"Content-Type": "multipart/form-data"}
        files = [("file", (name, content))]
        return _object(self._client.post(path, cast_to=object, body=fields, files=files, options={"headers": kind}))


def _object(answer: object) -> Json:
    """The package parses what it is sent: a page of HTML comes as a string."""
    if isinstance(answer, dict):
        return answer
    raise ValueError(f"not the answer of a fine-tuning API: {str(answer)[:80]!r}")


def text_in(answer: Json, key: str) -> str:
    """A text that an answer must have.

    Raises:
        ValueError: it has none.
    """
    found = answer.get(key)
    if isinstance(found, str) and found:
        return found
    raise ValueError(f"not the answer of a fine-tuning API: no {key!r} in {str(answer)[:80]!r}")


def list_in(answer: Json, key: str) -> list[Json]:
    """The objects of a list. An answer without a list is not an empty list: that would start a second job.

    Raises:
        ValueError: it has no list.
    """
    found = answer.get(key)
    if isinstance(found, list):
        return [item for item in found if isinstance(item, dict)]
    raise ValueError(f"not a list of a fine-tuning API: no {key!r} in {str(answer)[:80]!r}")
