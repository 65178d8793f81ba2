"""What is asked for again and again, because nothing tells when it changes.

Theory of operation
===================

A discoverer polls one *part* or several: a URL; each of many names; each service of a catalog. Every part has a task
and a schedule of its own, so one that hangs delays no other. A part is *looked at* by an async function of the
mechanism's, which returns all target groups of the part, or raises.

- When: first after a short random time, and a second time somewhere within the first interval, so that what began
  together, as after a reload, spreads out. From then on one interval after the time at which the look before was due,
  whenever it really began: so nothing drifts. A look that takes longer than the interval is followed by the next one.
- For how long: up to a deadline. A look that is not over by then has failed.
- After a failure: sooner than usual, in pauses that double up to a minute or the interval, drawn at random from their
  upper half; or when who was asked wants to be asked again.

What is found goes into :class:`Findings`, in sync code, and one task sends what differs. So while the engine is busy
nothing queues but the newest state, and no change is lost with the task that found it. Nothing is sent until each part
was looked at once, because the first send is the full set; what can't be read then is taken from the run before. A part
that can't be read keeps its last good groups.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NoReturn

import trio

from .discoverer import DiscovererOptions, DiscovererStatistics
from .errors import DiscoveryError, TrioSDError
from .messages import one_line, quote
from .targets import TargetGroup

__all__ = ["CATALOG", "Findings", "Look", "Polling", "PollingDiscoverer", "Schedule"]

logger = logging.getLogger(__name__)

Look = Callable[[], Awaitable[Sequence[TargetGroup] | None]]
"""Finds out all target groups of one part; ``None`` says that they are what they were.

The source of each is the part's name, or that, a colon and a number. What goes wrong is raised as a
:class:`~trio_sd.errors.TrioSDError` or an :class:`OSError`; anything else ends the discoverer's run.
"""

_FIRST_SPREAD: Final = 0.25  # seconds in which first looks are spread; a person who waits for them does not mind
_FIRST_PAUSE: Final = 1.0  # seconds after a failure, at the most; doubles with each one in a row
_LONGEST_PAUSE: Final = 60.0  # and is never longer than this, or the interval
_LONGEST_WISH: Final = 600.0  # seconds for which one is sent away at the most
_TOLD: Final = 20  # errors and notes that statistics tell one by one

_Updates = trio.MemorySendChannel[Sequence[TargetGroup]]


class Schedule:
    """When one part is looked at: sync code, on any clock.

    Args:
      interval: seconds from one look to the next.
      now: the time.
      rng: draws what is random.
    """

    def __init__(self, interval: float, now: float, rng: random.Random) -> None:
        self._interval = interval
        self._rng = rng
        self._failures = 0
        self._second = True
        self.due = now + rng.random() * min(interval, _FIRST_SPREAD)
        """When to look."""

    def succeeded(self, now: float) -> None:
        """Set the time of the look after one that succeeded, and is over now."""
        self._failures = 0
        interval = self._interval
        if self._second:
            self._second = False
            interval *= (1 + self._rng.random()) / 2
        self.due = max(self.due + interval, now)

    def failed(self, now: float, retry_after: float | None = None) -> None:
        """Set the time of the look after one that failed just now.

        Args:
          now: the time.
          retry_after: seconds in which who was asked does not want to be asked again; ten minutes at the most count.
        """
        longest = min(_FIRST_PAUSE * 2.0 ** min(self._failures, 60), _LONGEST_PAUSE)
        # Who fails is asked no more often than who does not.
        pause = self._interval if longest >= self._interval else longest * (1 + self._rng.random()) / 2
        self._failures += 1
        self.due = now + max(pause, min(retry_after or 0.0, _LONGEST_WISH))


class _Found:
    """What is known of one part."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.groups: dict[str, TargetGroup] = {}
        self.read = False  # since this run began
        self.refused = "nothing was found before"  # why "as it was" means nothing, or an empty text
        self.error = ""
        self.note = ""

    @property
    def trouble(self) -> str:
        """What is wrong with what is shown of it, or an empty text."""
        return self.error or ("was not read since the run before" if self.groups and not self.read else "")


