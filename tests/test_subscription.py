"""One subscriber: the newest state at the moment of taking, at the pace of the throttle."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.snapshots import SetChanges, Update
from trio_sd.store import TargetStore
from trio_sd.subscription import Subscribers, Subscription, SubscriptionStatistics, Throttle
from trio_sd.targets import ADDRESS_LABEL
from trio_sd.testing import group

AT_ONCE = Throttle(0, 0)


class Board:
    """A store of one set and one provider, with subscriptions to it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.subscribers = Subscribers()
        self.ended = trio.Event()
        self.store = TargetStore(self.subscribers.notify)
        self.store.apply({"a": ["p"]}, restarted=["p"], deadline=0)
        self.change(0)

    def subscribe(self, throttle: Throttle = AT_ONCE, name: str = "") -> Subscription:
        subscription = self.subscribers.add(self.store, throttle, name)
        self.nursery.start_soon(self._run, subscription)
        return subscription

    async def _run(self, subscription: Subscription) -> None:
        try:
            await subscription.run()
        finally:
            self.subscribers.remove(subscription)
            self.ended.set()

    def change(self, value: int) -> None:
        self.store.report("p", [group("x", str(value))])


def value_of(update: Update) -> int:
    (found,) = update.snapshot["a"]
    return int(found.targets[0][ADDRESS_LABEL])


@asynccontextmanager
async def board() -> AsyncIterator[Board]:
    async with trio.open_nursery() as nursery:
        yield Board(nursery)
        nursery.cancel_scope.cancel()


class Steps(trio.abc.Instrument):
    """Counts the steps of every task but the one that made it."""

    def __init__(self) -> None:
        self.count = 0
        self._mine = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is not self._mine


