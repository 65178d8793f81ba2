"""The engine in a thread, for programs that do not run on Trio. Everything here is on the real clock."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from types import FrameType
from typing import Any, Final

import anyio
import pytest
import trio
import trio.testing

import trio_sd
from trio_sd import blocking
from trio_sd.blocking import BlockingManager, BlockingUpdates, ManagerOptions, open_manager
from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.discovery.static import StaticConfig
from trio_sd.set_configs import SetConfigs
from trio_sd.snapshots import Update
from trio_sd.subscription import Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import group

PATIENCE: Final = 20.0
HANGS: Final = 100.0
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
def a_hang_ends_the_tests() -> Iterator[None]:
    """Who waits for a lock that nobody releases can't be told to end; so the process does. ``-s`` shows where."""
    faulthandler.dump_traceback_later(HANGS, exit=True, file=2)
    yield
    faulthandler.cancel_dump_traceback_later()


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


# --- interrupts ---


class Interrupt:
    """Raises KeyboardInterrupt at the n-th point of this thread where CPython would look at signals.

    These are the beginning of each function of Python and the end of each one of C; jumps are left out.
    """

    def __init__(self, point: int) -> None:
        self._left = point

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_name not in ("__del__", "_remove"):  # can't raise
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt

    @property
    def came(self) -> bool:
        return self._left <= 0


def interrupted(point: int, do: Callable[[], object]) -> bool:
    """Do something and interrupt it at a point; return whether it has as many. All that was raised is let go."""
    interrupt = Interrupt(point)
    profile = sys.getprofile()
    gc.disable()  # what others have it call can't raise either
    try:
        sys.setprofile(interrupt)
        do()
    except KeyboardInterrupt:
        assert interrupt.came
    finally:
        sys.setprofile(profile)
        gc.enable()
    return interrupt.came


class Model:
    """What a consumer knows that believes in changes alone."""

    def __init__(self) -> None:
        self.groups: dict[str, TargetGroup] = {}
        self._revision = -1

    def apply(self, update: Update) -> None:
        assert update.revision > self._revision
        self._revision = update.revision
        changes = update.changes["web"]
        for found in changes.updated:
            self.groups[found.source] = found
        assert not changes.removed
        assert self.groups == {found.source: found for found in update.snapshot["web"]}


def test_wherever_a_wait_is_interrupted_no_update_is_lost() -> None:
    model = Model()
    with (
        open_manager({"web": [CountingConfig()]}, throttle=AT_ONCE) as manager,
        manager.subscribe() as updates,
    ):

        def receive() -> None:
            received.append(updates.receive(PATIENCE))

        for point in count(1):
            received: list[Update] = []
            came = interrupted(point, receive)
            for update in received or [updates.receive(PATIENCE)]:
                model.apply(update)
            assert len(updates._waits) <= 1
            if not came:
                break
        assert point > 20


def test_wherever_a_subscription_is_interrupted_it_is_not_left_behind() -> None:
    with open_manager({"web": [static("a:1")]}, throttle=AT_ONCE) as manager:

        def subscribe() -> None:
            with manager.subscribe() as updates:
                updates.receive(PATIENCE)

        for point in count(1):
            came = interrupted(point, subscribe)
            deadline = time.monotonic() + PATIENCE
            while manager.statistics().subscriptions:
                assert time.monotonic() < deadline
            if not came:
                break
        assert point > 50


def test_wherever_a_manager_is_interrupted_its_thread_ends() -> None:
    before = set(threading.enumerate())

    def use() -> None:
        with open_manager({"web": [static("a:1")]}) as manager, manager.subscribe() as updates:
            updates.receive(PATIENCE)

    for point in count(1):
        came = interrupted(point, use)
        left = [one for one in threading.enumerate() if one not in before and one.name == "trio-sd engine"]
        assert left == [], point
        if not came:
            break
    assert point > 100


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("times", range(1, 8))
def test_interrupted_again_and_again_while_leaving_it_ends(
    monkeypatch: pytest.MonkeyPatch, times: int, after: bool
) -> None:
    """Whatever is said to the engine is interrupted, before it is said or after."""
    say = trio.lowlevel.TrioToken.run_sync_soon
    main, left = threading.get_ident(), times

    def interrupt(token: trio.lowlevel.TrioToken, *arguments: Any, **options: Any) -> None:
        nonlocal left
        mine = threading.get_ident() == main and left > 0
        if after or not mine:
            say(token, *arguments, **options)
        if mine:
            left -= 1
            raise KeyboardInterrupt

    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        open_manager({"web": [static("a:1")]}) as manager,
        manager.subscribe() as updates,
    ):
        updates.receive(PATIENCE)
        monkeypatch.setattr(trio.lowlevel.TrioToken, "run_sync_soon", interrupt)
    # Each of the three blocks says two things if it is interrupted, the last one as often as it takes. What was said
    # before the interrupt came may have ended the engine meanwhile, and then there is nobody to say more to.
    assert left == 0 or (after and left < times)
    assert not [one for one in threading.enumerate() if one.name == "trio-sd engine"]


def test_its_thread_ends_though_nobody_gets_to_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    monkeypatch.setattr(blocking._Engine, "close", interrupt)
    with pytest.raises(KeyboardInterrupt), open_manager({"web": [static("a:1")]}):
        (engine,) = (one for one in threading.enumerate() if one not in before and one.name == "trio-sd engine")
    engine.join(PATIENCE)
    assert not engine.is_alive()


