"""The engine in a thread, for programs that do not run on Trio. Everything here is on the real clock."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pytest
import trio
from anyio.from_thread import BlockingPortal

import trio_sd
from trio_sd import blocking
from trio_sd.blocking import BlockingManager, ManagerOptions, open_manager
from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.discovery.static import StaticConfig
from trio_sd.set_configs import SetConfigs
from trio_sd.snapshots import Update
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import group

PATIENCE: Final = 20.0
AT_ONCE: Final = Throttle(0, 0)


def static(*addresses: str) -> StaticConfig:
    return StaticConfig((group("0", *addresses),))


@dataclass(frozen=True)
class CountingConfig(DiscovererConfig):
    """Finds one target more every few milliseconds."""

    mechanism = "counting"

    def discoverer(self, options: DiscovererOptions) -> Counting:
        return Counting()


class Counting:
    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        number = 0
        while True:
            await updates.send([group(f"{number:06}", f"h:{number}")])
            number += 1
            await trio.sleep(0.002)


@dataclass(frozen=True)
class SilentConfig(DiscovererConfig):
    """Never finds anything out."""

    mechanism = "silent"

    def discoverer(self, options: DiscovererOptions) -> Silent:
        return Silent()


class Silent:
    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        await trio.sleep_forever()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    # Trio keeps its idle workers for ten seconds; they are daemons, and nobody's.
    left = [t.name for t in threading.enumerate() if t not in before and not t.name.startswith("Trio thread")]
    assert left == []


def addresses(update: Update, set_name: str = "web") -> list[str]:
    return [target["__address__"] for found in update.snapshot[set_name] for target in found.targets]


def test_a_synchronous_program_uses_the_engine() -> None:
    with open_manager({"web": [static("a:1")]}, throttle=AT_ONCE, name="mine") as manager:
        manager.wait_synced(timeout=PATIENCE)
        manager.wait_synced("web", timeout=PATIENCE)
        assert manager.unsynced() == ()
        assert manager.name == manager.statistics().name == "mine"
        assert "mine" in repr(manager)
        assert [found.source for found in manager.snapshot()["web"]] == ["0"]
        with manager.subscribe(name="s") as updates:
            first = next(updates)
            assert addresses(first) == ["a:1"]
            assert list(first.changes) == ["web"]
            assert [one.name for one in manager.statistics().subscriptions] == ["s"]
            manager.apply_config({"web": [static("a:2")], "db": []}, restart="changed", timeout=PATIENCE)
            for update in updates:
                if addresses(update) == ["a:2"]:
                    break
        assert manager.statistics().subscriptions == ()
        manager.refresh(timeout=PATIENCE)
        (provider,) = manager.statistics().providers
        manager.pause(provider.name)
        assert manager.statistics().providers[0].state == "paused"
        manager.resume(provider.name)
        attempt = manager.statistics().providers[0].last_attempt
        assert attempt is not None
        assert 0 <= manager.current_time() - attempt < PATIENCE


def test_targets_after_relabeling() -> None:
    configs = SetConfigs({"web": [static("a:1")]})
    with open_manager(configs) as manager, manager.subscribe(relabel=True) as updates:
        while addresses(updates.receive(PATIENCE)) != ["a:1"]:
            pass


def test_timeouts() -> None:
    with open_manager({"web": [SilentConfig()]}, throttle=AT_ONCE) as manager:
        with pytest.raises(TimeoutError, match="not done within"):
            manager.wait_synced(timeout=0.01)
        with manager.subscribe() as updates:
            assert addresses(updates.receive(timeout=PATIENCE)) == []
            with pytest.raises(TimeoutError):
                updates.receive(timeout=0.01)
            manager.apply_config({"web": [static("a:1")]})
            while addresses(updates.receive(timeout=PATIENCE)) != ["a:1"]:
                pass  # nothing was missed


def test_what_the_engine_refuses_is_raised_in_the_caller() -> None:
    with pytest.raises(ValueError, match="warm_up, grace"), open_manager(grace=-1.0):
        pass
    with open_manager() as manager:
        with pytest.raises(KeyError):
            manager.wait_synced("nonsense")
        with pytest.raises(KeyError, match="has no provider x"):
            manager.pause("x")
        nonsense: Any = {"web": ["nonsense"]}
        with pytest.raises(TypeError, match="a set consists of"):
            manager.apply_config(nonsense)


def test_an_exception_of_the_block_comes_out_as_it_is() -> None:
    error = LookupError("mine")
    with (  # noqa: PT012
        pytest.raises(LookupError) as caught,
        open_manager({"web": [CountingConfig()]}) as manager,
        manager.subscribe() as updates,
    ):
        next(updates)
        raise error
    assert caught.value is error


def test_a_closed_manager_says_so() -> None:
    with open_manager({"web": [static("a:1")]}) as manager, manager.subscribe() as updates:
        next(updates)
    calls: list[Callable[[], object]] = [
        manager.snapshot,
        manager.statistics,
        manager.wait_synced,
        lambda: manager.apply_config({}),
        lambda: manager.subscribe().__enter__(),
        updates.receive,
    ]
    for call in calls:
        with pytest.raises(trio.ClosedResourceError):
            call()
    assert list(updates) == []


def test_other_threads_end_when_the_block_does() -> None:
    ready = threading.Barrier(4, timeout=PATIENCE)

    def iterate(manager: BlockingManager) -> int:
        with manager.subscribe(throttle=AT_ONCE) as updates:
            next(updates)
            ready.wait()
            return sum(1 for _ in updates)

    def wait(manager: BlockingManager) -> str:
        ready.wait()
        try:
            manager.wait_synced("never")
        except trio.ClosedResourceError:
            return "closed"
        return "synced"

    with ThreadPoolExecutor(3) as pool:
        with open_manager({"web": [CountingConfig()], "never": [SilentConfig()]}) as manager:
            counts = [pool.submit(iterate, manager) for _ in range(2)]
            waiting = pool.submit(wait, manager)
            ready.wait()
            time.sleep(0.05)
        assert all(count.result(PATIENCE) > 0 for count in counts)
        assert waiting.result(PATIENCE) == "closed"


def test_other_threads_end_when_the_block_fails() -> None:
    entered = threading.Event()

    def iterate(manager: BlockingManager) -> str:
        with manager.subscribe() as updates:
            for _ in updates:
                entered.set()
        return "ended"

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(LookupError), open_manager({"web": [static("a:1")]}) as manager:  # noqa: PT012
            done = pool.submit(iterate, manager)
            assert entered.wait(PATIENCE)
            raise LookupError
        assert done.result(PATIENCE) == "ended"


def test_updates_are_used_in_many_threads_while_the_engine_goes_on() -> None:
    """A state is looked at for the first time by several threads at once."""
    with (
        open_manager({"web": [CountingConfig()]}, throttle=AT_ONCE) as manager,
        ThreadPoolExecutor(4) as pool,
        manager.subscribe() as updates,
    ):
        for _, update in zip(range(100), updates, strict=False):
            looks = [pool.submit(addresses, update) for _ in range(4)]
            first, *others = [look.result(PATIENCE) for look in looks]
            assert all(other == first for other in others)
            assert first == [f"h:{n}" for n in range(len(first))]
            assert set(update.changes) <= {"web"}


@pytest.mark.parametrize("what", ["next", "wait_synced", "something else"])
def test_keyboard_interrupt_in_the_middle_of_a_wait(what: str) -> None:
    interrupting = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        open_manager({"web": [SilentConfig()]}) as manager,
        manager.subscribe(throttle=AT_ONCE) as updates,
    ):
        next(updates)
        interrupting.start()
        if what == "next":
            list(updates)
        elif what == "wait_synced":
            manager.wait_synced()
        else:
            time.sleep(PATIENCE)
    interrupting.join()


class BrokenLabeling:
    """Raises, which is the program's own mistake, and fatal."""

    def labeler(self) -> Any:
        raise ZeroDivisionError("a labeler")