async def test_subscription_contract_first_delivery_is_at_once_with_the_current_state(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        b.change(7)
        subscription = b.subscribe(Throttle(5, 5))
        with trio.fail_after(1):
            update = await subscription.updates.receive()
        assert trio.current_time() == 0
        assert value_of(update) == 7
        assert update.revision == b.store.revision
        assert update.changes == {"a": SetChanges((group("x", "7"),))}


async def test_first_delivery_of_a_store_without_sets(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        subscription = Subscribers().add(TargetStore(), AT_ONCE, "")
        nursery.start_soon(subscription.run)
        with trio.fail_after(1):
            update = await subscription.updates.receive()
        assert (update.revision, dict(update.snapshot), dict(update.changes)) == (0, {}, {})
        nursery.cancel_scope.cancel()


async def test_many_changes_melt_into_one(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe()
        with trio.fail_after(1):
            await subscription.updates.receive()
            for value in range(1, 101):
                b.change(value)
            update = await subscription.updates.receive()
        assert value_of(update) == 100
        assert update.changes == {"a": SetChanges((group("x", "100"),))}
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            subscription.updates.receive_nowait()


async def test_changes_between_ticks_melt_too_when_nobody_takes(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe()
        for value in range(1, 20):
            b.change(value)
            await wait_all_tasks_blocked()
        assert value_of(subscription.updates.receive_nowait()) == 19
        await wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            subscription.updates.receive_nowait()


async def test_a_change_brings_the_offer_under_way_up_to_date_in_the_same_tick(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe(Throttle(1, 4))
        assert value_of(await subscription.updates.receive()) == 0
        b.change(1)
        await trio.sleep(2)  # now 1 is on offer
        before = Steps()
        trio.lowlevel.add_instrument(before)
        for value in range(2, 9):
            b.change(value)
        await trio.sleep(100)
        b.change(9)
        update = subscription.updates.receive_nowait()
        assert before.count == 0  # nothing runs for one who is away
        trio.lowlevel.remove_instrument(before)
        assert (value_of(update), update.revision) == (9, b.store.revision)
        assert update.changes == {"a": SetChanges((group("x", "9"),))}
        await wait_all_tasks_blocked()
        found = subscription.statistics()
        assert (found.delivered, found.skipped, found.lag, found.behind_since) == (2, 8, 0, None)
        b.change(10)  # it was away for long: the pace begins anew
        began = trio.current_time()
        assert value_of(await subscription.updates.receive()) == 10
        assert trio.current_time() - began == pytest.approx(1)


async def test_no_update_is_delivered_before_the_pause_is_over_however_changes_and_the_clock_meet(
    autojump_clock: MockClock,
) -> None:
    for _ in range(100):  # Trio runs what is due in any order
        async with board() as b:
            subscription = b.subscribe(Throttle(1, 5))
            times: list[float] = []

            async def consume(subscription: Subscription, times: list[float]) -> None:
                async for _ in subscription.updates:
                    times.append(trio.current_time())  # noqa: PERF401 (a loop of its own)

            async def change(b: Board, began: float) -> None:
                await trio.sleep_until(began + 1)
                b.change(2)
                b.change(3)

            began = trio.current_time()
            b.nursery.start_soon(consume, subscription, times)
            await trio.sleep(0.5)
            b.change(1)
            b.nursery.start_soon(change, b, began)
            await trio.sleep(20)
            assert all(later - earlier >= 0.999 for earlier, later in itertools.pairwise(times)), times


async def test_what_is_withdrawn_is_not_to_be_had_in_the_same_tick(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe()
        await wait_all_tasks_blocked()
        subscription.withdraw()
        with pytest.raises(trio.WouldBlock):
            subscription.updates.receive_nowait()
        b.change(1)
        with trio.fail_after(1):
            assert value_of(await subscription.updates.receive()) == 1


async def test_a_change_right_after_an_offer_was_taken_comes_next(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe()
        await wait_all_tasks_blocked()
        taken = subscription.updates.receive_nowait()
        b.change(1)  # in the same tick: the subscription does not know yet that its offer was taken
        assert value_of(taken) == 0
        with trio.fail_after(1):
            update = await subscription.updates.receive()
        assert value_of(update) == 1
        assert update.changes == {"a": SetChanges((group("x", "1"),))}
        await wait_all_tasks_blocked()
        assert subscription.statistics().delivered == 2


async def test_a_waiting_consumer_gets_a_change_at_once_and_the_others_of_its_tick_in_one(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        subscription = b.subscribe()
        got: list[int] = []

        async def consume() -> None:
            async for update in subscription.updates:
                got.append(value_of(update))  # noqa: PERF401 (seen while it grows)

        b.nursery.start_soon(consume)
        await wait_all_tasks_blocked()
        b.change(1)
        b.change(2)
        b.change(3)
        await wait_all_tasks_blocked()
        b.change(4)
        await wait_all_tasks_blocked()
        assert got == [0, 1, 3, 4]
        assert subscription.statistics().delivered == 4
        assert subscription.statistics().skipped == 1


async def test_a_change_during_the_pause_is_in_what_comes_after_it(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe(Throttle(1, 1))
        with trio.fail_after(10):
            await subscription.updates.receive()
            b.change(1)
            await trio.sleep(0.5)
            b.change(2)
            update = await subscription.updates.receive()
            assert value_of(update) == 2
            assert trio.current_time() == 1
            with trio.move_on_after(5):
                await subscription.updates.receive()
                raise AssertionError("delivered twice")


async def test_slow_consumer_skips_revisions_but_never_sees_one_twice_nor_goes_back(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        subscription = b.subscribe()
        seen: list[tuple[int, int]] = []

        async def consume() -> None:
            async for update in subscription.updates:
                seen.append((update.revision, value_of(update)))
                await trio.sleep(len(seen) % 4)

        b.nursery.start_soon(consume)
        for value in range(1, 201):
            b.change(value)
            await trio.sleep((value % 5) / 10)
        await trio.sleep(10)
        revisions = [revision for revision, _ in seen]
        assert revisions == sorted(set(revisions))
        assert seen[-1] == (b.store.revision, 200)
        assert 10 < len(seen) < 150
        assert subscription.statistics().delivered == len(seen)


async def test_slow_consumer_receives_what_is_true_when_it_comes_back(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe(Throttle())
        with trio.fail_after(1000):
            await subscription.updates.receive()
            for value in range(1, 100):
                b.change(value)
                await trio.sleep(1)
            assert value_of(await subscription.updates.receive()) == 99


async def test_slow_consumer_delays_nobody(autojump_clock: MockClock) -> None:
    async with board() as b:
        stuck = [b.subscribe(name=f"stuck {n}") for n in range(5)]
        fast = b.subscribe()
        with trio.fail_after(1):
            for value in range(1, 50):
                b.change(value)
                assert value_of(await fast.updates.receive()) == value
        assert trio.current_time() == 0
        await wait_all_tasks_blocked()
        assert [value_of(subscription.updates.receive_nowait()) for subscription in stuck] == [49] * 5


async def test_a_consumer_that_closes_while_something_is_on_offer_ends_the_subscription(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        subscription = b.subscribe()
        await wait_all_tasks_blocked()
        subscription.updates.close()
        with trio.fail_after(1):
            await b.ended.wait()
        assert list(b.subscribers) == []
        b.change(1)


async def test_a_consumer_that_closes_in_quiet_ends_the_subscription_at_the_next_change(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        subscription = b.subscribe(Throttle())
        with trio.fail_after(10):
            await subscription.updates.receive()
            subscription.updates.close()
            b.change(1)
            b.change(2)
            await b.ended.wait()
        b.change(3)


async def test_a_consumer_that_is_cancelled_loses_nothing(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe()
        with trio.fail_after(100):
            await subscription.updates.receive()
            with trio.move_on_after(1) as scope:
                await subscription.updates.receive()
            assert scope.cancelled_caught
            b.change(1)
            with trio.CancelScope() as scope:
                scope.cancel()
                await subscription.updates.receive()
            assert scope.cancelled_caught
            update = await subscription.updates.receive()
        assert update.changes == {"a": SetChanges((group("x", "1"),))}


async def test_a_cancelled_subscription_ends_the_channel(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe()
        await wait_all_tasks_blocked()
        subscription.scope.cancel()
        await wait_all_tasks_blocked()
        with pytest.raises(trio.EndOfChannel):
            subscription.updates.receive_nowait()


# --- the throttle ---


async def intervals(throttle: Throttle, count: int) -> list[float]:
    """Return the seconds between deliveries when there is a change all the time."""
    times = []
    async with board() as b:
        subscription = b.subscribe(throttle)
        for value in range(1, count + 2):
            await subscription.updates.receive()
            times.append(trio.current_time())
            b.change(value)
    return [after - before for before, after in pairwise(times)]


async def test_subscription_contract_the_pace_backs_off_from_100_ms_to_5_s(autojump_clock: MockClock) -> None:
    expected = [min(0.1 * 1.5**n, 5.0) for n in range(15)]
    assert expected[-1] == expected[-5] == 5.0
    assert await intervals(Throttle(), 15) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("throttle", "expected"),
    [
        (Throttle(0, 0), [0, 0, 0, 0]),
        (Throttle(0, 5), [0, 0, 0, 0]),
        (Throttle(2, 2), [2, 2, 2, 2]),
        (Throttle(1, 2), [1, 1.5, 2, 2]),
        (Throttle(4, math.inf), [4, 6, 9, 13.5]),
    ],
    ids=str,
)
async def test_throttle_paces(throttle: Throttle, expected: list[float], autojump_clock: MockClock) -> None:
    assert await intervals(throttle, 4) == pytest.approx(expected)


async def test_throttle_0_0_does_not_wait_even_for_a_tick_of_the_clock(autojump_clock: MockClock) -> None:
    await intervals(Throttle(0, 0), 200)
    assert trio.current_time() == 0


async def test_subscription_contract_a_first_change_after_quiet_is_delivered_at_once(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        subscription = b.subscribe(Throttle())
        with trio.fail_after(1000):
            await subscription.updates.receive()
            for value in range(1, 20):  # up to the slowest pace
                b.change(value)
                await subscription.updates.receive()
            for value in (100, 200):
                await trio.sleep(5.001)
                start = trio.current_time()
                b.change(value)
                assert value_of(await subscription.updates.receive()) == value
                assert trio.current_time() == start
                b.change(value + 1)
                assert value_of(await subscription.updates.receive()) == value + 1
                assert trio.current_time() - start == pytest.approx(0.1)
                b.change(value + 2)
                await subscription.updates.receive()
                assert trio.current_time() - start == pytest.approx(0.25)


async def test_a_single_change_soon_after_another_waits_only_for_the_rest_of_the_pause(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        subscription = b.subscribe(Throttle(1, 8))
        with trio.fail_after(1000):
            await subscription.updates.receive()
            await trio.sleep(0.75)
            b.change(1)
            await subscription.updates.receive()
            assert trio.current_time() == 1
            await trio.sleep(3)
            b.change(2)
            await subscription.updates.receive()
            assert trio.current_time() == 4, "the pause is over, so this one does not wait"


async def test_an_offer_waiting_for_its_consumer_is_renewed_without_a_pause(autojump_clock: MockClock) -> None:
    async with board() as b:
        subscription = b.subscribe(Throttle(1, 8))
        with trio.fail_after(1000):
            await subscription.updates.receive()
            b.change(1)
            await trio.sleep(3)
            b.change(2)
            update = await subscription.updates.receive()
            assert value_of(update) == 2
            assert trio.current_time() == 3


@pytest.mark.parametrize(
    ("minimum", "maximum"), [(-1, 5), (5, 1), (0.1, -5), (math.nan, 5), (0, math.nan), (math.inf, 5)]
)
def test_impossible_throttles_are_refused(minimum: float, maximum: float) -> None:
    with pytest.raises(ValueError, match="0 <= minimum <= maximum"):
        Throttle(minimum, maximum)


def test_the_default_throttle_is_prometheus_own() -> None:
    assert Throttle() == Throttle(0.1, 5.0)


# --- statistics ---


async def test_statistics_tell_how_a_consumer_keeps_up(autojump_clock: MockClock) -> None:
    async with board() as b:
        start = b.store.revision
        subscription = b.subscribe(name="me")
        assert subscription.statistics() == SubscriptionStatistics("me", 0, 0, start, 0.0)
        with trio.fail_after(100):
            await subscription.updates.receive()
            await wait_all_tasks_blocked()
            kept_up = subscription.statistics()
            assert (kept_up.delivered, kept_up.lag, kept_up.behind_since) == (1, 0, None)
            await trio.sleep(2)
            b.change(1)
            await trio.sleep(3)
            b.change(2)
            b.change(3)
            await trio.sleep(1)
            behind = subscription.statistics()
            assert (behind.delivered, behind.lag, behind.behind_since) == (1, 3, 2.0)
            await subscription.updates.receive()
            await wait_all_tasks_blocked()
        caught_up = subscription.statistics()
        assert (caught_up.delivered, caught_up.lag, caught_up.behind_since) == (2, 0, None)
        assert caught_up.skipped - kept_up.skipped == 2


async def test_statistics_do_not_count_what_was_before_the_subscription_as_skipped(autojump_clock: MockClock) -> None:
    async with board() as b:
        for value in range(1, 11):
            b.change(value)
        subscription = b.subscribe()
        await subscription.updates.receive()
        await wait_all_tasks_blocked()
        assert subscription.statistics().delivered == 1
        assert subscription.statistics().skipped == 0


async def test_statistics_tell_the_oldest_change_not_seen_though_it_came_as_an_offer_was_taken(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        subscription = b.subscribe(Throttle(1, 1))
        await subscription.updates.receive()
        await trio.sleep(2)
        b.change(1)
        await trio.sleep(3)
        subscription.updates.receive_nowait()
        b.change(2)
        await wait_all_tasks_blocked()
        assert subscription.statistics().lag == 1
        assert subscription.statistics().behind_since == 5


# --- rest ---


async def test_no_polling_contract_an_idle_subscription_has_no_timer_and_takes_no_step(
    autojump_clock: MockClock,
) -> None:
    async with board() as b:
        waiting, offering = b.subscribe(Throttle()), b.subscribe(Throttle())
        await waiting.updates.receive()
        b.change(1)
        await waiting.updates.receive()
        for value in (2, 3):
            await trio.sleep(1)  # until every pause is over
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            await trio.sleep(24 * 3600)
            trio.lowlevel.remove_instrument(steps)
            assert steps.count == 0
            offering.updates.receive_nowait()  # the second time nothing is on offer any more
            b.change(value)
            with trio.fail_after(10):
                await waiting.updates.receive()


@pytest.mark.parametrize("busy", [False, True])
async def test_nothing_is_left_of_a_cancelled_subscription(busy: bool, autojump_clock: MockClock) -> None:
    async with board() as b:
        before = trio.lowlevel.current_statistics().tasks_living
        subscription = b.subscribe(Throttle(10, 10))
        await subscription.updates.receive()
        if busy:
            b.change(1)
        await wait_all_tasks_blocked()
        subscription.scope.cancel()
        await wait_all_tasks_blocked()
        statistics = trio.lowlevel.current_statistics()
        assert statistics.tasks_living == before
        assert statistics.seconds_to_next_deadline == math.inf