def test_interrupted_while_its_thread_starts_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    run = anyio.run
    starting = threading.Event()
    interrupting = threading.Timer(0, lambda: None)

    def start(*arguments: Any, **options: Any) -> Any:
        starting.set()
        assert interrupting.finished.wait(PATIENCE)
        return run(*arguments, **options)

    def interrupt() -> None:
        assert starting.wait(PATIENCE)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    interrupting = threading.Timer(0, interrupt)
    monkeypatch.setattr(anyio, "run", start)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt), open_manager({"web": [static("a:1")]}):
        pass
    interrupting.join()


def test_an_update_that_arrives_as_its_wait_is_interrupted_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_manager({"web": [static("a:1")]}) as manager, manager.subscribe() as updates:

        class Interrupting(SimpleQueue[Any]):
            def get(self, block: bool = True, timeout: float | None = None) -> Any:
                super().get(block, timeout)
                monkeypatch.undo()
                raise KeyboardInterrupt

        monkeypatch.setattr(blocking, "SimpleQueue", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            updates.receive(PATIENCE)
        assert set(updates.receive(PATIENCE).changes) == {"web"}  # the first one tells of all sets


async def test_a_wait_that_begins_after_its_caller_has_gone_takes_nothing() -> None:
    """Trio may run the caller's next wait first."""
    async with (
        trio_sd.open_manager({"web": [static("a:1")]}) as manager,
        manager.subscribe(throttle=AT_ONCE) as channel,
    ):
        updates = BlockingUpdates(blocking._Engine(), channel)
        gone, second, third, fourth = (blocking._Wait() for _ in range(4))
        gone.gone = True
        first = await updates._receive(second)
        await manager.apply_config({"web": [static("a:2")]})
        with pytest.raises(trio.ClosedResourceError):
            await updates._receive(gone)
        second.gone = True  # interrupted as well
        assert await updates._receive(third) is first
        third.taken = third.gone = True
        assert (await updates._receive(fourth)).revision > first.revision


async def test_a_wait_whose_caller_has_gone_makes_way() -> None:
    async with (
        trio_sd.open_manager({"web": [static("a:1")]}) as manager,
        manager.subscribe(throttle=AT_ONCE) as channel,
        trio.open_nursery() as nursery,
    ):
        await manager.wait_synced()
        await channel.receive()  # there is nothing more for now
        updates = BlockingUpdates(blocking._Engine(), channel)

        async def wait_in_vain() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await updates._receive(gone)

        gone, second = blocking._Wait(), blocking._Wait()
        nursery.start_soon(wait_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        gone.gone = True
        nursery.start_soon(manager.apply_config, {"web": [static("a:2")]})
        update = await updates._receive(second)
        assert (gone.update, second.update) == (None, update)
        assert updates._waits == [second]


async def test_of_several_updates_that_were_left_over_the_oldest_comes_first() -> None:
    async with (
        trio_sd.open_manager({"web": [CountingConfig()]}) as manager,
        manager.subscribe(throttle=AT_ONCE) as channel,
    ):
        updates = BlockingUpdates(blocking._Engine(), channel)
        waits = [blocking._Wait() for _ in range(3)]
        taken = [await updates._receive(wait) for wait in waits]
        for wait in reversed(waits):
            wait.gone = True
        again = []
        for _ in range(4):
            wait = blocking._Wait()
            again.append(await updates._receive(wait))
            wait.taken = wait.gone = True
        assert again[:3] == taken
        assert again[3].revision > taken[2].revision


# An interrupt may hit a finalizer, or what others have the garbage collector call. CPython tells of it in this way.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_storm_of_interrupts_loses_no_update() -> None:
    model, rng = Model(), random.Random(7)
    interrupts = 0

    def interrupt(_: int, __: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        with (
            open_manager({"web": [CountingConfig()]}, throttle=AT_ONCE) as manager,
            manager.subscribe() as updates,
        ):
            until = time.monotonic() + 3
            while time.monotonic() < until:
                update = None
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.choice([5e-5, 3e-4, 3e-3]) * rng.random() + 1e-6)
                    update = updates.receive(PATIENCE)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                if update is not None:
                    model.apply(update)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert interrupts > 100
    assert len(model.groups) > 100


def test_what_is_asked_for_as_the_manager_closes_ends() -> None:
    def ask(manager: BlockingManager, ready: threading.Barrier) -> None:
        ready.wait()
        with pytest.raises(trio.ClosedResourceError):  # noqa: PT012
            while True:
                manager.snapshot()
                with manager.subscribe() as updates:
                    next(updates, None)

    for _ in range(20):
        ready = threading.Barrier(4, timeout=PATIENCE)
        with ThreadPoolExecutor(3) as pool:
            with open_manager({"web": [static("a:1")]}, throttle=AT_ONCE) as manager:
                asking = [pool.submit(ask, manager, ready) for _ in range(3)]
                ready.wait()
            for one in asking:
                one.result(PATIENCE)


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


def test_a_storm_of_cancellations_loses_no_update_and_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> int:
        model, rng = Model(), random.Random(7)
        cancelled = 0
        with (
            open_manager({"web": [CountingConfig()]}, throttle=AT_ONCE) as manager,
            manager.subscribe() as updates,
        ):
            until = time.monotonic() + 3
            while time.monotonic() < until:
                task = asyncio.ensure_future(anext(updates))
                await asyncio.sleep(rng.choice([0, 1e-4, 1e-3, 3e-3]) * rng.random())
                task.cancel()
                try:
                    model.apply(await task)
                except asyncio.CancelledError:
                    cancelled += 1
        assert len(model.groups) > 100
        return cancelled

    assert asyncio.run(main()) > 100
    assert caplog.records == []


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
