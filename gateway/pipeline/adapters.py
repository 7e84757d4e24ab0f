"""Adapters that are in use stay loaded in the servers that serve them, which forget them when they restart."""

from __future__ import annotations

from gateway.config import Config, TrainerConfig, load_routes
from gateway.pipeline.cycle import Workshop
from gateway.pipeline.sweep import build
from gateway.trainers.trl import TrlTrainer
from gateway.trainers.trl.adapters import Adapters, ServingFailed
from gateway.trainers.trl.options import adapter_folder
from gateway.trainers.trl.server import LocalServer


def keeps_any(config: Config) -> bool:
    """Whether there is anything to look after."""
    return any(_is_kept(section) for section in config.trainers.values())


def _is_kept(section: TrainerConfig) -> bool:
    return section.kind == "trl" and section.options.get("serve") != "by_hand"


class Keeper:
    """Looks after the servers of all trainers of kind `trl`."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._servers: dict[str, LocalServer] = {}

    def look(self) -> None:
        """Start local servers, load what is missing, unload what nobody uses.

        Raises:
            ServingFailed: a server is away, or refuses; the others have been looked after.
            ConfigError: a trainer's section, or the file of routes, has a mistake.
        """
        troubles = []
        for name, section in self._shop.config.trainers.items():
            if _is_kept(section):
                try:
                    self._look_after(name, section)
                except ServingFailed as error:
                    troubles.append(str(error))
        if troubles:
            raise ServingFailed("; ".join(troubles))

    def _look_after(self, name: str, section: TrainerConfig) -> None:
        trainer = build(self._shop.config, name, self._shop.models)
        assert isinstance(trainer, TrlTrainer)
        adapters = trainer.adapters()
        there = self._names(name, trainer, adapters)
        if there is None:
            return
        wanted = self._routed(section.provider or "") | self._newest(name)
        for model in sorted(wanted - there):
            folder = adapter_folder(self._shop.models, model)
            if folder is not None and folder.is_dir():
                adapters.load(model, trainer.place_of(folder))
        for model in sorted(there - wanted):
            folder = adapter_folder(self._shop.models, model)
            if folder is not None and folder.is_dir():  # one of ours: other adapters there are not our business
                adapters.unload(model)

    def _names(self, name: str, trainer: TrlTrainer, adapters: Adapters) -> set[str] | None:
        """What the server has; None while it starts."""
        try:
            return adapters.names()
        except ServingFailed:
            if trainer.own.serve != "local":
                raise
            if name not in self._servers:
                self._servers[name] = LocalServer(trainer.own, trainer.settings.base_url, self._shop.models)
            if self._servers[name].look_after():
                return None
            raise

    def _routed(self, upstream: str) -> set[str]:
        """The models that routes name at this upstream."""
        routes = load_routes(self._shop.routes, self._shop.config).routes
        targets = [target for route in routes for target in (*route.targets, *route.fallbacks)]
        targets += [route.shadow.target for route in routes if route.shadow is not None]
        return {target.model for target in targets if target.upstream == upstream and target.model}

    def _newest(self, trainer: str) -> set[str]:
        """The candidates of each task's newest dataset: they are being evaluated, or may be promoted by hand."""
        trained = self._shop.store.finetunes("trainer = ? AND state = 'succeeded'", [trainer])
        newest = {one.task: one.dataset for one in sorted(trained, key=lambda one: one.created_at)}
        return {one.model for one in trained if one.model and one.dataset == newest[one.task]}

    def stop(self) -> None:
        """End the local servers."""
        for server in self._servers.values():
            server.stop()