class Findings:
    """What was found of all parts, and what of it is still to be sent. Sync code.

    Args:
      last_known: the groups of the run before, by source. They stand in for parts that can't be read at first.
    """

    def __init__(self, last_known: Callable[[], Mapping[str, TargetGroup]]) -> None:
        self._last_known = last_known
        self._parts: dict[str, _Found] = {}
        self._unsettled: set[str] = set()  # parts that were not looked at yet, be it in vain
        self._first = True
        self._pending: dict[str, TargetGroup] = {}
        self._unconfirmed: set[str] = set()
        self._confirmed = False

    def add(self, part: str, shown: str) -> None:
        """Begin to wait for a part; ``shown`` is what to call it in messages."""
        self._parts[part] = _Found(shown)
        self._unsettled.add(part)
        self._unconfirmed.add(part)

    def remove(self, part: str) -> None:
        """Forget a part, with all its groups."""
        found = self._parts.pop(part)
        self._unsettled.discard(part)
        self._unconfirmed.discard(part)
        self._pending.update((source, TargetGroup(source, ())) for source in found.groups)

    def found(self, part: str, groups: Sequence[TargetGroup] | None) -> str:
        """Take what a look has found, and return the error that is over, or an empty text.

        Args:
          part: which one.
          groups: all of its groups, or ``None`` if they are what they were.

        Raises:
          DiscoveryError: two groups have one source; or they are what they were, and nothing was, or nothing good.
        """
        found = self._parts[part]
        if part == CATALOG:
            self._hand_over(found)
        if groups is None and found.refused:
            raise DiscoveryError(f"told that nothing has changed, but {found.refused}")
        if groups is not None:
            after = {group.source: group for group in groups}
            if len(after) < len(groups):
                twice = Counter(group.source for group in groups).most_common(1)[0][0]
                found.refused = f"found two target groups with the source {quote(twice)}"
                raise DiscoveryError(found.refused)
            found.refused = ""
            before, found.groups = found.groups, after
            for source, group in after.items():
                earlier = before.pop(source, None)
                if earlier is not group and earlier != group:
                    self._pending[source] = group
            self._pending.update((source, TargetGroup(source, ())) for source in before)
        found.read = True
        self._unsettled.discard(part)
        over, found.error = found.error, ""
        self._unconfirmed.discard(part)
        if not self._unconfirmed:
            self._unconfirmed.update(self._parts)
            self._confirmed = True
        return over

    def _hand_over(self, catalog: _Found) -> None:
        """Give the parts that the catalog has added what has stood in for them, until they are read themselves."""
        for source in list(catalog.groups):
            owner = next((part for part in _owners(source) if part in self._parts), CATALOG)
            if owner != CATALOG:
                found, group = self._parts[owner], catalog.groups.pop(source)
                if not found.read:
                    found.groups[source] = group
                elif source not in found.groups:
                    self._pending[source] = TargetGroup(source, ())

    def failed(self, part: str, error: str) -> bool:
        """Take that a part could not be read; return whether it is for another reason than before, if it was so."""
        found = self._parts[part]
        self._unsettled.discard(part)
        self._unconfirmed.add(part)
        self._confirmed = False
        before, found.error = found.error, error
        return before != error

    def note(self, part: str, note: str) -> None:
        """Keep what an operator should know of a part though nothing fails, until there is another note."""
        self._parts[part].note = note

    def shown(self, part: str) -> str:
        """Return what to call a part in messages."""
        return self._parts[part].shown

    def errors(self) -> list[str]:
        """Return what fails at present."""
        return [f"{found.shown}: {error}" for found in self._parts.values() if (error := found.trouble)]

    def notes(self) -> list[str]:
        """Return the notes."""
        return [f"{found.shown}: {found.note}" for found in self._parts.values() if found.note]

    def take(self) -> list[TargetGroup] | None:
        """Return what is to be sent now: groups, none to say that nothing has changed, or ``None`` for no send.

        It is ``None`` as long as the first full set can't be sent: while a part was not looked at, or where nothing at
        all could be read and nothing is known from before.
        """
        if self._first:
            return self._take_first()
        groups = list(self._pending.values())
        self._pending.clear()
        confirmed, self._confirmed = self._confirmed, False
        return groups if groups or confirmed else None

    def _take_first(self) -> list[TargetGroup] | None:
        parts = self._parts
        if self._unsettled:
            return None
        unread = {part: found for part, found in parts.items() if not found.read}
        if unread:
            self._stand_in(unread)
            # That a catalog was read says nothing of what is in it.
            carriers = parts.keys() - {CATALOG} or parts.keys()
            if carriers <= unread.keys() and not any(found.groups for found in unread.values()):
                return None
        self._first = self._confirmed = False
        self._pending.clear()
        return [group for found in parts.values() for group in found.groups.values()]

    def _stand_in(self, unread: Mapping[str, _Found]) -> None:
        """Give parts that could not be read the groups that they had in the run before, but what others have now."""
        taken = {source for found in self._parts.values() if found.read for source in found.groups}
        for source, group in self._last_known().items():
            owner = next((part for part in _owners(source) if part in self._parts), CATALOG)
            if owner in unread and source not in taken:
                unread[owner].groups[source] = group


CATALOG: Final = "\0"
"""The name of a part that tells which others there are: until it could be read, all that is known is its own."""


def _owners(source: str) -> Sequence[str]:
    """Return the names that the part of a group can have."""
    part, _, index = source.rpartition(":")
    return (source, part) if index.isascii() and index.isdigit() else (source,)


