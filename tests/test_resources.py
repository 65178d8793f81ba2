"""What several discoverers share: open for the first, closed after the last, and nothing left whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.resources import Resources
from trio_sd.testing import CancelAfter


class Thing:
    """A resource that tells what happens to it. Each opening has a number."""

    def __init__(self, *, opening: float = 0, closing: float = 0) -> None:
        self.opened = 0
        self.closed = 0
        self.fail: Exception | None = None
        self.break_it = trio.Event()
        self.breaking: Exception = OSError("it broke")
        self._opening = opening
        self._closing = closing

    @property
    def is_open(self) -> bool:
        return self.opened > self.closed

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        await trio.sleep(self._opening)
        if self.fail is not None:
            raise self.fail
        assert not self.is_open, "never open twice at a time"
        self.opened += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live)
                yield self.opened
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self._closing)
            self.closed += 1

    async def _live(self) -> None:
        await self.break_it.wait()
        raise self.breaking


@asynccontextmanager
async def resources() -> AsyncIterator[Resources]:
    """Yield resources whose nursery is checked to be empty at the end, without having been cancelled."""
    async with trio.open_nursery() as nursery:
        made = Resources(nursery)
        yield made
        assert not nursery.child_tasks
        assert made.statistics() == {}


async def test_shared_resources_contract_open_for_the_first_and_closed_after_the_last(
    autojump_clock: MockClock,
) -> None:
    thing = Thing(closing=1)
    async with resources() as shared:
        async with shared.use("k", thing.open) as first:
            async with shared.use("k", thing.open) as second:
                assert (first, second) == (1, 1)
                assert shared.statistics() == {"k": 2}
            assert thing.is_open
            assert trio.current_time() == 0, "only the last one waits for the end"
            assert shared.statistics() == {"k": 1}
        assert thing.closed == 1, "the last one to leave has waited until it was closed"
        assert trio.current_time() == 1


async def test_a_resource_is_opened_anew_after_it_was_closed(autojump_clock: MockClock) -> None:
    thing = Thing()
    async with resources() as shared:
        for number in range(1, 4):
            async with shared.use("k", thing.open) as value:
                assert value == number
            assert thing.closed == number


async def test_resources_of_different_keys_do_not_meet(autojump_clock: MockClock) -> None:
    one, other = Thing(), Thing()
    async with resources() as shared:
        async with shared.use(("zk", 1), one.open), shared.use(("zk", 2), other.open):
            assert shared.statistics() == {"('zk', 1)": 1, "('zk', 2)": 1}
        assert (one.closed, other.closed) == (1, 1)


class Secretive:
    """A key that does not show all of what it is, as one with a password."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


async def test_resources_of_keys_with_the_same_text_are_told_apart(autojump_clock: MockClock) -> None:
    text = "zookeeper zk:2181 as me"
    keys = [Secretive(text), Secretive(text), Secretive(f"{text} #2"), Secretive(text)]
    async with resources() as shared, AsyncExitStack() as stack:
        for number, key in enumerate(keys, 1):
            thing = Thing()
            for _ in range(number):
                await stack.enter_async_context(shared.use(key, thing.open))
            if number == 2:
                assert shared.statistics() == {text: 1, f"{text} #2": 2}
        found = shared.statistics()
        assert (found[text], found[f"{text} #2"]) == (1, 2)
        assert sorted(found.values()) == [1, 2, 3, 4]
        assert all(name.startswith(text) for name in found)


async def test_two_sets_of_resources_do_not_meet(autojump_clock: MockClock) -> None:
    one, other = Thing(), Thing()
    async with resources() as first, resources() as second:  # noqa: SIM117
        async with first.use("k", one.open), second.use("k", other.open):
            assert (one.opened, other.opened) == (1, 1)


async def test_many_share_one_opening(autojump_clock: MockClock) -> None:
    thing = Thing(opening=1, closing=1)
    values: list[int] = []
    async with resources() as shared:

        async def user(stay: float) -> None:
            async with shared.use("k", thing.open) as value:
                values.append(value)
                await trio.sleep(stay)

        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(user, number)
        assert values == [1] * 100
        assert (thing.opened, thing.closed) == (1, 1)
        assert trio.current_time() == 101