def test_a_fatal_error_of_the_engine_comes_out_of_the_block() -> None:
    configs = SetConfigs({"web": [static("a:1")]}, {"web": BrokenLabeling()})
    with (
        pytest.raises(BaseExceptionGroup) as caught,
        open_manager(configs) as manager,
        manager.subscribe(relabel=True) as updates,
    ):
        list(updates)
    assert caught.group_contains(ZeroDivisionError, match="a labeler")


def test_the_options_are_those_of_the_engine() -> None:
    theirs = inspect.signature(trio_sd.open_manager).parameters
    assert list(ManagerOptions.__annotations__) == [name for name in theirs if name != "configs"]


# --- asyncio ---


def test_an_asyncio_program_uses_the_engine() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        with open_manager({"web": [static("a:1")]}, throttle=AT_ONCE) as manager:
            await asyncio.to_thread(manager.wait_synced, timeout=PATIENCE)
            with manager.subscribe() as updates:
                async for update in updates:
                    seen += addresses(update)
                    if "a:2" in seen:
                        break
                    await asyncio.to_thread(manager.apply_config, {"web": [static("a:2")]})
        return seen

    seen = asyncio.run(main())
    assert (seen[0], seen[-1]) == ("a:1", "a:2")


def test_a_cancelled_asyncio_task_waits_no_longer_and_misses_nothing() -> None:
    async def main() -> None:
        with open_manager({"web": [SilentConfig()]}, throttle=AT_ONCE) as manager, manager.subscribe() as updates:
            await anext(updates)
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(updates), 0.01)
            manager.apply_config({"web": [static("a:1")]})
            while addresses(await asyncio.wait_for(anext(updates), PATIENCE)) != ["a:1"]:
                pass

    asyncio.run(main())