class Polling:
    """The parts of one run of a discoverer.

    Args:
      options: what the engine handed over.
      rng: draws what is random.
    """

    def __init__(self, options: DiscovererOptions, rng: random.Random) -> None:
        self.options: Final = options
        """What the engine handed over."""
        self.counters: Final[Counter[str]] = Counter(looks=0, failures=0, look_microseconds=0)
        """Figures to tell in statistics; a mechanism may add its own."""
        self._rng = rng
        self._findings = Findings(options.last_known)
        self._news = trio.Event()

    def add(self, part: str, *, shown: str = "") -> None:
        """Begin to wait for a part, which :meth:`poll` is to look at; the first full set waits for it.

        Args:
          part: its name, of which there is no other in this run; :data:`CATALOG` for one that adds others.
          shown: what to call it in messages; its name if empty.
        """
        self._findings.add(part, one_line(shown or part))

    def remove(self, part: str) -> None:
        """Forget a part; its groups go. The task that polls it has ended, or was cancelled before."""
        self._findings.remove(part)
        self._news.set()

    def note(self, part: str, note: str) -> None:
        """Tell what an operator should know of a part though nothing fails; empty to tell nothing any more."""
        self._findings.note(part, one_line(note))

    async def poll(self, part: str, look: Look, *, interval: float, deadline: float) -> NoReturn:
        """Look at a part again and again, until cancelled.

        Args:
          part: the name that it was added under.
          look: looks once.
          interval: seconds from one look to the next.
          deadline: seconds after which a look is given up.
        """
        schedule = Schedule(interval, trio.current_time(), self._rng)
        while True:
            await self._look_until_found(part, look, schedule, deadline)

    async def find(self, part: str, look: Look, *, deadline: float) -> None:
        """Look at a part until that succeeds once.

        Args:
          part: the name that it was added under.
          look: looks once.
          deadline: seconds after which a look is given up.
        """
        await self._look_until_found(part, look, Schedule(math.inf, trio.current_time(), self._rng), deadline)

    async def _look_until_found(self, part: str, look: Look, schedule: Schedule, deadline: float) -> None:
        found = False
        while not found:
            await trio.sleep_until(schedule.due)
            error = await self._look(part, look, deadline)
            now = trio.current_time()
            if error is None:
                found = True
                schedule.succeeded(now)
            else:
                schedule.failed(now, error.retry_after if isinstance(error, DiscoveryError) else None)
            self._news.set()

    async def _look(self, part: str, look: Look, deadline: float) -> Exception | None:
        """Look once and take what was found; return what went wrong, or ``None``."""
        error: Exception | None = None
        began = trio.current_time()
        found: list[Sequence[TargetGroup] | None] = []
        try:
            with trio.move_on_after(deadline):
                found.append(await look())
            # Who removes a part cancels its task, and is not to hear of it any more.
            await trio.lowlevel.checkpoint_if_cancelled()
            if found:  # be it a little late: who has looked goes on from there
                over = self._findings.found(part, found[0])
                if over:
                    logger.info("%s: %s: no longer: %s", self.options.name, self._findings.shown(part), over)
            else:
                error = DiscoveryError(f"no answer within {deadline:g} s")
        except* (TrioSDError, OSError) as errors:
            error = _first_of(errors)
        self.counters["looks"] += 1
        self.counters["look_microseconds"] += round((trio.current_time() - began) * 1e6)
        if error is not None:
            await trio.lowlevel.checkpoint_if_cancelled()
            self.counters["failures"] += 1
            text = one_line(str(error) or type(error).__name__)
            if self._findings.failed(part, text):
                logger.warning("%s: %s: %s", self.options.name, self._findings.shown(part), text)
        return error

    async def send(self, updates: _Updates) -> NoReturn:
        """Send what is found, the newest of it, until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            if (groups := self._findings.take()) is not None:
                await updates.send(groups)

    def statistics(self) -> DiscovererStatistics:
        """Return what fails at present, what an operator should know, and how much was done."""
        return DiscovererStatistics(
            _excerpt(self._findings.errors()), _excerpt(self._findings.notes()), dict(self.counters)
        )


def _first_of(errors: ExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group: the text of a group names no reason."""
    error: Exception = errors
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _excerpt(texts: Sequence[str]) -> tuple[str, ...]:
    more = len(texts) - _TOLD
    return (*texts[:_TOLD], f"{more} more like that") if more > 0 else tuple(texts)


class PollingDiscoverer:
    """A discoverer that polls.

    Args:
      options: what the engine hands over.
      body: opens what it needs, adds its parts, and polls them until it is cancelled.
      rng: draws what is random.
    """

    def __init__(
        self,
        options: DiscovererOptions,
        body: Callable[[Polling], Awaitable[None]],
        *,
        rng: random.Random | None = None,
    ) -> None:
        self._polling = Polling(options, rng or random.Random())
        self._body = body

    def statistics(self) -> DiscovererStatistics:
        """Return what fails at present, what an operator should know, and how much was done."""
        return self._polling.statistics()

    async def run(self, updates: _Updates) -> None:
        """Send all that is found, then what changes, until cancelled. Cancellation ends looks that are under way."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._polling.send, updates)
            await self._body(self._polling)
