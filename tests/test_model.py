"""Whatever happens, in any order: subscribers see what a model of plain dicts says, at every revision.

Random sequences of steps are carried out by the real engine on a clock of the test's own. Beside it runs a model that
knows nothing of how the engine does it. :class:`Shown` embodies the rules of what may be seen:

- Every configured set is there, in the order of the configuration, from the moment when the configuration is in force;
  its groups come in the order of its configurations, then of their sources. What one configuration has found is held
  once, and shown in all sets that it is part of.
- The first report of a run replaces what is held of its configuration. Later ones replace group by group; a group
  without targets removes its source. What was found stays when a run fails.
- What stays in a set over a reload is shown until its new run has reported. What left it is shown until everything
  that joined the set, also by an earlier reload, has reported; until the warm-up time is over, counted from the reload
  by which it left; and not at all where nothing has joined. A set that was removed is gone at once.
- Where removals wait, a target that a run finds no more is shown for some time longer, unless it comes back.
- Each of these is one revision; what changes nothing is none, unless it is the first that is heard of a configuration.

:class:`World` embodies what runs, and therefore who is listened to:

- Reloads take turns. One stops the old runs, waits until all have ended or for the grace time, and starts the new
  ones. Cancelled while it waits for its turn, it changes nothing; later, it just waits no more.
- A run that was told to stop is not listened to any more, whatever it sends while it cleans up.
- A run that failed is followed by another after a while; one that is refreshed, as soon as it has ended; one that is
  paused, as soon as it has ended and is resumed. What is paused stays so over reloads, and nobody waits for it.

Where steps happen in the same tick of the scheduler, every order of them makes a world of its own, and what the engine
does has to be what happens in one of them. That no set flickers, and that nothing is shown for longer than the rules
allow, follows from the comparison of every update with the state that its revision must have.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import product
from typing import Any, ClassVar, Final, Literal

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.manager import Manager, open_manager
from trio_sd.provider import Backoff
from trio_sd.snapshots import Update
from trio_sd.subscription import SubscriptionStatistics, Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import group

WARM_UP: Final = 15.0
GRACE: Final = 5.003  # longer than the longest pause of a throttle, so that it is clear what comes first
BACKOFF: Final = 2.083  # seconds before a run that failed is followed by another
REMOVAL_DELAY: Final = 4.321
MOMENT: Final = 1e-4  # after which is looked at what has happened at some time: clocks of floats are not exact

CONFIGS: Final = ("a", "b", "c", "d")
SETS: Final = ("s", "t", "u")
LINGERS: Final = (0.0, 1.437, 7.911)
"""How long runs may clean up: not at all, within the grace time, and longer. No two sums of times are alike."""

Sets = dict[str, tuple[str, ...]]
Content = tuple[tuple[str, tuple[TargetGroup, ...]], ...]
Target = Mapping[str, str]
BySource = dict[str, dict[str, Counter[TargetGroup]]]


# --- the model ---


@dataclass
class Shown:
    """What may be seen, given what has happened."""

    removal_delay: float = 0.0
    sets: Sets = field(default_factory=dict)
    found: dict[str, dict[str, TargetGroup]] = field(default_factory=dict)  # as reported last, of what ever has
    gone: dict[str, dict[str, dict[Target, float]]] = field(default_factory=dict)  # what went, and until when it stays
    held: dict[str, dict[str, TargetGroup]] = field(default_factory=dict)  # what is shown of these two
    reported: set[str] = field(default_factory=set)  # whose present run has
    joining: dict[str, set[str]] = field(default_factory=dict)  # by set: who joined and has not reported since
    leaving: dict[str, dict[str, float]] = field(default_factory=dict)  # by set: who left it, and until when it stays

    def reload(self, sets: Sets, restarted: set[str], now: float) -> None:
        old, self.sets = self.sets, sets
        self.reported -= restarted
        joining, leaving = {}, {}
        for name, members in sets.items():
            stayed = set(old.get(name, ())) - self.joining.get(name, set())
            joining[name] = {one for one in members if one not in stayed | self.reported}
            before = dict.fromkeys(old.get(name, ()), now + WARM_UP) | self.leaving.get(name, {})
            left = {one: until for one, until in before.items() if one not in members and one in self.found}
            leaving[name] = left if joining[name] else {}
        self.joining, self.leaving = joining, leaving
        self.forget()

    def report(self, config: str, groups: Sequence[TargetGroup], now: float) -> None:
        found, gone = self.found.setdefault(config, {}), self.gone.setdefault(config, {})
        new = {one.source: one for one in groups}
        if config not in self.reported:
            new = {source: group(source) for source in found} | new
            self.reported.add(config)
            for name, joining in self.joining.items():
                joining.discard(config)
                if not joining:
                    self.leaving[name] = {}
        for source, one in new.items():
            went = [target for target in found.get(source, one).targets if target not in one.targets]
            gone[source] = gone.get(source, {}) | dict.fromkeys(went, now + self.removal_delay)
            gone[source] = {target: until for target, until in gone[source].items() if target not in one.targets}
            found[source] = one
        self.expire(now)

    def expire(self, now: float) -> None:
        for name, leaving in self.leaving.items():
            self.leaving[name] = {one: until for one, until in leaving.items() if until > now}
        for config, by_source in self.gone.items():
            for source, gone in by_source.items():
                by_source[source] = {target: until for target, until in gone.items() if until > now}
            shown = {source: self.to_show(config, source) for source in sorted(by_source)}
            self.held[config] = {source: one for source, one in shown.items() if one.targets}
        self.forget()

    def to_show(self, config: str, source: str) -> TargetGroup:
        """Return what was found, followed by what went; where only the order would change, as it is shown now."""
        found, gone = self.found[config][source], self.gone[config][source]
        shown = self.held.get(config, {}).get(source, found)
        targets = (*found.targets, *gone)
        return shown if gone and Counter(shown.targets) == Counter(targets) else TargetGroup(source, targets)

    def forget(self) -> None:
        known = {one for name in self.sets for one in self.configs(name)}
        for config in self.found.keys() - known:
            del self.found[config], self.gone[config], self.held[config]
        self.reported &= known

    def configs(self, name: str) -> list[str]:
        return [*self.sets[name], *self.leaving[name]]

    def groups(self, name: str) -> tuple[TargetGroup, ...]:
        return tuple([one for config in self.configs(name) for one in self.held.get(config, {}).values()])

    def content(self) -> Content:
        return tuple([(name, self.groups(name)) for name in self.sets])

    def removals(self) -> list[float]:
        return [until for by_source in self.gone.values() for gone in by_source.values() for until in gone.values()]

    def deadlines(self) -> list[float]:
        return self.removals() + [until for leaving in self.leaving.values() for until in leaving.values()]


Run = Literal["awaits its start", "begins", "at work", "returned", "failed", "cleans up", "paused"]
Event = Callable[["World"], None]
Ending = tuple[str, float, float]  # of which configuration, until when, and since when


@dataclass
class World:
    """One way in which everything may have happened so far: what is shown, what runs, and what will happen when."""

    now: float = 0.0
    shown: Shown = field(default_factory=Shown)
    history: dict[int, Content] = field(default_factory=lambda: {0: ()})  # by revision, since it was last looked at
    times: dict[int, float] = field(default_factory=lambda: {0: 0.0})  # when each revision came
    runs: dict[str, Run] = field(default_factory=dict)  # by configuration, in the order of their first sets
    due: dict[str, float] = field(default_factory=dict)  # when one that failed or cleans up is followed by another
    since: dict[str, float] = field(default_factory=dict)  # when one that cleans up was told to end
    settled: set[str] = field(default_factory=set)  # who need not be waited for
    failing: set[str] = field(default_factory=set)  # who has failed since it last sent something
    unnoticed: set[str] = field(default_factory=set)  # who has failed in this tick
    paused: set[str] = field(default_factory=set)
    linger: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CONFIGS, 0.0))
    ending: list[Ending] = field(default_factory=list)  # runs told to stop by reloads
    awaited: list[Ending] = field(default_factory=list)  # those of them that the reload in force waits for, or the next
    reload_in_force: int | None = None  # while it waits
    grace_until: float = 0.0
    reached: set[str] = field(default_factory=set)  # what has happened since it was last looked at, and is rare
    queue: list[tuple[int, Sets, bool]] = field(default_factory=list)
    reloads: int = 0

    @property
    def revision(self) -> int:
        return max(self.history)

    def copy(self) -> World:
        return replace(self, **{one.name: _copied(getattr(self, one.name)) for one in fields(self)})

    # What may happen.

    def reload(self, number: int, sets: Sets, restart_all: bool) -> None:
        self.queue.append((number, sets, restart_all))
        self._next_reload()

    def cancel(self, number: int) -> None:
        self.queue = [one for one in self.queue if one[0] != number]
        if self.reload_in_force == number:
            self._start_new()

    def send(self, config: str, groups: Sequence[TargetGroup]) -> None:
        if self.runs.get(config) == "at work":  # else it was told to stop, and is not listened to
            self._change(lambda: self.shown.report(config, groups, self.now))
            self.settled.add(config)
            self.failing.discard(config)
        else:
            self.reached.add("something is sent as the run is told to stop")

    def fail(self, config: str) -> None:
        if self.runs.get(config) == "at work":
            self.runs[config] = "failed"
            self.unnoticed.add(config)
            self.due[config] = self.now + BACKOFF

    def notice(self, config: str) -> None:
        """Count that a run has failed, unless it was told to pause or to stop in between."""
        if config in self.unnoticed - self.paused:
            self.failing.add(config)
        self.unnoticed.discard(config)

    def finish(self, config: str) -> None:
        """Return, which is to fail if nothing was sent."""
        if config in self.shown.reported and self.runs.get(config) == "at work":
            self.runs[config] = "returned"
        else:
            self.fail(config)

    def refresh(self, name: str | None) -> None:
        for config in self.chosen(name):
            if config not in self.paused:
                self._end_run(config)

    def pause(self, config: str) -> None:
        if config in self.runs and config not in self.paused:
            self.paused.add(config)
            self._end_run(config)

    def resume(self, config: str) -> None:
        if config in self.runs and config in self.paused:
            self.paused.discard(config)
            self._end_run(config)

    def _end_run(self, config: str) -> None:
        """Have a run end, to be followed by another as soon as it has, unless that is paused."""
        self.settled.discard(config)
        if self.runs[config] not in ("cleans up", "awaits its start"):
            lasts = self.linger[config] if self.runs[config] == "at work" else 0.0
            self.runs[config] = "cleans up"
            self.due[config], self.since[config] = self.now + lasts, self.now

    def catch_up(self) -> None:
        """Let happen what is due now."""
        self.advance(self.now)

    def advance(self, until: float) -> None:
        """Let everything happen, one after the other, that is due up to a time."""
        while (at := self.next_time()) <= until:
            self.now = at
            self._change(lambda: self.shown.expire(self.now))
            for config in [config for config, due in self.due.items() if due <= at]:
                self._begin(config)
            self.ending = [one for one in self.ending if one[1] > at]
            self.awaited = [one for one in self.awaited if one[1] > at]
            if self.reload_in_force is not None and (not self.awaited or self.grace_until <= at):
                self.awaited = []
                self._start_new()
        self.now = until

    def next_time(self) -> float:
        times = [*self.shown.deadlines(), *self.due.values(), *[until for _, until, _ in self.ending]]
        return min(times + [self.grace_until] * (self.reload_in_force is not None), default=float("inf"))

    def rest(self) -> None:
        """Note that nothing is going on any more. A run that has not come to this has nothing to clean up."""
        self.runs = {config: "at work" if run == "begins" else run for config, run in self.runs.items()}
        self.history = {self.revision: self.history[self.revision]}
        self.reached = set()

    # What it takes to say what must be.

    def chosen(self, name: str | None) -> Sequence[str]:
        return tuple(self.runs) if name is None else self.shown.sets.get(name, ())

    @property
    def unsettled(self) -> list[str]:
        """Who has not reported yet, and is not paused."""
        return [config for config in self.runs if config not in self.settled | self.paused]

    def alive(self) -> Counter[str]:
        """Count the runs that have begun and not ended."""
        alive = Counter([config for config, *_ in self.ending])
        alive.update([config for config, run in self.runs.items() if run in ("begins", "at work", "cleans up")])
        return alive

    def stuck(self, seconds: float) -> set[str]:
        """Return of which configurations something runs that was told to end so many seconds ago."""
        since = [(config, since) for config, _, since in self.ending]
        since += [(config, self.since[config]) for config, run in self.runs.items() if run == "cleans up"]
        return {config for config, told in since if told + seconds <= self.now}

    def state(self, config: str) -> str:
        if config in self.paused:
            return "paused"
        if config in self.failing:
            return "failing"
        return "synced" if config in self.settled else "starting"

    # How it comes about.

    def _change(self, what: Callable[[], None], *, always: bool = False) -> None:
        """Do something to what is shown: a revision, if it makes a difference."""
        before = self._facts()
        what()
        if always or self._facts() != before:
            revision = self.revision + 1
            self.history[revision] = self.shown.content()
            self.times[revision] = self.now

    def _facts(self) -> object:
        leaving = {name: tuple(leaving) for name, leaving in self.shown.leaving.items()}
        return self.shown.content(), leaving, set(self.shown.found)

    def _next_reload(self) -> None:
        if self.reload_in_force is not None or not self.queue:
            return
        self.reload_in_force, sets, restart_all = self.queue.pop(0)
        self.reloads += 1
        members = dict.fromkeys([one for members in sets.values() for one in members])
        restarted = {one for one in members if restart_all or one not in self.runs}
        self.paused &= members.keys()
        for config in [one for one in self.runs if one in restarted or one not in members]:
            self._stop(config)
        self.runs = {one: "awaits its start" if one in restarted else self.runs[one] for one in members}
        for name, joining in self.shown.joining.items():
            if joining & set(sets.get(name, ())):
                self.reached.add("a configuration joins, and has not reported at the next reload")
            if set(self.shown.leaving[name]) & set(sets.get(name, ())):
                self.reached.add("what left comes back")
        before = dict(self.shown.content())
        self._change(lambda: self.shown.reload(sets, restarted, self.now), always=True)
        for name, groups in self.shown.content():  # the rules themselves let nothing flicker
            assert not self.shown.joining[name] or not Counter(before.get(name)) - Counter(groups)
        self.grace_until = self.now + GRACE
        if not self.awaited:
            self._start_new()

    def _stop(self, config: str) -> None:
        if self.runs[config] == "at work" and self.linger[config]:
            self.ending.append((config, self.now + self.linger[config], self.now))
            self.awaited.append(self.ending[-1])
        elif self.runs[config] == "cleans up":
            self.ending.append((config, self.due[config], self.since[config]))
            self.awaited.append(self.ending[-1])
        self.due.pop(config, None)
        self.settled.discard(config)
        self.failing.discard(config)
        self.unnoticed.discard(config)

    def _start_new(self) -> None:
        self.reload_in_force = None
        for config in [config for config, run in self.runs.items() if run == "awaits its start"]:
            self._begin(config)
        self._next_reload()

    def _begin(self, config: str) -> None:
        self.runs[config] = "paused" if config in self.paused else "begins"
        self.due.pop(config, None)
        self.shown.reported.discard(config)


def _copied(value: Any) -> Any:
    match value:
        case dict():
            return {key: _copied(one) for key, one in value.items()}
        case list() | set():
            return value.copy()
        case Shown():
            return Shown(**{one.name: _copied(getattr(value, one.name)) for one in fields(value)})
    return value


# --- what the engine runs, and who watches it ---


class Fake:
    """Makes runs that do what they are told. Its configurations are equal to each other."""

    def __init__(self, name: str, names: dict[str, str]) -> None:
        self.name = name
        self.linger = 0.0
        self.runs: list[FakeRun] = []
        """Those that have begun and not ended."""
        self.refused = 0
        """How much was sent too late."""
        self._names = names

    def config(self) -> DiscovererConfig:
        return FakeConfig(self.name, self)

    def discoverer(self, options: DiscovererOptions) -> FakeRun:
        self._names[options.name] = self.name
        return FakeRun(self)

    def order(self, *orders: Sequence[TargetGroup] | Exception | None) -> None:
        """Have the run that came last carry out orders: send something, raise something, or return."""
        for order in orders:
            self.runs[-1].orders.send_nowait(order)


class FakeRun:
    """One run. Once it has been at rest it cleans up when cancelled, and sends before and after that, in vain."""

    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self.rested = False
        self.orders, self._inbox = trio.open_memory_channel[Sequence[TargetGroup] | Exception | None](10)

    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        self._fake.runs.append(self)
        try:
            while (order := await self._inbox.receive()) is not None:  # a cancelled run takes no orders
                if isinstance(order, Exception):
                    await trio.lowlevel.checkpoint_if_cancelled()
                    raise order
                await updates.send(order)
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._clean_up(updates)
            raise
        finally:
            self._fake.runs.remove(self)

    async def _clean_up(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        for pause in (0.0, self._fake.linger) if self.rested else ():
            if pause:
                await trio.sleep(pause)
            try:
                await updates.send([group("late", "1")])
            except trio.BrokenResourceError:
                self._fake.refused += 1


@dataclass(frozen=True)
class FakeConfig(DiscovererConfig):
    mechanism: ClassVar[str] = "fake"
    name: str
    fake: Fake = field(compare=False, repr=False)

    def discoverer(self, options: DiscovererOptions) -> FakeRun:
        return self.fake.discoverer(options)


class Subscriber:
    """Follows a manager and keeps a copy of its own by changes alone. An eager one takes all that it can get."""

    def __init__(self, manager: Manager, *, eager: bool, throttle: Throttle) -> None:
        self._manager = manager
        self.eager = eager
        self.throttle = throttle
        self.scope = trio.CancelScope()
        self.ended = False
        self.born = (trio.current_time(), manager.snapshot().revision)
        self.last: int | None = None
        """The newest revision that it was given."""
        self.taken_at = 0.0
        self.count = 0
        self.news: list[tuple[float, Update]] = []
        """What it was given since somebody looked."""
        self._state: BySource = {}
        self._seen: tuple[int, float] | None = None
        self._pause = 0.0  # until it may be given the next update

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            async with self._manager.subscribe(throttle=self.throttle) as self.updates:
                task_status.started()
                if self.eager:
                    async for update in self.updates:
                        self.given(update)
                else:
                    await trio.sleep_forever()
        self.ended = True

    def given(self, update: Update) -> None:
        assert self.last is None or update.revision > self.last, "revisions rise"
        self.last, self.taken_at = update.revision, trio.current_time()
        self.count += 1
        self.news.append((self.taken_at, update))
        for name, changes in update.changes.items():
            mine = self._state.setdefault(name, {})
            for source in changes.removed:
                del mine[source]
            mine.update(by_source(changes.updated))
            if name not in update.snapshot:
                assert not self._state.pop(name), "a set that goes away is emptied"
        assert self._state == {name: by_source(groups) for name, groups in update.snapshot.items()}, "changes add up"

    def take(self) -> bool:
        """Take what is on offer; return whether there was something."""
        with suppress(trio.WouldBlock):
            self.given(self.updates.receive_nowait())
            return True
        return False

    def keep_pace(self, times: Mapping[int, float]) -> None:
        """Look at when it was given what, given when each revision came: a burst ever more slowly, the rest at once.

        Of one that is not eager nobody knows when it was ready.
        """
        for at, update in self.news:
            pause = self.throttle.minimum
            if self._seen is not None:
                last, last_at = self._seen
                ready = times[last + 1]
                if self.eager:
                    assert abs(at - max(ready, last_at + self._pause)) <= 2 * MOMENT, "an update comes in time"
                if ready <= last_at + self.throttle.maximum:
                    pause = min(self._pause * 1.5, self.throttle.maximum)
            self._pause = pause if self.eager else self.throttle.maximum
            self._seen = (update.revision, at)
        self.news.clear()

    @property
    def is_due(self) -> bool:
        """Whether its throttle has no say any more: it is given what is new at once."""
        if self.last is None or not self.throttle.maximum:
            return True
        return not self.news and trio.current_time() > self.taken_at + self._pause + 2 * MOMENT

    def statistics(self, world: World) -> SubscriptionStatistics:
        """Return what the engine must tell of it."""
        unseen = world.revision - (self.last or 0)
        behind_since = self.born[0] if self.last is None else world.times.get(self.last + 1)
        skipped = self.last - (self.born[1] - 1) - self.count if self.last is not None else 0
        return SubscriptionStatistics("", self.count, skipped, unseen, behind_since)


def by_source(groups: Sequence[TargetGroup]) -> dict[str, Counter[TargetGroup]]:
    found: dict[str, Counter[TargetGroup]] = {}
    for one in groups:
        found.setdefault(one.source, Counter())[one] += 1
    return found


def targets(groups: Iterable[TargetGroup]) -> int:
    return sum([len(one.targets) for one in groups])


class NoJitter(random.Random):
    def random(self) -> float:
        return 1.0


# --- steps ---


@dataclass(frozen=True)
class Action:
    """Something that is done to the engine, and what it may mean: alternatives of events one after the other."""

    do: Callable[[], None]
    meanings: Sequence[Sequence[Event]]


@dataclass
class Call:
    """A call of the manager that may take its time."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: bool = False


