"""Reads the store for the pages, in a thread of its own: traffic waits for none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from gateway.config import Config
from gateway.domain.route import RouteTable
from gateway.errors import ConfigError, Refused, StoreError, StoreUnavailable, TaskError, UnknownPage
from gateway.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from gateway.pipeline.cycle import Workshop

T = TypeVar("T")


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked of a promotion; see `unprompt promote --help`. `canary`: percent."""

    candidate: str | None = None
    canary: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None
    shadow: bool = False
    force: bool = False


# What the pages are made with is imported when the first one is asked for: a relay that shows none does without.


class Desk:
    """Makes one page after the other."""

    def __init__(self, config: Config, shop: Callable[[SqliteStore], Workshop]) -> None:
        """`shop` gives what a promotion needs, around a store."""
        self._config, self._open = config, shop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dashboard")

    async def board(self) -> str:
        """The page of all tasks."""

        def make(store: SqliteStore) -> str:
            from gateway.dashboard import facts, pages

            return pages.board(facts.board(store, self._config, self._table(store)))

        return await self._read(make)

    async def task(self, name: str) -> str:
        """The page of one task."""

        def make(store: SqliteStore) -> str:
            from gateway.dashboard import facts, pages

            return pages.task(facts.page(store, self._config, name, self._table(store)))

        return await self._read(make)

    async def report(self, evaluation: str) -> bytes:
        """The page of an evaluation."""

        def make(store: SqliteStore) -> bytes:
            from gateway.dashboard import facts

            return facts.report(store, evaluation)

        return await self._read(make)

    async def tasks_json(self) -> object:
        """What `unprompt tasks --json` prints."""

        def make(store: SqliteStore) -> object:
            from gateway.pipeline.overview import overview

            return overview(store, self._config, self._table(store))

        return await self._read(make)

    async def task_json(self, name: str) -> object:
        """What `unprompt tasks show TASK --json` prints."""

        def make(store: SqliteStore) -> object:
            from gateway.pipeline.explain import as_json, explain

            return as_json(explain(store, self._config, name, table=self._table(store)))

        return await self._read(make)

    async def flips_json(self) -> object:
        """The history of decisions and flips, newest first."""

        def make(store: SqliteStore) -> object:
            from gateway.pipeline.decisions import flips

            return flips(store)

        return await self._read(make)

    async def promote(self, name: str, wish: Wish) -> object:
        """What `unprompt promote TASK` does; gives the decision and the route.

        Raises:
            Refused: the gate refuses, or the routes file has a problem.
        """

        def make(store: SqliteStore) -> object:
            from gateway.pipeline import by_hand
            from gateway.pipeline.canary import Step
            from gateway.pipeline.promotions import note_refusal

            shop = self._open(store)
            report, decision = by_hand.judged(shop, name, wish.candidate)
            if not decision.promote and not wish.force:
                note_refusal(store, decision)
                raise Refused(f"the gate refuses: {decision.reason}")
            first = Step(wish.canary or 0.0, 100.0 if wish.shadow else 0.0) if wish.canary or wish.shadow else None
            return {"decision": decision, "route": by_hand.flip(shop, report, decision, first)}

        return await self._read(make)

    async def roll_back(self, name: str) -> object:
        """What `unprompt rollback TASK` does; gives the route that is in force then.

        Raises:
            Refused: the routes file has a problem.
        """

        def make(store: SqliteStore) -> object:
            from gateway.pipeline.promote import rollback

            shop = self._open(store)
            return {"route": rollback(store, shop.config, shop.routes, name)}

        return await self._read(make)

    def _table(self, store: SqliteStore) -> RouteTable | None:
        from gateway.pipeline.serving import in_force

        return in_force(self._open(store).routes, self._config)

    async def _read(self, make: Callable[[SqliteStore], T]) -> T:
        """
        Raises:
            UnknownPage: there is no such task or report.
            StoreUnavailable: the store cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._made, make)

    def _made(self, make: Callable[[SqliteStore], T]) -> T:
        try:
            store = SqliteStore(self._config.store.path)
            try:
                return make(store)
            finally:
                store.close()
        except TaskError as error:
            raise UnknownPage(str(error)) from error
        except ConfigError as error:
            raise Refused(str(error)) from error
        except StoreError as error:
            raise StoreUnavailable(f"the store cannot be read just now: {error}") from error

    def close(self) -> None:
        """Make nothing more."""
        self._thread.shutdown(wait=False)
