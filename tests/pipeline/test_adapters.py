"""Adapters that routes name are loaded again when their server has forgotten them; what nobody uses is unloaded."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stories import config_in, template, workshop_in

from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.errors import ConfigError
from gateway.pipeline.adapters import Keeper, keeps_any
from gateway.pipeline.cycle import Workshop
from gateway.stores.sqlite import SqliteStore
from gateway.testing.vllm import FakeVLLM
from gateway.trainers.trl.adapters import ServingFailed
from gateway.trainers.trl.options import Settings
from gateway.trainers.trl.server import LocalServer, command

OLD, ROUTED, NEW = "mail-00000001-e2", "mail-00000002-e3", "mail-00000003-e1"


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    with FakeVLLM() as running:
        yield running


@pytest.fixture
def house(store: SqliteStore, tmp_path: Path, server: FakeVLLM) -> Workshop:
    """Three candidates of three datasets; the route names the one in the middle."""
    shop = workshop_in(tmp_path, store, config_of(tmp_path, server))
    store.add_template(template())
    for number, model in enumerate((OLD, ROUTED, NEW)):
        training, epoch = model.split("-e")
        folder = shop.models / training / f"epoch-{epoch}"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        store.add_dataset(Dataset(
            id=f"ds-{number}", task="mail", template="mail@1", rows=[], directory="", digest="", card={}
        ))  # fmt: skip
        store.save_finetune(FineTune(
            id=f"ft-{number}", task="mail", dataset=f"ds-{number}", trainer="lora", state=FineTuneState.SUCCEEDED,
            upstream="laptop", model=model, created_at=float(number),
        ))  # fmt: skip
    route(shop, ROUTED)
    return shop


def config_of(folder: Path, server: FakeVLLM, **options: Any) -> Any:
    providers = {"openai": {"base_url": "http://127.0.0.1:9/v1"}, "laptop": {"base_url": server.base_url}}
    section = {"kind": "trl", "provider": "laptop", "options": {"python": sys.executable, **options}}
    return config_in(folder, providers=providers, trainers={"lora": section})


def route(shop: Workshop, model: str) -> None:
    shop.routes.parent.mkdir(parents=True, exist_ok=True)
    targets = [{"upstream": "laptop", "model": model}]
    routes = [{"name": "mail", "match": {"model": "gpt-6"}, "targets": targets}]
    shop.routes.write_text(yaml.safe_dump({"routes": routes}))


def test_what_is_routed_and_the_newest_candidates_are_loaded(house: Workshop, server: FakeVLLM) -> None:
    Keeper(house).look()
    assert server.adapters == {
        ROUTED: str(house.models / "mail-00000002" / "epoch-3"),
        NEW: str(house.models / "mail-00000003" / "epoch-1"),
    }


def test_a_server_that_restarts_gets_them_again(house: Workshop, server: FakeVLLM) -> None:
    keeper = Keeper(house)
    keeper.look()
    server.restart()
    assert server.adapters == {}
    keeper.look()
    assert set(server.adapters) == {ROUTED, NEW}


def test_what_nobody_uses_any_more_is_unloaded_and_what_is_not_ours_is_left(
    house: Workshop, server: FakeVLLM, tmp_path: Path
) -> None:
    keeper = Keeper(house)
    keeper.look()
    somebodys = tmp_path / "somebodys"
    somebodys.mkdir()
    (somebodys / "adapter_config.json").write_text("{}")
    house_adapters = Keeper(house)
    route(house, OLD)
    house_adapters.look()
    assert set(server.adapters) == {OLD, NEW}
    server._adapters["somebodys"] = str(somebodys)
    server.models.append("somebodys")
    route(house, NEW)
    keeper.look()
    assert set(server.adapters) == {NEW, "somebodys"}


def test_while_the_routes_have_a_mistake_nothing_is_unloaded(house: Workshop, server: FakeVLLM) -> None:
    keeper = Keeper(house)
    keeper.look()
    house.routes.write_text("routes: [{")
    with pytest.raises(ConfigError):
        keeper.look()
    assert set(server.adapters) == {ROUTED, NEW}


def test_a_server_that_is_away_is_told_of(house: Workshop, server: FakeVLLM) -> None:
    server.stop()
    with pytest.raises(ServingFailed, match="does not list its models"):
        Keeper(house).look()
    server.start()


def test_only_servers_that_take_adapters_are_looked_after(tmp_path: Path, server: FakeVLLM) -> None:
    assert keeps_any(config_of(tmp_path, server))
    assert not keeps_any(config_of(tmp_path, server, serve="by_hand"))
    assert not keeps_any(config_in(tmp_path))


# --- the small server ------------------------------------------------------------------------------------

WAITING = """#!{python}
import os, sys
from pathlib import Path
with (Path(__file__).parent / "pids").open("a") as pids:
    pids.write(f"{{os.getpid()}}\\n")
while os.read(0, 4096):
    pass
"""


def local_server(folder: Path) -> tuple[LocalServer, Callable[[], list[int]]]:
    """A server that is a stand-in, and the processes that it has been."""
    python = folder / "python"
    python.write_text(WAITING.format(python=sys.executable))
    python.chmod(0o755)

    def pids() -> list[int]:
        file = folder / "pids"
        return [int(line) for line in file.read_text().splitlines()] if file.is_file() else []

    own = Settings(python=str(python), gguf="base.gguf", serve="local")
    return LocalServer(own, "http://127.0.0.1:8091/v1", folder / "models"), pids


def wait_until(what: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def test_the_small_server_is_started_once_and_again_when_it_dies(tmp_path: Path) -> None:
    server, pids = local_server(tmp_path)
    assert server.look_after()  # may be starting
    assert server.look_after()
    wait_until(lambda: len(pids()) == 1)
    os.kill(pids()[0], signal.SIGKILL)
    wait_until(
        lambda: not Path(f"/proc/{pids()[0]}").exists() or " Z " in Path(f"/proc/{pids()[0]}/stat").read_text()
    )
    with pytest.raises(ServingFailed, match=r"ended with code -9; .*server\.log says why"):
        server.look_after()
    server.look_after()
    wait_until(lambda: len(pids()) == 2)
    server.stop()
    server.stop()
    assert not Path(f"/proc/{pids()[1]}").exists()


def test_the_small_server_is_started_on_the_providers_port() -> None:
    own = Settings(python="py", base_models=("a/base.gguf",), serve="local", context=512)
    given = command(own, "http://127.0.0.1:8099/v1", Path("work"))
    assert given[0] == "py"
    assert given[1].endswith("recipes/serve.py")
    assert given[2:] == [
        "--base", "a/base.gguf", "--host", "127.0.0.1", "--port", "8099", "--work", "work", "--context", "512",
        "--with-parent",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "gguf", "error"),
    [
        ("http://127.0.0.1:8091/v1", "", "needs its base model as a GGUF file"),
        ("https://models.example/v1", "b.gguf", "serves this machine only"),
        ("http://127.0.0.1/v1", "b.gguf", "serves this machine only"),
    ],
)
def test_a_small_server_that_cannot_be_is_refused(url: str, gguf: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        command(Settings(gguf=gguf, serve="local"), url, Path("work"))
