"""Builds everything from a `Config`; the only wiring. The end-to-end tests use the same."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from gateway import admin, providers
from gateway.config import Config, InvalidConfig, Problem, load_config, load_routes, problem_at
from gateway.dashboard.desk import Desk
from gateway.domain.dataset import Dataset
from gateway.domain.exchange import id_maker
from gateway.domain.price import Price, PriceBook
from gateway.domain.route import LOCAL, RouteTable, Target
from gateway.domain.template import PromptTemplate
from gateway.errors import ConfigError, UnpromptError
from gateway.feedback import FeedbackDesk
from gateway.files import fingerprint
from gateway.loopback import asking_through
from gateway.matches import FILE as MATCHES
from gateway.matches import matches
from gateway.metrics import LoopWatch, Metrics, Sheet
from gateway.pipeline.asking import Asking
from gateway.pipeline.cycle import Workshop
from gateway.ports import reason_of
from gateway.proxy.attempts import Guard
from gateway.proxy.breaker import Breakers
from gateway.proxy.capture import Capture
from gateway.proxy.copies import Copies
from gateway.proxy.house import House
from gateway.proxy.router import Switchboard
from gateway.proxy.server import Limits, Server
from gateway.raised import AUDITS, raised
from gateway.stores.journal import JournalWriter, waiting
from gateway.stores.sqlite import SqliteStore
from gateway.ticks import tick
from gateway.upstreams import Upstream
from gateway.upstreams.embedded import EmbeddedModel, EmbeddedUpstream, EmbeddingUnavailable
from gateway.upstreams.http import HttpUpstream
from gateway.upstreams.outbox import Outbox
from gateway.upstreams.selective import SelectiveUpstream
from gateway.withheld import FILE, withheld
from gateway.workers import Seat

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("config/gateway.yaml")
LAG_SECONDS = 60.0
DOWN_SECONDS = 2.0
"""Not ready when the store is so far behind the journal, or so long without a process that writes to it."""


class Files(msgspec.Struct, frozen=True):
    """The two files: `gateway` (None: built-in defaults) and, beside it, `routes`."""

    gateway: Path | None
    routes: Path

    @classmethod
    def beside(cls, given: Path | None) -> Files:
        """`given` as on the command line; without it `config/gateway.yaml` where that exists."""
        gateway = given or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
        return cls(gateway, (gateway or DEFAULT_CONFIG).with_name("routes.yaml"))


class Places(msgspec.Struct, frozen=True):
    """Where things are kept, all beside the store."""

    store: Path
    journal: Path
    models: Path
    datasets: Path

    @classmethod
    def of(cls, config: Config) -> Places:
        home = config.store.home
        return cls(config.store.path, home / "journal", home / "models", home / "datasets")


def build_switchboard(files: Files, config: Config) -> tuple[Switchboard, dict[str, EmbeddedModel]]:
    """The routes with all that they need: templates from the store, models from their folder.

    Raises:
        InvalidConfig: a problem in the file, or a template or model that it names does not exist.
    """
    table = load_routes(files.routes, config)
    places = Places.of(config)
    targets: list[tuple[list[str | int], Target]] = [
        (["routes", r, "targets", t], target)
        for r, route in enumerate(table.routes)
        for t, target in enumerate(route.targets)
    ]
    targets += [
        (["routes", r, "shadow"], route.shadow.target)
        for r, route in enumerate(table.routes)
        if route.shadow is not None
    ]
    problems: list[Problem] = []
    models: dict[str, EmbeddedModel] = {}
    for path, target in targets:
        if target.upstream == LOCAL and target.model and target.model not in models:
            try:
                models[target.model] = EmbeddedModel.load(places.models, target.model)
            except EmbeddingUnavailable as error:  # a package is gone: its requests fall back, the others go on
                log.error("%s", error)
            except UnpromptError as error:
                problems.append(problem_at(files.routes, [*path, "model"], str(error)))
    kept_back = withheld(config.store.home)
    more_audits = raised(config.store.home)
    switchboard = Switchboard.build(table, [], kept_back, more_audits)
    if _has_tasks(table):
        switchboard = Switchboard.build(table, _templates(places.store), kept_back, more_audits)
        for path, target in targets:
            if target.strip is not None and target.strip not in switchboard.by_name:
                reason = f"no template {target.strip}; 'unprompt tasks' lists the templates that there are"
                problems.append(problem_at(files.routes, [*path, "strip"], reason))
    if problems:
        raise InvalidConfig(problems)
    return switchboard, models


def _has_tasks(table: RouteTable) -> bool:
    """Whether it matters to these routes which task a request is of."""
    return bool(table.strips()) or any(route.match.task is not None for route in table.routes)


def _templates(file: Path) -> list[PromptTemplate]:
    """All of them, since what one would strip may be another's request; none where nothing was ever recorded."""
    if not file.exists():
        return []
    store = SqliteStore(file)
    try:
        return store.templates()
    finally:
        store.close()