class Case:
    """A manager, the worlds that it may be in, and everybody around it."""

    def __init__(self, manager: Manager, nursery: trio.Nursery, reached: Counter[str], removal_delay: float) -> None:
        self.manager = manager
        self.nursery = nursery
        self.reached = reached
        self.worlds = [World(now=trio.current_time(), shown=Shown(removal_delay))]
        self.names: dict[str, str] = {}
        """The configurations by the names of their providers."""
        self.fakes = {name: Fake(name, self.names) for name in CONFIGS}
        self.subscribers: list[Subscriber] = []
        self.reloads: list[Call] = []
        self.wanted: list[Sets] = [{}]
        """What was asked for by each reload, after nothing at all."""
        self.refreshes: list[tuple[str | None, Call]] = []
        self.calls: list[tuple[float, str, Call]] = []
        """Of pause and resume: when, and of what."""

    # Each step is a tuple: the name of a method below, or of a case here, and what it is given. Those methods that
    # return an action, or None where it makes no sense at present, do nothing themselves.

    async def carry_out(self, name: str, *arguments: Any) -> None:
        match name:
            case "burst":
                await self.perform([action for step in arguments[0] if (action := self.action(*step)) is not None])
            case "all":  # all that are at work report
                for index, groups in enumerate(arguments[0]):
                    await self.carry_out("send", index, groups)
            case "sends":  # one after the other, of one run
                for groups in arguments[1]:
                    await self.carry_out("send", arguments[0], groups)
            case "exchange":  # once all have reported, other configurations take the place of some, all at once
                groups, index, restart, repeated, seconds = arguments
                await self.carry_out("all", [groups] * len(CONFIGS))
                sets = dict(self.wanted[-1])
                for name in [*sets][: 1 + index % 2]:
                    sets[name] = tuple([one for one in CONFIGS if one not in sets[name]])
                await self.carry_out("reload", sets, restart)
                for index in repeated:
                    await self.carry_out("repeat", index)
                await self.carry_out("advance", seconds)
            case "churn":  # so many changes that a throttle comes to its maximum
                for number in range(16):
                    await self.carry_out("send", arguments[0], [group("x", f"x{number % 2}")])
                    await self.carry_out("advance", 1.0)
            case "hiccup":  # what is paused is resumed, and paused again in the same tick
                await self.carry_out("pause", *arguments)
                if (resume := self.resume(*arguments)) is not None:
                    config = self.calls[-1][1]
                    await self.perform([resume, self._toggle(0, self.manager.pause, World.pause, {config})])
                    self.note("what is paused is resumed and paused again")
            case "in_a_row":  # once all have reported, reloads that leave no time to do so
                groups, index, restart, configs, seconds = arguments
                await self.carry_out("all", [groups] * len(CONFIGS))
                for place, config in enumerate(configs):
                    await self.carry_out("edit", index, place, restart, config)
                    await self.carry_out("advance", 0.5)
                await self.carry_out("advance", seconds)
            case "advance" | "subscribe":
                await getattr(self, name)(*arguments)
            case "leave" | "take" | "linger":
                getattr(self, name)(*arguments)
            case _:
                if (action := self.action(name, *arguments)) is not None:
                    await self.perform([action])
        await self.check(exact=name != "burst")

    def action(self, name: str, *arguments: Any) -> Action | None:
        action: Action | None = getattr(self, name)(*arguments)
        return action

    async def perform(self, actions: Sequence[Action]) -> None:
        """Do all in one tick of the scheduler. Any order of what it means makes a world."""
        after: list[World] = []
        # The new runs of a refresh begin a moment later; other things may come in between.
        later: list[Sequence[Event]] = [[World.catch_up]] if len(actions) > 1 else []
        meanings = product(*[action.meanings for action in actions])
        orders = [events for chosen in meanings for events in _interleaved([*chosen, *later])]
        for world in self.worlds:
            for events in orders:
                branch = world.copy() if len(orders) > 1 else world
                for happens in [*events, World.catch_up]:
                    happens(branch)
                if branch not in after:
                    after.append(branch)
        self.worlds = after
        for action in actions:
            action.do()

    def at_work(self, index: int) -> Fake | None:
        """Return one of the fakes that take orders, if there is any."""
        working = [config for config, run in self.worlds[0].runs.items() if run == "at work"]
        return self.fakes[working[index % len(working)]] if working else None

    def reload(self, sets: Sets, restart: Literal["all", "changed"]) -> Action:
        return self._reload(sets, restart, None)

    def brief_reload(self, sets: Sets, restart: Literal["all", "changed"], ticks: int) -> Action:
        """Reload, and cancel that so soon that it may not even have come to its turn."""
        return self._reload(sets, restart, ticks)

    def edit(self, index: int, place: int, restart: Literal["all", "changed"], config: str) -> Action | None:
        """Reload with another configuration in the place of one, or with one less."""
        if not self.wanted[-1]:
            return None
        name = [*self.wanted[-1]][index % len(self.wanted[-1])]
        members = [*self.wanted[-1][name]] or [config]
        if config in members:
            members.remove(config)
        else:
            members[place % len(members)] = config
        return self._reload(self.wanted[-1] | {name: tuple(members)}, restart, None)

    def undo(self, restart: Literal["all", "changed"]) -> Action:
        """Reload with what was before."""
        return self._reload(self.wanted[-2], restart, None)

    def _reload(self, sets: Sets, restart: Literal["all", "changed"], ticks: int | None) -> Action:
        number, call = len(self.reloads), Call()
        self.reloads.append(call)
        self.wanted.append(sets)
        wanted = {name: [self.fakes[one].config() for one in members] for name, members in sets.items()}
        unique = {name: tuple(dict.fromkeys(members)) for name, members in sets.items()}

        def do() -> None:
            self.nursery.start_soon(self._call, call, partial(self.manager.apply_config, wanted, restart=restart))
            if ticks is not None:
                self.nursery.start_soon(_cancel_after, ticks, call.scope)

        reload = partial(World.reload, number=number, sets=unique, restart_all=restart == "all")
        if ticks is None:
            return Action(do, [[reload]])
        return Action(do, [[], [reload, partial(World.cancel, number=number)]])

    def cancel(self, index: int) -> Action | None:
        in_force = self.worlds[0].reload_in_force
        if in_force is None:
            return None
        pending = [in_force, *[number for number, *_ in self.worlds[0].queue]]
        number = pending[index % len(pending)]
        waiting = number != in_force
        self.note("a reload is cancelled, waiting for its turn" if waiting else "a reload in force is cancelled")
        return Action(self.reloads[number].scope.cancel, [[partial(World.cancel, number=number)]])

    def refresh(self, index: int) -> Action:
        name = [None, *self.worlds[0].shown.sets][index % (1 + len(self.worlds[0].shown.sets))]
        call = Call()

        def do() -> None:
            self.refreshes.append((name, call))
            self.nursery.start_soon(self._call, call, partial(self.manager.refresh, name))

        return Action(do, [[partial(World.refresh, name=name)]])

    def pause(self, index: int) -> Action | None:
        running = self.worlds[0].runs.keys() - self.worlds[0].paused
        return self._toggle(index, self.manager.pause, World.pause, running) if running else None

    def resume(self, index: int) -> Action | None:
        paused = self.worlds[0].runs.keys() & self.worlds[0].paused
        return self._toggle(index, self.manager.resume, World.resume, paused) if paused else None

    def _toggle(
        self,
        index: int,
        call: Callable[[str], Awaitable[None]],
        meaning: Callable[[World, str], None],
        choice: set[str],
    ) -> Action:
        config = sorted(choice)[index % len(choice)]
        # Its name is known from its place: a run, which would tell it, need not have begun.
        name = self.manager.statistics().providers[[*self.worlds[0].runs].index(config)].name
        self.calls.append((trio.current_time(), config, Call()))
        made = self.calls[-1][2]
        return Action(
            lambda: self.nursery.start_soon(self._call, made, partial(call, name)),
            [[lambda world: meaning(world, config)]],
        )

    def send(self, index: int, groups: Sequence[TargetGroup]) -> Action | None:
        if (fake := self.at_work(index)) is None:
            return None
        return Action(partial(fake.order, groups), [[partial(World.send, config=fake.name, groups=groups)]])

    def repeat(self, index: int) -> Action | None:
        """Send the full set that is known already."""
        fake = self.at_work(index)
        return self.send(index, tuple(self.worlds[0].shown.found.get(fake.name, {}).values())) if fake else None

    def crash(self, index: int, groups: Sequence[TargetGroup]) -> Action | None:
        """Send something, and fail right after."""
        if (fake := self.at_work(index)) is None:
            return None
        send = partial(World.send, config=fake.name, groups=groups)
        return Action(partial(fake.order, groups, ValueError("a crash")), [[send, *self._end(fake, World.fail)]])

    def fail(self, index: int) -> Action | None:
        if (fake := self.at_work(index)) is None:
            return None
        return Action(partial(fake.order, ValueError("a failure")), [self._end(fake, World.fail)])

    def finish(self, index: int) -> Action | None:
        if (fake := self.at_work(index)) is None:
            return None
        return Action(partial(fake.order, None), [self._end(fake, World.finish)])

    def _end(self, fake: Fake, how: Callable[[World, str], None]) -> list[Event]:
        return [lambda world: how(world, fake.name), lambda world: world.notice(fake.name)]

    def linger(self, config: str, seconds: float) -> None:
        """Have all runs of a configuration, also those under way, take their time to end."""
        seconds += CONFIGS.index(config) / 100 if seconds else 0  # no two end at the same time
        self.fakes[config].linger = seconds
        for world in self.worlds:
            world.linger[config] = seconds

    async def subscribe(self, eager: bool, throttle: Throttle) -> None:
        self.subscribers.append(Subscriber(self.manager, eager=eager, throttle=throttle))
        await self.nursery.start(self.subscribers[-1].run)

    def leave(self, index: int) -> None:
        if len(self.subscribers) > 1:  # the first one stays: it proves what everybody may see
            subscriber = self.subscribers.pop(1 + index % (len(self.subscribers) - 1))
            subscriber.scope.cancel()
            self.note("a subscriber leaves")

    def take(self, index: int) -> None:
        if lazy := [one for one in self.subscribers if not one.eager]:
            self.take_of(lazy[index % len(lazy)])

    def take_of(self, one: Subscriber) -> None:
        """Have one take what is on offer, which must be the newest state."""
        last, is_due = one.last, one.is_due
        if one.take():
            assert one.last == self.manager.snapshot().revision, "what is taken is the newest"
            if one.last > (last or 0) + 1:
                self.note("a slow subscriber skips revisions")
        else:
            assert last == self.manager.snapshot().revision or not is_due, "what is new is on offer"

    async def advance(self, seconds: float) -> None:
        """Let time pass, stopping whenever something must happen."""
        until = trio.current_time() + seconds
        while True:
            times = [world.next_time() for world in self.worlds]
            times += [called + GRACE for called, *_ in self.calls if called + GRACE > trio.current_time()]
            at = min(times) + MOMENT
            await trio.sleep_until(min(at, until))
            left = any(self.worlds[0].shown.leaving.values())
            removals = self.worlds[0].shown.removals()
            failed = "failed" in self.worlds[0].runs.values()
            for world in self.worlds:
                world.advance(min(at, until))
            if left and not any(self.worlds[0].shown.leaving.values()):
                self.note("what left goes at its deadline")
            if any(removal <= self.worlds[0].now for removal in removals):
                self.note("what was removed goes at its time")
            if failed and "failed" not in self.worlds[0].runs.values():
                self.note("a run that failed is followed by another")
            if at >= until:
                return
            await self.check()

    async def _call(self, call: Call, function: Callable[[], Any]) -> None:
        with call.scope, suppress(trio.ClosedResourceError, KeyError):  # the manager is closed, or the set gone
            await function()
        call.done = True

    def note(self, what: str) -> None:
        self.reached[what] += 1

    # What must be.

    async def check(self, *, exact: bool = True) -> None:
        """Let everything come to rest, and keep the worlds that agree with what is there: at least one."""
        await wait_all_tasks_blocked()
        for one in self.subscribers:
            assert all(at >= trio.current_time() - 2 * MOMENT for at, _ in one.news if not one.throttle.maximum)
            if one.eager and one.is_due:
                assert one.last == self.manager.snapshot().revision, "who takes everything has the newest"
        if len(self.worlds) > 1:
            self.note("it might have happened in one way or another")
        found = [(world, list(self.differences(world, exact=exact))) for world in self.worlds]
        self.worlds = [world for world, differences in found if not differences]
        assert self.worlds, "\n\n".join(["\n".join(differences) for _, differences in found])
        self.note_what_is_rare(self.worlds[0])
        for world in self.worlds:
            world.rest()
        self.worlds = [world for n, world in enumerate(self.worlds) if world not in self.worlds[:n]]
        for fake in self.fakes.values():
            for run in fake.runs:
                run.rested = True
        for one in self.subscribers:
            one.keep_pace(self.worlds[0].times)
        self.refreshes = [(name, call) for name, call in self.refreshes if not call.done]
        self.calls = [one for one in self.calls if not one[2].done]

    def note_what_is_rare(self, world: World) -> None:
        rare = {
            "something leaves": any(world.shown.leaving.values()),
            "leavers of two reloads": any(len(set(left.values())) > 1 for left in world.shown.leaving.values()),
            "something is paused": bool(world.paused),
            "something is paused that has yet to end": any(world.runs.get(c) == "cleans up" for c in world.paused),
            "what is paused is waited for by those who leave": any(
                joining & world.paused and world.shown.leaving[name] for name, joining in world.shown.joining.items()
            ),
            "a removal waits": any(gone for by_source in world.shown.gone.values() for gone in by_source.values()),
            "a run is stuck": bool(world.stuck(GRACE)),
            "a reload waits for old runs": world.reload_in_force is not None,
            "a reload waits for its turn": bool(world.queue),
            "a refreshed run cleans up": "cleans up" in world.runs.values(),
            "something is sent too late": any(fake.refused for fake in self.fakes.values()),
        }
        for what, happens in rare.items():
            if happens:
                self.note(what)
        for what in world.reached:
            self.note(what)

    def differences(self, world: World, *, exact: bool) -> Iterator[str]:
        """Tell in what the engine differs from a world."""

        def compare(what: str, found: object, expected: object) -> Iterator[str]:
            if found != expected:
                yield f"{what}\n     is {found}\n not {expected}"

        shown = world.shown
        snapshot = self.manager.snapshot()
        yield from compare("the newest state", tuple(snapshot.items()), shown.content())
        yield from compare("the newest revision", snapshot.revision, world.revision)
        for one in self.subscribers:
            for _, update in one.news:
                content = tuple(update.snapshot.items())
                yield from compare(f"revision {update.revision}", content, world.history.get(update.revision))
        alive = Counter({name: len(fake.runs) for name, fake in self.fakes.items() if fake.runs})
        yield from compare("what runs", alive, world.alive())
        waiting = {n for n, call in enumerate(self.reloads) if not call.done}
        pending = {number for number, *_ in world.queue} | {world.reload_in_force} - {None}
        yield from compare("reloads under way", waiting, pending)
        unsettled = world.unsettled
        for at, config, call in self.calls:
            ended = world.runs.get(config) == "paused" and config not in [ending for ending, *_ in world.ending]
            if not call.done and (ended or world.now > at + GRACE):
                yield f"a call to pause or resume {config} has not returned"
        exact = exact and len(world.history) <= 2  # else it may have returned at a moment that has passed
        for name, call in self.refreshes:
            # Of a set that is there no more it returns, too: with the error that there is no such set.
            gone = name is not None and name not in shown.sets
            expected = gone or not set(world.chosen(name)) & set(unsettled)
            if exact or not call.done:
                yield from compare(f"a refresh of {name or 'all'} has returned", call.done, expected)
        yield from compare("who is not synced", len(self.manager.unsynced()), len(unsettled))

        told = self.manager.statistics()
        yield from compare("statistics of reloads", told.reloads, world.reloads)
        yield from compare("which sets are told", [found.name for found in told.sets], [*shown.sets])
        yield from compare("how many providers are told", len(told.providers), len(world.runs))
        for found, (name, groups) in zip(told.sets, shown.content(), strict=False):
            leaving = self.configs(found.leaving)
            yield from compare(f"how many groups {name} has", found.groups, len(groups))
            yield from compare(f"how many targets {name} has", found.targets, targets(groups))
            yield from compare(f"how many providers {name} has", len(found.providers), len(shown.sets[name]))
            yield from compare(f"what leaves {name}", leaving, [*shown.leaving[name]])
        for provider, config in zip(told.providers, world.runs, strict=False):
            held = shown.held.get(config, {}).values()
            sets = tuple([name for name, members in shown.sets.items() if config in members])
            facts = (provider.state, provider.sets, provider.groups, provider.targets)
            yield from compare(f"how {config} fares", facts, (world.state(config), sets, len(held), targets(held)))
        stuck = set(self.configs(told.stuck))
        if not world.stuck(GRACE + MOMENT / 2) <= stuck <= world.stuck(GRACE - MOMENT / 2):
            yield f"stuck are {stuck}, not {world.stuck(GRACE)}"
        for subscription, subscriber in zip(told.subscriptions, self.subscribers, strict=True):
            expected_of_it = subscriber.statistics(world)
            since, expected_since = subscription.behind_since, expected_of_it.behind_since
            if since is not None and expected_since is not None and abs(since - expected_since) < MOMENT:
                expected_of_it = replace(expected_of_it, behind_since=since)
            yield from compare("statistics of a subscriber", subscription, expected_of_it)

    def configs(self, names: Sequence[str]) -> list[str]:
        return [self.names.get(name, name) for name in names]