async def test_the_first_user_may_leave_first(autojump_clock: MockClock) -> None:
    thing = Thing()
    async with resources() as shared:

        async def user(start: float, stay: float) -> None:
            await trio.sleep(start)
            async with shared.use("k", thing.open) as value:
                assert value == 1
                await trio.sleep(stay)
                assert thing.is_open

        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(user, 0, 2)
                nursery.start_soon(user, 1, 5)
                nursery.start_soon(user, 5, 3)
        assert (thing.opened, thing.closed) == (1, 1)


async def test_who_comes_while_it_is_being_closed_waits_and_gets_a_new_one(autojump_clock: MockClock) -> None:
    thing = Thing(closing=5)
    got: list[tuple[float, int]] = []
    async with resources() as shared:

        async def user(start: float) -> None:
            await trio.sleep(start)
            async with shared.use("k", thing.open) as value:
                got.append((trio.current_time(), value))
                await trio.sleep(1)

        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(user, 0)
                nursery.start_soon(user, 2)
                nursery.start_soon(user, 3)
        assert got == [(0, 1), (6, 2), (6, 2)]
        assert (thing.opened, thing.closed) == (2, 2)


async def test_last_leaver_and_new_user_in_one_tick(autojump_clock: MockClock) -> None:
    thing = Thing()
    for _ in range(20):  # in whichever order the scheduler takes them
        async with resources() as shared:
            go = trio.Event()

            async def leaver(shared: Resources = shared, go: trio.Event = go) -> None:
                async with shared.use("k", thing.open):
                    await go.wait()

            async def comer(shared: Resources = shared, go: trio.Event = go) -> None:
                await go.wait()
                async with shared.use("k", thing.open):
                    assert thing.is_open
                    await wait_all_tasks_blocked()
                    assert thing.is_open

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(leaver)
                    nursery.start_soon(comer)
                    await wait_all_tasks_blocked()
                    go.set()
        assert not thing.is_open


async def test_an_opening_that_fails_fails_all_who_wait_and_the_next_one_tries_again(
    autojump_clock: MockClock,
) -> None:
    thing = Thing(opening=1)
    thing.fail = OSError("no such ensemble")
    errors: list[Exception] = []
    async with resources() as shared:

        async def user() -> None:
            with pytest.raises(OSError, match="no such ensemble") as caught:
                async with shared.use("k", thing.open):
                    raise AssertionError("never here")
            errors.append(caught.value)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(user)
            assert len(errors) == 3
            assert shared.statistics() == {}
            thing.fail = None
            async with shared.use("k", thing.open) as value:
                assert value == 1


async def test_a_resource_that_breaks_cancels_its_users_and_raises_in_them(autojump_clock: MockClock) -> None:
    thing = Thing(closing=1)
    told: list[float] = []
    async with resources() as shared:

        async def user() -> None:
            with pytest.raises(OSError, match="it broke"):
                async with shared.use("k", thing.open):
                    await trio.sleep_forever()
            told.append(trio.current_time())

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(user)
                await wait_all_tasks_blocked()
                thing.break_it.set()
            assert told == [1, 1, 1]
            thing.break_it = trio.Event()
            async with shared.use("k", thing.open) as value:
                assert value == 2, "the next user gets a new one"


async def test_a_user_that_does_not_wait_for_anything_is_told_at_its_end_that_it_broke(
    autojump_clock: MockClock,
) -> None:
    thing = Thing()
    async with resources() as shared:
        with pytest.raises(OSError, match="it broke"):  # noqa: PT012
            async with shared.use("k", thing.open):
                thing.break_it.set()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()


async def test_an_error_of_the_body_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    thing = Thing(closing=1)
    error = ValueError("mine")
    async with resources() as shared:
        with pytest.raises(ValueError, match="mine") as caught:
            async with shared.use("k", thing.open):
                raise error
        assert caught.value is error
        assert (thing.closed, trio.current_time()) == (1, 1)