class Loaded(msgspec.Struct, frozen=True):
    """Both files, read and checked. `seen` identifies the routes file as it was before it was read."""

    config: Config
    switchboard: Switchboard
    models: dict[str, EmbeddedModel]
    seen: tuple[int, ...] | None

    @classmethod
    def from_files(cls, files: Files, config: Config | None = None, before: RouteTable | None = None) -> Loaded:
        """Reads the routes, and the settings where `config` does not give them. `before`: the routes in force.

        Raises:
            ConfigError: with every problem.
        """
        seen = fingerprint(files.routes)  # before it is read: a later write is never missed
        if seen is None and before is not None and before.routes:
            reason = "is gone; write 'routes: []' to have none"
            raise InvalidConfig([Problem(str(files.routes), 0, "", reason)])
        config = config or load_config(files.gateway)
        return cls(config, *build_switchboard(files, config), seen)


class App:
    """One relay process."""

    def __init__(
        self,
        files: Files,
        *,
        host: str | None = None,
        port: int | None = None,
        loaded: Loaded | None = None,
        seat: Seat | None = None,
        sheets: list[Sheet] | None = None,
    ) -> None:
        """Reads and checks everything that was not `loaded` before; nothing runs yet. `seat` and `sheets` are
        given where several serve together.

        Raises:
            ConfigError: with every problem.
        """
        self.files, self.seat = files, seat
        loaded = loaded or Loaded.from_files(files)
        self.config = config = loaded.config
        self.places = places = Places.of(config)
        self.host = config.server.host if host is None else host
        self.port = config.server.port if port is None else port
        self.local = EmbeddedUpstream()
        self.metrics = Metrics(
            places.journal,
            lambda: len(self.house.active),
            sheets=sheets or (),
            worker=seat.number if seat else 0,
        )
        self._routes_seen, switchboard, self.local.models = loaded.seen, loaded.switchboard, loaded.models
        self._withheld_seen: tuple[int, ...] | None = None
        self._audits_seen: tuple[int, ...] | None = None
        self._matches_seen: tuple[int, ...] | None = None
        self._templates_told: dict[str, str] | None = None
        self.metrics.reloaded(switchboard.table, time.time())
        self.house = self._house(switchboard)
        self.house.copied = Copies(self.house, self.metrics.copied).ask
        self.feedback = FeedbackDesk(places.store)
        self.dashboard = Desk(config, lambda store: workshop(files, config, store=store))
        self._background: list[asyncio.Task[None]] = []
        self._loop_watch = LoopWatch(self.metrics.late)

    def _house(self, switchboard: Switchboard) -> House:
        """All that a request needs on its way, with an upstream for each provider."""
        config, outbox = self.config, Outbox()
        reached = {name: HttpUpstream(name, p.base_url, outbox) for name, p in config.providers.items()}
        upstreams: dict[str, Upstream] = {
            name: SelectiveUpstream(one) if config.providers[name].protocol == "openai" else one
            for name, one in reached.items()
        }
        return House(
            default_provider=config.default_provider,
            prefixes={name: one.prefix for name, one in reached.items()},
            providers={name: providers.load(p.protocol) for name, p in config.providers.items()},
            keys={name: os.environ[p.api_key_env] for name, p in config.providers.items() if p.api_key_env},
            upstreams=upstreams | {LOCAL: self.local},
            prices=price_book(config),
            capture=self._capture(outbox),
            outbox=outbox,
            switchboard=switchboard,
            new_id=id_maker(),
            dice=random.random,
            observe=self.metrics.observe,
            stream_usage={
                name: (p.stream_usage, urlsplit(p.base_url).hostname or "")
                for name, p in config.providers.items()
                if p.protocol == "openai"
            },
            guard=Guard(
                breakers=Breakers(time.monotonic, self.metrics.circuit),
                max_in_flight=config.server.max_in_flight or math.inf,
                retried=self.metrics.retried,
                rejected=self.metrics.rejected,
            ),
            record_bodies=config.capture.bodies,
            record_bytes=config.capture.max_body_mb << 20,
        )

    def _capture(self, outbox: Outbox) -> Capture:
        """What writes the records; those of large bodies go to a journal of their own."""
        journal, sync_ms = self.places.journal, self.config.store.sync_ms
        return Capture(
            JournalWriter(journal, sync_ms=sync_ms),
            JournalWriter(journal, sync_ms=sync_ms, large=True),
            fail_closed=self.config.capture.on_failure == "fail_closed",
            count=self.metrics.record,
            sync_ms=sync_ms,
            outbox=outbox,
        )

    async def start(self) -> str:
        """Listen; gives our base URL."""
        server = self.config.server
        token = os.environ.get(self.config.auth.admin_token_env or "")
        pages_app = admin.application(self.metrics.pages, self.not_ready, token, self.feedback.note, self.dashboard)
        runner = web.AppRunner(pages_app, access_log=None)
        await runner.setup()
        self._runner = runner
        pages = runner.server
        if pages is None:
            raise ConfigError("the admin application could not be set up")
        limits = Limits(
            body_bytes=server.max_body_mb << 20,
            header_seconds=server.header_seconds,
            idle_seconds=server.idle_seconds,
            least_rate=server.least_rate,
            connections=server.connections,
        )
        self.server = Server(self.house, limits, pages)
        try:
            port = await self.server.listen(self.host, self.port, self.seat.sockets if self.seat else ())
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self.host}:{self.port}: {reason_of(error)}; choose another with --port"
            ) from error
        work = (self.server.watch(), self.house.capture.keep_synced(), self._watch_routes())
        self._background = [asyncio.create_task(job) for job in work]
        self._loop_watch.start()
        return f"http://{self.host}:{port}"

    def not_ready(self) -> list[str]:
        """Why traffic should not come here, for `/readyz`."""
        reasons = []
        if self.server.draining:
            reasons.append("shutting down")
        if (trouble := self.house.capture.trouble) is not None:
            reasons.append(trouble)
        if (down := self.metrics.writer_down_seconds()) > DOWN_SECONDS:
            reasons.append(f"records are not moved into the store: its process ended {down:.0f} s ago")
        if (lag := waiting(self.places.journal)[1]) > LAG_SECONDS:
            reasons.append(f"records are not moved into the store: it is {lag:.0f} s behind")
        return reasons

    async def stop(self) -> None:
        """Drain, write what is left, close."""
        await self.server.drain(self.config.server.drain_seconds)
        self._loop_watch.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for upstream in self.house.upstreams.values():
            await upstream.close()
        self.house.capture.close()
        await self._runner.cleanup()
        self.feedback.close()
        self.dashboard.close()

    # --- routes ----------------------------------------------------------------------------------

    async def _watch_routes(self) -> None:
        """Reload when the file changes: by its identity, time and size, which also sees swapped symlinks. And when
        a template that the routes strip is withheld from now on, or no more, and when there are other templates."""
        while True:
            await tick()
            now = fingerprint(self.files.routes)
            if now != self._routes_seen or self._is_withheld_anew() or self._has_other_templates():
                self._routes_seen = now
                await self.reload()
            self._take_up_audits()

    def _is_withheld_anew(self) -> bool:
        """The worker writes the file; one that cannot be read is reported by the reload, which changes nothing."""
        home = self.config.store.home
        now = fingerprint(home / FILE)
        if now == self._withheld_seen:
            return False
        self._withheld_seen = now
        try:
            names = self.house.switchboard.table.strips() & frozenset(withheld(home))
        except ConfigError:
            return True
        return names != self.house.switchboard.withheld

    def _has_other_templates(self) -> bool:
        """Whether the worker tells of other templates than before, or of other states of them."""
        now = fingerprint(self.config.store.home / MATCHES)
        if now == self._matches_seen or not _has_tasks(self.house.switchboard.table):
            return False
        self._matches_seen = now
        told, before = matches(self.config.store.home).states, self._templates_told
        self._templates_told = told
        return told != before if before is not None else told.keys() != self.house.switchboard.by_name.keys()

    def _take_up_audits(self) -> None:
        """The worker raises and lowers the share of requests that are audited."""
        now = fingerprint(self.config.store.home / AUDITS)
        if now != self._audits_seen:
            self._audits_seen = now
            more = raised(self.config.store.home)
            self.house.switchboard = msgspec.structs.replace(self.house.switchboard, raised=more)

    async def reload(self) -> bool:
        """Build the whole new switchboard, then swap it in one assignment; on any problem nothing changes."""
        try:
            table = self.house.switchboard.table
            loaded = await asyncio.to_thread(Loaded.from_files, self.files, self.config, table)
        except UnpromptError as error:
            log.error("routes not reloaded, the ones before stay in force:\n%s", error)
            self.metrics.reloaded(None, time.time())
            return False
        self.local.models = {**self.local.models, **loaded.models}  # requests under way keep theirs
        self.house.switchboard = loaded.switchboard
        table = loaded.switchboard.table
        self.metrics.reloaded(table, time.time())
        log.info("routes %s in force: %d routes", table.version, len(table.routes))
        return True