def wait_delivered(manager: BlockingManager, more_than: int) -> int:
    """Return how many updates the only subscriber was handed by the engine, once that is more."""
    deadline = time.monotonic() + PATIENCE
    while (delivered := manager.statistics().subscriptions[0].delivered) <= more_than:
        assert time.monotonic() < deadline
    return delivered


def test_an_update_that_arrives_as_its_task_is_cancelled_comes_next() -> None:
    async def main() -> None:
        with (
            open_manager({"web": [CountingConfig()]}, throttle=AT_ONCE) as manager,
            manager.subscribe() as updates,
        ):
            known: set[str] = set()
            for _ in range(20):
                delivered = manager.statistics().subscriptions[0].delivered
                task = asyncio.ensure_future(anext(updates))
                await asyncio.sleep(0)  # now it waits
                wait_delivered(manager, delivered)  # while asyncio can't take notice
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                update = await asyncio.wait_for(anext(updates), PATIENCE)
                known |= {found.source for found in update.changes["web"].updated}
                assert known == {found.source for found in update.snapshot["web"]}

    asyncio.run(main())


def test_an_update_that_arrives_as_its_wait_is_interrupted_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_manager({"web": [static("a:1")]}) as manager, manager.subscribe() as updates:
        waited = Future.result

        def interrupt(future: Future[Any], timeout: float | None = None) -> Any:
            waited(future, timeout)
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(Future, "result", interrupt)
        with pytest.raises(KeyboardInterrupt):
            updates.receive(PATIENCE)
        assert set(updates.receive(PATIENCE).changes) == {"web"}  # the first one tells of all sets


def test_a_subscription_that_is_interrupted_as_it_is_opened_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_manager({"web": [static("a:1")]}) as manager:
        entered = BlockingPortal.start_task

        def interrupt(portal: BlockingPortal, *arguments: Any) -> Any:
            entered(portal, *arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(BlockingPortal, "start_task", interrupt)
        with pytest.raises(KeyboardInterrupt), manager.subscribe():
            pass
        deadline = time.monotonic() + PATIENCE
        while manager.statistics().subscriptions:
            assert time.monotonic() < deadline


def test_an_asyncio_iteration_ends_with_the_manager() -> None:
    async def main() -> int:
        async def iterate(manager: BlockingManager) -> int:
            count = 0
            with manager.subscribe() as updates:
                async for _ in updates:
                    count += 1
            return count

        with open_manager({"web": [static("a:1")]}) as manager:
            task = asyncio.create_task(iterate(manager))
            await asyncio.sleep(0.1)
        return await asyncio.wait_for(task, PATIENCE)

    assert asyncio.run(main()) >= 1


def test_the_module_says_how_it_is_used() -> None:
    assert blocking.__doc__ is not None
    assert "async for update in updates" in blocking.__doc__