async def test_one_users_error_is_not_the_others(autojump_clock: MockClock) -> None:
    thing = Thing()
    async with resources() as shared, shared.use("k", thing.open):
        with pytest.raises(ZeroDivisionError):
            async with shared.use("k", thing.open):
                raise ZeroDivisionError
        await wait_all_tasks_blocked()
        assert thing.is_open


async def test_an_error_while_closing_does_not_end_the_others(autojump_clock: MockClock) -> None:
    @asynccontextmanager
    async def opener() -> AsyncIterator[None]:
        yield
        raise AssertionError("not reached: a cancelled body raises")

    @asynccontextmanager
    async def bad() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise OSError("can't close")

    async with resources() as shared, shared.use("good", opener):
        async with shared.use("bad", bad):
            pass
        await wait_all_tasks_blocked()
        assert shared.statistics() == {"good": 1}


class BadlyCancelled:
    """A resource of two tasks, one of which fails as it is cancelled."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bad)
            nursery.start_soon(trio.sleep_forever)
            yield

    async def _bad(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("on the way out")


async def test_errors_mixed_with_cancellation_at_the_last_leave_do_not_end_the_others(
    autojump_clock: MockClock,
) -> None:
    async with resources() as shared, shared.use("k", BadlyCancelled().open):
        await wait_all_tasks_blocked()


async def test_errors_mixed_with_cancellation_at_the_end_of_all_stay_inside(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        shared = Resources(nursery)

        async def user() -> None:
            async with shared.use("k", BadlyCancelled().open):
                await trio.sleep_forever()

        nursery.start_soon(user)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


# --- cancellation everywhere ---


Opener = Callable[[], AbstractAsyncContextManager[int]]


@pytest.mark.parametrize(("opening", "closing"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("others", [False, True], ids=["alone", "with another"])
async def test_cancelled_at_any_step_nothing_is_left(
    opening: float, closing: float, others: bool, autojump_clock: MockClock
) -> None:
    completed = False
    steps = 0
    while not completed:
        steps += 1
        thing = Thing(opening=opening, closing=closing)
        async with resources() as shared:
            leave = trio.Event()

            async def other(shared: Resources = shared, opener: Opener = thing.open, leave: trio.Event = leave) -> None:
                async with shared.use("k", opener):
                    await leave.wait()

            async with trio.open_nursery() as nursery:
                if others:
                    nursery.start_soon(other)
                    await trio.sleep(0.5)
                with trio.fail_after(1000), trio.CancelScope() as scope, CancelAfter(steps, scope):
                    async with shared.use("k", thing.open):
                        await trio.lowlevel.checkpoint()
                completed = not scope.cancel_called
                if others:
                    await trio.sleep(2)
                    assert thing.is_open, "what another uses stays open"
                    assert dict(shared.statistics()) == {"k": 1}
                    leave.set()
            assert not thing.is_open
            assert shared.statistics() == {}
            async with shared.use("k", thing.open):  # and it can be used again
                assert thing.is_open
    assert steps > 2


async def test_cancelled_while_waiting_for_the_close_of_the_one_before(autojump_clock: MockClock) -> None:
    thing = Thing(closing=5)
    async with resources() as shared:

        async def leaver() -> None:
            async with shared.use("k", thing.open):
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaver)
            await trio.sleep(2)
            with trio.move_on_after(1) as scope:
                async with shared.use("k", thing.open):
                    raise AssertionError("never here")
            assert scope.cancelled_caught
            assert trio.current_time() == 3
        assert (thing.opened, thing.closed) == (1, 1)


async def test_shared_resources_contract_they_end_with_their_nursery(autojump_clock: MockClock) -> None:
    thing = Thing(closing=1)
    before = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        shared = Resources(nursery)

        async def user() -> None:
            async with shared.use("k", thing.open):
                await trio.sleep_forever()

        nursery.start_soon(user)
        await wait_all_tasks_blocked()
        assert thing.is_open
        nursery.cancel_scope.cancel()
    assert (thing.opened, thing.closed) == (1, 1)
    assert shared.statistics() == {}
    assert trio.lowlevel.current_statistics().tasks_living == before
