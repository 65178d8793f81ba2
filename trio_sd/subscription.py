"""One subscriber: how the newest state reaches a consumer.

Theory of operation
===================

A consumer that waits, and has not been given anything too lately for its :class:`Throttle`, is handed the newest state
inside the sync call that made the change: no task runs in between.

For any other, the store says "something changed" into a trigger channel of capacity 1; a full trigger already says it,
so any number of changes melt into one. The subscription's task wakes up, pauses if the throttle says so, and offers the
newest state on a channel of capacity 0.

An offer that nobody has taken yet must not grow old: a consumer that comes back after a long time is to receive what is
true at that moment, not what was when it was last away. Nobody has seen the update that is on offer, so a change brings
it up to date where it is, inside the sync call that made the change. No task runs: hundreds who stay away cost every
change some microseconds each, and nothing that they could notice. Reading the store again is cheap, since the work of
an update is done when its changes are first looked at.

Who pauses, and has been told that there is something new, is not told again: :class:`Subscribers` goes through those
only who do not know yet, so hundreds who pause cost a change nothing.

What is not the newest state any more, while the newest is not known yet (relabeling takes its time), is *withdrawn*:
the offer is cancelled, and from then on there is nothing to take until the task offers again. That this is "from then
on" rests on something that Trio does and does not promise: ``CancelScope.cancel()`` takes a task that is blocked in
``send()`` out of the channel before it returns. The test ``what_is_withdrawn_is_not_to_be_had_in_the_same_tick`` tells
if that ever changes; then a consumer could take a state that is one scheduler tick old, and would get the newest next.

Rejected: sending a marker and letting the consumer fetch the state (two calls for the user, and the channel could not
be a plain ``trio.MemoryReceiveChannel``); a capacity of one (it would hold a state of the past).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import trio

from .snapshots import History, Reader, Update

__all__ = ["Subscribers", "Subscription", "SubscriptionStatistics", "Throttle"]

_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Throttle:
    """The pace of a subscriber's updates, as Prometheus': a first change at once, a burst ever more slowly.

    After an update the next one waits for ``minimum`` seconds; as long as changes keep coming, each wait is half as
    long again as the one before, up to ``maximum``. When nothing has been delivered for longer than ``maximum``, the
    next change is delivered at once and waits begin at ``minimum`` again. ``Throttle(0, 0)`` never waits.

    Raises:
      ValueError: unless ``0 <= minimum <= maximum``.
    """

    minimum: float = 0.1
    maximum: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"a throttle needs 0 <= minimum <= maximum, not {self.minimum} and {self.maximum}")


class _Pace:
    """When may the next update go out? Sync and without a clock of its own, so that it is tested as a table."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._pause = throttle.minimum
        self._last: float | None = None

    def wait(self, now: float) -> float:
        """Return for how many seconds an update that is ready ``now`` must wait."""
        return max(0.0, self._last + self._pause - now) if self._last is not None else 0.0

    def delivered(self, ready: float, now: float) -> None:
        """Note that an update, ready at ``ready``, was taken ``now``."""
        quiet = self._last is None or ready - self._last > self._throttle.maximum
        self._pause = self._throttle.minimum if quiet else min(self._pause * _GROWTH, self._throttle.maximum)
        self._last = now


@dataclass(frozen=True, slots=True)
class SubscriptionStatistics:
    """How a subscriber keeps up.

    Attributes:
      name: as given to ``subscribe``.
      delivered: updates that it has taken.
      skipped: revisions that it never saw, because a later one took their place.
      lag: revisions that it has not seen yet.
      behind_since: the time (``trio.current_time()``) of the oldest change that it has not seen, or ``None``.
    """

    name: str
    delivered: int
    skipped: int
    lag: int
    behind_since: float | None


