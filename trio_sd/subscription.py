"""One subscriber: how the newest state reaches a consumer.

Theory of operation
===================

A consumer that waits, and has not been given anything too lately for its :class:`Throttle`, is handed the newest state
inside the sync call that made the change: no task runs in between.

For any other, the store says "something changed" into a trigger channel of capacity 1; a full trigger already says it,
so any number of changes melt into one. The subscription's task wakes up, pauses if the throttle says so, and offers the
newest state on a channel of capacity 0.

An offer that nobody has taken yet must not grow old. So a change also cancels the offer under way, at once, inside
the sync call that made the change: from then on there is nothing to take until the task offers again. Thereby a
consumer that comes back after a long time receives what is true at that moment, not what was when it was last away.
Reading the store again is cheap, since the work of an update is done when its changes are first looked at.

"At once" rests on something that Trio does and does not promise: ``CancelScope.cancel()`` takes a task that is blocked
in ``send()`` out of the channel before it returns. The test ``…withdraws_the_offer_under_way_in_the_same_tick`` tells
if that ever changes; then a consumer could take a state that is one scheduler tick old, and would get the newest next.

Rejected: sending a marker and letting the consumer fetch the state (two calls for the user, and the channel could not
be a plain ``trio.MemoryReceiveChannel``); a capacity of one (it would hold a state of the past).
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from .snapshots import History, Reader, Update

__all__ = ["Subscription", "SubscriptionStatistics", "Throttle"]

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


class Subscription:
    """Carries the newest state of a history to one consumer.

    Args:
      history: where the state is.
      throttle: the pace.
      name: shows up in statistics.
    """

    def __init__(self, history: History, throttle: Throttle, name: str) -> None:
        self._history = history
        self._reader: Reader = history.reader()
        self._pace = _Pace(throttle)
        self._name = name
        self._set_trigger, self._trigger = trio.open_memory_channel[None](1)
        self._offer, self.updates = trio.open_memory_channel[Update](0)
        self._said = False  # whether the trigger is set
        self._offering: trio.CancelScope | None = None
        self._seen = history.snapshot().number - 1
        self._delivered = 0
        self._skipped = 0
        self._changed_at = 0.0  # the first change since the last read
        self._behind_since: float | None = None
        self.scope = trio.CancelScope()
        self.notify()  # the first update is the state that is already there

    def notify(self) -> None:
        """Say that the store has changed. Sync; never waits."""
        if self._said:
            return  # and whatever was on offer withdrawn; of hundreds that pause, nearly all go this way
        now = trio.current_time()
        # While something is on offer, nobody waits, or it was taken and is not noted yet.
        if self._offering is None and not self._pace.wait(now) and self._hand_over(now):
            return
        self._said = True
        self._set_trigger.send_nowait(None)
        self.withdraw()
        self._changed_at = now

    def _hand_over(self, now: float) -> bool:
        """Give the newest state to a consumer that waits; return whether there is one."""
        update = self._reader.read()
        try:
            self._offer.send_nowait(update)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return False
        self._note_taken(update)
        self._pace.delivered(now, now)
        return True

    def withdraw(self) -> None:
        """Take back what is on offer, because it is not the newest state any more; :meth:`notify` will follow. Sync."""
        if self._behind_since is None:
            self._behind_since = trio.current_time()
        if self._offering is not None:
            self._offering.cancel()

    async def run(self) -> None:
        """Deliver until cancelled, or until the consumer closes its end. Then close the other end."""
        with self.scope, self._set_trigger, self._trigger, self._offer:
            while True:
                await self._trigger.receive()
                self._said = False
                ready = trio.current_time()
                if (pause := self._pace.wait(ready)) > 0:
                    await trio.sleep(pause)
                try:
                    delivered = await self._offer_newest()
                except trio.BrokenResourceError:
                    return  # the consumer has gone
                if delivered:
                    self._pace.delivered(ready, trio.current_time())

    async def _offer_newest(self) -> bool:
        """Offer the newest state until it is taken, or no longer the newest; return whether it was taken."""
        if self._said:  # during the pause; it is in what is read now
            self._trigger.receive_nowait()
            self._said = False
        update = self._reader.read()
        if update.snapshot.number == self._seen:
            self._behind_since = None  # something has changed, but nothing in here
            return False
        with trio.CancelScope() as self._offering:
            await self._offer.send(update)
            # Taken. A notify() from now on finds nothing to withdraw; there is no checkpoint before the next read.
            self._offering = None
            self._note_taken(update)
            return True
        self._offering = None
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