def price_book(config: Config) -> PriceBook:
    """The user's prices and the library's; a model in this process costs nothing per token."""
    own = config.prices() | {(LOCAL, "*"): Price(input=0.0, output=0.0)}
    return PriceBook(own, {name: p.protocol for name, p in config.providers.items()})


def workshop(
    files: Files, config: Config, say: Callable[[str], None] = log.info, store: SqliteStore | None = None
) -> Workshop:
    """The offline wing's tools, with a store for the thread that calls this, unless one is given."""
    places, prices = Places.of(config), price_book(config)
    store = store or SqliteStore(places.store)

    def relayed(data: Dataset) -> AbstractContextManager[Asking]:
        template = next((one for one in store.templates(data.task) if one.name == data.template), None)
        return asking_through(_loopback_relay, config, prices, places.models, data, template)

    return Workshop(
        store=store,
        config=config,
        prices=prices,
        routes=files.routes,
        models=places.models,
        datasets=places.datasets,
        say=say,
        relayed=relayed,
    )


def _loopback_relay(config: Config) -> App:
    """A relay without routes, on a free port of this machine."""
    nothing = Loaded(config, Switchboard.build(RouteTable(), []), {}, None)
    return App(Files(None, config.store.home / "routes.yaml"), host="127.0.0.1", port=0, loaded=nothing)
