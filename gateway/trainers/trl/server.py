"""The small server of `serve: local`: llama.cpp in a process of its own, on the port of the provider's base URL."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from gateway.errors import ConfigError
from gateway.trainers.trl.adapters import ServingFailed
from gateway.trainers.trl.options import Settings
from gateway.trainers.trl.process import RECIPES

START_SECONDS = 120.0
"""A first start converts the base model."""
_STOP_SECONDS = 10.0


class LocalServer:
    """Runs the server; it ends with this process, however that ends, since its standard input does."""

    def __init__(self, own: Settings, base_url: str, models: Path) -> None:
        """`models` is the folder of trained models; below it `llama.cpp` holds converted files and the log.

        Raises:
            ConfigError: the base URL is not of this machine, or no GGUF file is named.
        """
        self._command = command(own, base_url, models / "llama.cpp")
        self._log = models / "llama.cpp" / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    def look_after(self) -> bool:
        """Start it unless it runs. Whether it may still be starting, so that its silence means nothing.

        Raises:
            ServingFailed: it has ended; the next call starts it again.
        """
        if self._process is not None and (code := self._process.poll()) is not None:
            self._process = None
            raise ServingFailed(f"the local model server ended with code {code}; {self._log} says why")
        if self._process is None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as said:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT
                )
            self._started = time.monotonic()
        return time.monotonic() - self._started < START_SECONDS

    def stop(self) -> None:
        """End it, with its engine."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.communicate()
        self._process = None


def command(own: Settings, base_url: str, work: Path) -> list[str]:
    """How the server is started.

    Raises:
        ConfigError: the base URL is not of this machine, or no GGUF file is named.
    """
    address = urlsplit(base_url)
    base = own.gguf or next((model for model in own.base_models if model.endswith(".gguf")), "")
    if not base:
        raise ConfigError(
            "trainer kind 'trl': 'serve: local' needs its base model as a GGUF file, in option 'gguf'"
        )
    if address.hostname not in ("127.0.0.1", "localhost", "::1") or not address.port or address.path != "/v1":
        raise ConfigError(
            f"trainer kind 'trl': 'serve: local' serves this machine only; {base_url} is not like "
            "http://127.0.0.1:8091/v1"
        )
    return [
        own.python or sys.executable, str(RECIPES / "serve.py"), "--base", base, "--host", address.hostname,
        "--port", str(address.port), "--work", str(work), "--context", str(own.context), "--with-parent",
    ]  # fmt: skip