class Subscribers:
    """The subscriptions to one history, in the order in which they were made."""

    def __init__(self) -> None:
        self._all: dict[Subscription, None] = {}
        self._untold: dict[Subscription, None] = {}

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._all)

    def add(self, history: History, throttle: Throttle, name: str) -> Subscription:
        """Return a new subscription, which is to be run."""
        subscription = Subscription(history, throttle, name, self._untold)
        self._all[subscription] = None
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Take out a subscription that has ended."""
        del self._all[subscription]
        self._untold.pop(subscription, None)

    def notify(self) -> None:
        """Say that the history has changed. Sync; never waits."""
        now = trio.current_time()
        for subscription in tuple(self._untold):
            subscription.notify(now)

    def withdraw(self) -> None:
        """Take back what is on offer, because it is not the newest state any more; :meth:`notify` will follow. Sync."""
        for subscription in self._untold:  # those who were told have nothing on offer
            subscription.withdraw()


class Subscription:
    """Carries the newest state of a history to one consumer. Made by :meth:`Subscribers.add`.

    Args:
      history: where the state is.
      throttle: the pace.
      name: shows up in statistics.
      untold: those who do not know yet that there is something new. This one puts itself in and takes itself out.
    """

    def __init__(self, history: History, throttle: Throttle, name: str, untold: dict[Subscription, None]) -> None:
        self._history = history
        self._reader: Reader = history.reader()
        self._pace = _Pace(throttle)
        self._name = name
        self._set_trigger, self._trigger = trio.open_memory_channel[None](1)
        self._offer, self.updates = trio.open_memory_channel[Update](0)
        self._untold = untold  # with this one in it, unless the trigger is set
        self._untold[self] = None
        self._offering = trio.CancelScope()
        self._on_offer: Update | None = None
        self._ready = 0.0  # when the newest state that is not delivered was there
        self._seen = history.snapshot().number - 1
        self._delivered = 0
        self._skipped = 0
        self._changed_at = 0.0  # the first change since the last read
        self._behind_since: float | None = None
        self.scope = trio.CancelScope()
        self.notify(trio.current_time())  # the first update is the state that is already there

    def notify(self, now: float) -> None:
        """Say that the history has changed, if that was not said yet; see :meth:`Subscribers.notify`."""
        if self._on_offer is None:
            if not self._pace.wait(now) and self._hand_over(now):
                return
        elif self._offer.statistics().tasks_waiting_send:  # otherwise it was taken, and is not noted yet
            self._reader.renew(self._on_offer)
            self._ready = now
            return
        del self._untold[self]
        self._set_trigger.send_nowait(None)
        self.withdraw()
        self._changed_at = now

    def _hand_over(self, now: float) -> bool:
        """Give the newest state to a consumer that waits; return whether nothing is left to be done."""
        update = self._reader.read()
        if update.snapshot.number == self._seen:
            self._behind_since = None  # something has changed, but nothing in here
            return True
        try:
            self._offer.send_nowait(update)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return False
        self._note_taken(update)
        self._pace.delivered(now, now)
        return True

    def withdraw(self) -> None:
        """Take back what is on offer; see :meth:`Subscribers.withdraw`."""
        if self._behind_since is None:
            self._behind_since = trio.current_time()
        if self._on_offer is not None:
            self._offering.cancel()

    async def run(self) -> None:
        """Deliver until cancelled, or until the consumer closes its end. Then close the other end."""
        with self.scope, self._set_trigger, self._trigger, self._offer:
            while True:
                await self._trigger.receive()
                self._untold[self] = None
                self._ready = trio.current_time()
                # Again, if one was handed over just as the pause was over. It is time that is waited for, not an event.
                while (pause := self._pace.wait(trio.current_time())) > 0:  # noqa: ASYNC110
                    await trio.sleep(pause)
                try:
                    delivered = await self._offer_newest()
                except trio.BrokenResourceError:
                    return  # the consumer has gone
                if delivered:
                    self._pace.delivered(self._ready, trio.current_time())

    async def _offer_newest(self) -> bool:
        """Offer the newest state until it is taken, or no longer the newest; return whether it was taken."""
        if self not in self._untold:  # told during the pause; it is in what is read now
            self._trigger.receive_nowait()
            self._untold[self] = None
        update = self._reader.read()
        if update.snapshot.number == self._seen:
            self._behind_since = None  # something has changed, but nothing in here
            return False
        with trio.CancelScope() as self._offering:
            self._on_offer = update
            await self._offer.send(update)
            # Taken. A notify() from now on finds nothing to renew; there is no checkpoint before the next read.
            self._on_offer = None
            self._note_taken(update)
            return True
        self._on_offer = None
        return False

    def _note_taken(self, update: Update) -> None:
        self._reader.given(update)
        self._delivered += 1
        self._skipped += max(0, update.snapshot.number - self._seen - 1)
        self._seen = update.snapshot.number
        self._behind_since = self._changed_at if self._reader.behind else None

    def statistics(self) -> SubscriptionStatistics:
        """Return how the consumer keeps up, at this moment."""
        return SubscriptionStatistics(
            name=self._name,
            delivered=self._delivered,
            skipped=self._skipped,
            lag=self._reader.behind,
            behind_since=self._behind_since,
        )
