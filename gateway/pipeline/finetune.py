"""Trains a sweep of candidates on a dataset; what a crash interrupts goes on where it was."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.config import Config
from gateway.domain.dataset import Dataset
from gateway.domain.finetune import FineTune, FineTuneState
from gateway.domain.route import LOCAL
from gateway.domain.sweep import Budget, checkpoints, settled
from gateway.errors import StoreError, TaskError, UnpromptError, UpstreamError
from gateway.pipeline.ledger import CANCELLED, Ledger, marker, watch
from gateway.pipeline.locks import one_at_a_time
from gateway.pipeline.sweep import budget_of, build, estimated, is_remote
from gateway.stores.sqlite import SqliteStore
from gateway.trainers import Cancelling, Stopped, Trainer
from gateway.upstreams.embedded import EmbeddedModel

log = logging.getLogger(__name__)

Progress = Callable[[FineTune], None]

CANCEL_TRIES = 5


def run(store: SqliteStore, config: Config, dataset: Dataset, planned: Sequence[FineTune], models: Path,
        progress: Progress = lambda finetune: None, budget: Budget | None = None, *,
        here_only: bool = False) -> list[FineTune]:  # fmt: skip
    """Bring every planned candidate to a final state that the budget (default: the task's) has room for. They come
    in the order of the plan, and after them the models of earlier epochs. Embedded ones are trained one after the
    other, since they share this machine's cores; those that train elsewhere side by side, or with `here_only` are
    left as they are."""
    budget = budget or budget_of(config, dataset.task)
    ledger = Ledger(store, planned, budget)
    done = {one.id: one for one in estimated(store, config, dataset, planned, models)}
    ledger.note(store)
    bench = _Bench(store.path, config, dataset, models, ledger, _one_by_one(progress))
    open_ones = [one for one in done.values() if not (here_only and is_remote(config, one))]
    while open_ones:
        done |= bench.work(open_ones)
        # What was refused may fit now, if others have cost less than expected.
        open_ones = [one for one in open_ones if done[one.id].state is FineTuneState.CREATED]
        open_ones = [one for one in open_ones if ledger.refusal(store, done[one.id]) is None]
    ledger.note(store)
    return [done[one.id] for one in planned] + [part for one in planned for part in _parts(store, done[one.id])]


def _one_by_one(progress: Progress) -> Progress:
    lock = threading.Lock()

    def told(finetune: FineTune) -> None:
        with lock:
            progress(finetune)

    return told


class _Bench:
    """Where candidates are brought to their end: what each of them needs."""

    def __init__(self, path: Path, config: Config, dataset: Dataset, models: Path, ledger: Ledger,
                 progress: Progress) -> None:  # fmt: skip
        self._path, self._config, self._dataset, self._models = path, config, dataset, models
        self._ledger, self._progress = ledger, progress

    def work(self, open_ones: Sequence[FineTune]) -> dict[str, FineTune]:
        """Each candidate by its id, as it ended."""
        self.admit(open_ones)
        with ThreadPoolExecutor(self._config.jobs.parallel, thread_name_prefix="finetune") as pool:
            waiting = {f.id: pool.submit(self.one, f) for f in open_ones if is_remote(self._config, f)}
            done = {f.id: self.one(f) for f in open_ones if f.id not in waiting}
            return done | {key: future.result() for key, future in waiting.items()}

    def one(self, finetune: FineTune) -> FineTune:
        """Bring one candidate to a final state. Two processes that want the same one wait for each other, since it
        must not be started twice at a provider."""
        store = SqliteStore(self._path)  # a connection belongs to one thread

        def save(changed: FineTune) -> None:
            store.save_finetune(changed)
            self._progress(changed)
            self._ledger.note(store, at_least=1.0)

        try:
            with one_at_a_time(self._path.parent / "locks" / f"{finetune.id}.lock", wait=True):
                (now,) = store.finetunes("id = ?", [finetune.id])
                if is_reserved(now) and (reason := self._ledger.refusal(store, now)):
                    now = now.but(state=FineTuneState.CREATED, error=reason)
                    save(now)
                if now.state is FineTuneState.CREATED:
                    return now
                trainer = build(self._config, now.trainer, self._models, watch(self._ledger, store, now.id))
                ended = _trained(now, trainer, self._dataset, save)
                marker(self._path.parent, now.id).unlink(missing_ok=True)
                for part in checkpoints(ended):
                    store.save_finetune(part)
                return ended
        finally:
            store.close()

    def admit(self, wanted: Sequence[FineTune]) -> None:
        """Reserve in the budget what the candidates are expected to cost, in the order of the plan, before any of
        them starts; those that have no room stay as they are, with the reason."""
        store = SqliteStore(self._path)
        try:
            with one_at_a_time(self._path.parent / "locks" / f"{self._ledger.id}.lock", wait=True):
                for each in wanted:
                    (now,) = store.finetunes("id = ?", [each.id])
                    now = _still_there(now, self._models, store.save_finetune)
                    if now.state is FineTuneState.CREATED:
                        self._reserve(store, now)
        finally:
            store.close()

    def _reserve(self, store: SqliteStore, finetune: FineTune) -> None:
        reason = self._ledger.refusal(store, finetune)
        if reason is None:
            store.save_finetune(finetune.but(state=FineTuneState.RUNNING, error=None))
        else:
            finetune = finetune.but(error=reason)
            store.save_finetune(finetune)
            self._progress(finetune)


def _parts(store: SqliteStore, finetune: FineTune) -> list[FineTune]:
    ids = {part.id for part in checkpoints(finetune)}
    return [one for one in store.finetunes("dataset = ?", [finetune.dataset]) if one.id in ids]


class Elsewhere:
    """Candidates that train at a provider while this process does other things. Threads that a killed or ended
    process takes along: what they do is resumed from the store."""

    def __init__(self) -> None:
        self._threads: dict[str, threading.Thread] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._places: threading.Semaphore | None = None

    def working(self, finetune_id: str) -> bool:
        thread = self._threads.get(finetune_id)
        return thread is not None and thread.is_alive()

    def start(self, store: SqliteStore, config: Config, dataset: Dataset, planned: Sequence[FineTune],
              models: Path) -> None:  # fmt: skip
        """Work on the candidates of a sweep that train elsewhere, except on those where that is being done."""
        places = self._places = self._places or threading.Semaphore(config.jobs.parallel)
        fresh = Ledger(store, planned, budget_of(config, dataset.task))
        ledger = self._ledgers.setdefault(fresh.id, fresh)
        bench = _Bench(store.path, config, dataset, models, ledger, lambda saved: None)

        def work(finetune: FineTune) -> None:
            try:
                with places:
                    bench.one(finetune)
            except UnpromptError as error:  # tried again with the next turn
                log.error("fine-tune %s: %s", finetune.id, error)

        wanted = [one for one in planned if is_remote(config, one) and is_open(one) and not self.working(one.id)]
        bench.admit(wanted)
        for finetune in wanted:
            thread = threading.Thread(target=work, args=[finetune], name=finetune.id, daemon=True)
            self._threads[finetune.id] = thread
            thread.start()


def is_reserved(finetune: FineTune) -> bool:
    """Whether it has a place in the budget, and has not begun."""
    return finetune.state is FineTuneState.RUNNING and not finetune.stage


def is_open(finetune: FineTune) -> bool:
    """Whether there is something to do for it now: not over, not waiting for a person, not beyond the budget."""
    refused = finetune.state is FineTuneState.CREATED and finetune.error
    return not finetune.state.final and finetune.state is not FineTuneState.WAITING and not refused


def _still_there(finetune: FineTune, models: Path, save: Progress) -> FineTune:
    """The candidate; to be trained again when its model can no longer be used."""
    if finetune.state is not FineTuneState.SUCCEEDED or _is_there(finetune, models):
        return finetune
    finetune = finetune.but(state=FineTuneState.CREATED, stage="", upstream=None, model=None)
    save(finetune)
    return finetune


def _is_there(finetune: FineTune, models: Path) -> bool:
    """Whether the model can still be used; one that trained elsewhere is kept there."""
    if finetune.upstream != LOCAL:
        return True
    try:
        EmbeddedModel.load(models, finetune.model or "")
    except TaskError:
        return False
    return True


def _trained(finetune: FineTune, trainer: Trainer, dataset: Dataset, save: Progress) -> FineTune:
    """The candidate in a final state. A trainer that fails in a way of its own costs only this candidate."""
    if finetune.state.final:
        return finetune
    latest, expected = finetune, finetune.metrics

    def keep(changed: FineTune) -> None:
        nonlocal latest
        latest = settled(changed.but(metrics=expected | changed.metrics))
        save(latest)

    try:
        ended = trainer.run(finetune, dataset, keep)
        if ended.state is not latest.state:
            keep(ended)
    except StoreError:
        raise  # how far it got cannot be noted either
    except Stopped as stopped:
        cancel_there(latest, trainer, str(stopped), keep)
    except Exception as error:
        log.exception("fine-tune %s", finetune.id)
        keep(latest.but(state=FineTuneState.FAILED, error=f"{type(error).__name__}: {error}"[:500]))
    return latest


# --- cancelling, and models that a person made ------------------------------------------------------------


def cancel_there(finetune: FineTune, trainer: Trainer, reason: str, save: Progress) -> None:
    """Cancel what has been started, and save how it ended. While the service gives no answer it counts as
    running: with the next run it is tried again."""
    if not isinstance(trainer, Cancelling):
        save(finetune.but(state=FineTuneState.CANCELLED, error=reason))
        return
    for tried in range(CANCEL_TRIES):
        time.sleep(min(2.0**tried - 1, 30.0))
        try:
            ended = trainer.cancel(finetune)
        except UpstreamError as error:
            log.warning("fine-tune %s: %s", finetune.id, error)
            continue
        if ended.state is FineTuneState.CANCELLED or not ended.state.final:
            ended = ended.but(state=FineTuneState.CANCELLED, error=reason)
        save(ended)
        return
    save(finetune.but(error=f"{reason}; not cancelled yet, the service gives no answer"))


def ask_to_cancel(store: SqliteStore, finetune: FineTune) -> None:
    """Have whoever is at this candidate cancel it; waits for nobody."""
    file = marker(store.path.parent, finetune.id)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def cancel(store: SqliteStore, config: Config, planned: Sequence[FineTune], models: Path,
           progress: Progress = lambda finetune: None) -> list[FineTune]:  # fmt: skip
    """Cancel the candidates that are not over, and wait until they are; the ones that another process is at, by
    asking it to."""
    folder = store.path.parent
    for finetune in planned:
        ask_to_cancel(store, finetune)
    ended = []
    for finetune in planned:
        with one_at_a_time(folder / "locks" / f"{finetune.id}.lock", wait=True):
            (now,) = store.finetunes("id = ?", [finetune.id])
            if not now.state.final:
                trainer = build(config, now.trainer, models)
                cancel_there(now, trainer, CANCELLED, store.save_finetune)
                (now,) = store.finetunes("id = ?", [finetune.id])
            marker(folder, finetune.id).unlink(missing_ok=True)
        progress(now)
        ended.append(now)
    return ended


def register(store: SqliteStore, config: Config, task: str, model: str, finetune_id: str = "") -> FineTune:
    """Note the model that a person made from exported files; `finetune_id`, or its beginning, when several wait.

    Raises:
        TaskError: none waits, or it is not clear which.
    """
    waiting = [
        one for one in store.finetunes("task = ? AND state = 'waiting'", [task]) if one.id.startswith(finetune_id)
    ]
    if len(waiting) != 1:
        known = ", ".join(one.id for one in waiting) or "none"
        raise TaskError(f"task {task}: which candidate is {model!r}? waiting for a model: {known}")
    upstream = config.trainers[waiting[0].trainer].provider
    done = waiting[0].but(state=FineTuneState.SUCCEEDED, stage="done", upstream=upstream, model=model, error=None)
    store.save_finetune(done)
    return done