async def _cancel_after(ticks: int, scope: trio.CancelScope) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


def _interleaved(chains: Sequence[Sequence[Event]]) -> Iterator[list[Event]]:
    """Yield every order of all events that keeps the order of each chain."""
    if not any(chains):
        yield []
    for n, events in enumerate(chains):
        if events:
            yield from ([events[0], *after] for after in _interleaved([*chains[:n], events[1:], *chains[n + 1 :]]))


# --- the test ---

GROUPS: Final = st.lists(
    st.builds(
        lambda source, numbers: group(source, *[f"{source}{number}" for number in numbers]),
        st.sampled_from("wxyz"),
        st.lists(st.sampled_from("12"), max_size=2, unique=True),
    ),
    max_size=3,
)
MEMBERS: Final = st.lists(st.sampled_from(CONFIGS), max_size=3).map(tuple)
SETS_OF_CONFIGS: Final[st.SearchStrategy[Sets]] = (
    st.dictionaries(st.sampled_from(SETS), MEMBERS, max_size=3)
    .flatmap(lambda sets: st.permutations(list(sets.items())))
    .map(dict)
)
INDEX: Final = st.integers(0, 11)
RESTART: Final = st.sampled_from(("all", "changed"))
LINGER: Final = st.sampled_from((*[0.0] * 4, *LINGERS))
THROTTLE: Final = st.sampled_from((Throttle(0, 0), Throttle()))


