"""Adapters that come and go, the same at the fake and at a real vLLM.

The real one is asked where VLLM_URL (`http://127.0.0.1:8000/v1`) names a server that was started with
`--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`, and VLLM_ADAPTER the folder of an adapter of its base
model, by a path that the server can read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from gateway.testing.vllm import FakeVLLM
from gateway.trainers.trl.adapters import Adapters, ServingFailed

NAME = "mail-00000001-e2"


@pytest.fixture(params=["fake", "real"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Where the server listens, and an adapter's folder."""
    if request.param == "real":
        url, folder = os.environ.get("VLLM_URL"), os.environ.get("VLLM_ADAPTER")
        if not url or not folder:
            pytest.skip("no real vLLM is named: set VLLM_URL and VLLM_ADAPTER")
        yield url, folder
        Adapters(url, "").unload(NAME)
        return
    (tmp_path / "adapter_config.json").write_text("{}")
    with FakeVLLM() as fake:
        yield fake.base_url, str(tmp_path)


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300)


def ask(url: str, model: str) -> str:
    made = client(url).chat.completions.create(
        model=model, messages=[{"role": "user", "content": "play some jazz"}], max_tokens=8, temperature=0
    )
    return made.choices[0].message.content or ""


def test_an_adapter_is_loaded_answers_and_goes(server: tuple[str, str]) -> None:
    url, folder = server
    adapters = Adapters(url, "")
    before = adapters.names()
    adapters.load(NAME, folder)
    assert adapters.names() == before | {NAME}
    assert ask(url, NAME)
    adapters.unload(NAME)
    assert adapters.names() == before
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ask(url, NAME)


def test_one_that_is_there_may_be_loaded_and_one_that_is_not_be_unloaded_again(server: tuple[str, str]) -> None:
    url, folder = server
    adapters = Adapters(url, "")
    adapters.load(NAME, folder)
    adapters.load(NAME, folder)
    with pytest.raises(openai.BadRequestError, match="already been loaded"):  # which `load` takes for success
        client(url).post("/load_lora_adapter", body={"lora_name": NAME, "lora_path": folder}, cast_to=str)
    adapters.unload(NAME)
    adapters.unload(NAME)
    assert NAME not in adapters.names()


def test_a_folder_without_an_adapter_is_refused_with_its_name(server: tuple[str, str], tmp_path: Path) -> None:
    url, _ = server
    empty = tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(ServingFailed, match="nothing"):
        Adapters(url, "").load(NAME, str(empty))
    assert NAME not in Adapters(url, "").names()