def step(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


RELOAD: Final = step("reload", SETS_OF_CONFIGS, RESTART)
EDIT: Final = step("edit", INDEX, INDEX, RESTART, st.sampled_from(CONFIGS))
SEND: Final = step("send", INDEX, GROUPS)
SECONDS: Final = st.sampled_from((0.05, 1.0, 3.0, 5.5, 16.0))
PATIENCE: Final = st.sampled_from((0.05, WARM_UP + 1))
SOME_CONFIGS: Final = st.lists(st.sampled_from(CONFIGS), min_size=2, max_size=3, unique=True)
ADVANCE: Final = step("advance", SECONDS)
RACING: Final = st.one_of(
    RELOAD,
    SEND,
    SEND,
    step("refresh", INDEX),
    step("pause", INDEX),
    step("resume", INDEX),
    step("repeat", INDEX),
    step("cancel", INDEX),
    step("crash", INDEX, GROUPS),
    step("fail", INDEX),
    step("finish", INDEX),
)
STEPS: Final = st.one_of(
    RELOAD,
    RELOAD,
    EDIT,
    EDIT,
    EDIT,
    step("undo", RESTART),
    step("sends", INDEX, st.lists(GROUPS, min_size=2, max_size=4)),
    step("exchange", GROUPS, INDEX, RESTART, st.just(()) | st.permutations(range(len(CONFIGS))), PATIENCE),
    step("repeat", INDEX),
    step("pause", INDEX),
    step("resume", INDEX),
    step("hiccup", INDEX),
    step("churn", INDEX),
    step("in_a_row", GROUPS, INDEX, RESTART, SOME_CONFIGS, PATIENCE),
    step("cancel", INDEX),
    SEND,
    SEND,
    step("all", st.lists(GROUPS, min_size=2, max_size=len(CONFIGS))),
    ADVANCE,
    ADVANCE,
    ADVANCE,
    ADVANCE,
    step("burst", st.lists(RACING, min_size=2, max_size=3)),
    step("burst", st.tuples(RELOAD, RELOAD)),
    step("burst", st.tuples(RELOAD, SEND)),
    step("brief_reload", SETS_OF_CONFIGS, RESTART, st.integers(0, 4)),
    step("cancel", INDEX),
    step("refresh", INDEX),
    step("crash", INDEX, GROUPS),
    step("fail", INDEX),
    step("finish", INDEX),
    step("finish", INDEX),
    step("linger", st.sampled_from(CONFIGS), LINGER),
    step("subscribe", st.booleans(), THROTTLE),
    step("take", INDEX),
    step("take", INDEX),
    step("leave", INDEX),
)


CASES: Final[Mapping[str, st.SearchStrategy[Any]]] = {
    "removal_delay": st.sampled_from((0.0, 0.0, REMOVAL_DELAY)),
    "lingers": st.tuples(LINGER, LINGER, LINGER, LINGER),
    "steps": st.lists(STEPS, min_size=12, max_size=30),
}
X: Final = [group("x", "x1", "x2")]
Y: Final = [group("y", "y1")]
STORIES: Final[Sequence[Sequence[tuple[Any, ...]]]] = (  # what chance must not leave out
    [("in_a_row", X, 0, "all", ["c", "d"], WARM_UP + 1)],  # each leaves at its own deadline
    [("exchange", X, 1, "all", (), WARM_UP + 1)],  # all leave at one
    [("exchange", X, 0, "all", (1, 0), 0.05)],  # who is waited for last says what is known already
    [("edit", 0, 0, "all", "c"), ("undo", "all"), ("all", [X, [], X])],  # what left comes back, and is waited for
    [("sends", 0, [X, [group("x", "x2")], [], X, [group("x")]]), ("advance", 3.0), ("send", 0, X), ("fail", 0)],
    [("finish", 0), ("send", 0, X), ("crash", 0, Y), ("advance", 3.0), ("send", 0, X)],
    [
        ("pause", 0),
        ("advance", GRACE + 1),
        ("undo", "all"),
        ("undo", "all"),
        ("hiccup", 0),
        ("resume", 0),
        ("send", 0, X),
    ],
    # What is handed over in the tick in which the run is told to end, if the scheduler's dice fall so.
    [one for _ in range(6) for one in (("send", 0, X), ("burst", (("send", 0, Y), ("reload", {"s": "a"}, "all"))))],
    [one for _ in range(6) for one in (("send", 0, X), ("burst", (("send", 0, Y), ("refresh", 0))))],
)
REACHED: Final = {
    "a configuration joins, and has not reported at the next reload",
    "a refreshed run cleans up",
    "a reload in force is cancelled",
    "a removal waits",
    "a reload is cancelled, waiting for its turn",
    "a reload waits for its turn",
    "a reload waits for old runs",
    "a run is stuck",
    "a run that failed is followed by another",
    "a slow subscriber skips revisions",
    "a subscriber leaves",
    "it might have happened in one way or another",
    "leavers of two reloads",
    "something is sent as the run is told to stop",
    "something is sent too late",
    "something is paused",
    "something is paused that has yet to end",
    "something leaves",
    "what is paused is resumed and paused again",
    "what left comes back",
    "what left goes at its deadline",
    "what was removed goes at its time",
}


async def live(
    removal_delay: float, lingers: Sequence[float], steps: Sequence[tuple[Any, ...]], reached: Counter[str]
) -> None:
    """Live through the steps, and see that nothing is left in the end."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    options: dict[str, Any] = {
        "backoff": Backoff(BACKOFF, BACKOFF),
        "rng": NoJitter(),
        "warm_up": WARM_UP,
        "grace": GRACE,
        "removal_delay": removal_delay,
    }
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            async with open_manager(**options) as manager:
                case = Case(manager, nursery, reached, removal_delay)
                for eager, throttle in ((True, Throttle(0, 0)), (False, Throttle(0, 0)), (True, Throttle())):
                    await case.carry_out("subscribe", eager, throttle)
                for config, seconds in zip(CONFIGS, lingers, strict=True):
                    await case.carry_out("linger", config, seconds)
                await case.carry_out("reload", {"s": ("a", "b"), "t": ("b", "c")}, "all")
                await case.carry_out("all", [[group("x", "x1"), group("y", "y1", "y2")]] * 3)
                for what in steps:
                    await case.carry_out(*what)
                await case.carry_out("advance", GRACE * len(case.reloads) + WARM_UP + 1)
                assert not any(one.leaving for one in manager.statistics().sets)
                for one in case.subscribers:
                    if not one.eager:
                        case.take_of(one)
                    assert one.last == manager.snapshot().revision
            for one in case.subscribers:
                if not one.eager:
                    with pytest.raises(trio.EndOfChannel):
                        one.take()
                    one.scope.cancel()  # eager ones end by themselves
            told = manager.statistics()
            assert not told.subscriptions
            assert not told.stuck
            assert all(provider.state == "stopped" for provider in told.providers)
            assert not any(fake.runs for fake in case.fakes.values())
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert all(call.done for call in [*case.reloads, *[call for _, call in case.refreshes]])
    assert all(one.ended for one in case.subscribers)


@pytest.mark.hypothesis  # for the campaign, which can't see that it is
def test_subscribers_see_what_the_model_says_at_every_revision(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "trio_sd")
    reached = Counter[str]()

    @given(**CASES)
    def check(removal_delay: float, lingers: Sequence[float], steps: Sequence[tuple[Any, ...]]) -> None:
        trio.run(live, removal_delay, lingers, steps, reached, clock=MockClock(autojump_threshold=0))

    for steps, (delay, linger) in product(STORIES, ((0.0, 0.0), (REMOVAL_DELAY, LINGERS[-1]))):
        check = example(removal_delay=delay, lingers=[linger] * len(CONFIGS), steps=steps)(check)
    check()
    assert reached.keys() >= REACHED, "the examples are worth something"
