"""Fakes and checks for those who test with trio_sd, and for trio_sd's own tests."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import trio
import trio.testing

from .discoverer import Discoverer, DiscovererConfig, DiscovererOptions
from .resources import Resources
from .targets import ADDRESS_LABEL, TargetGroup

__all__ = [
    "CancelAfter",
    "ContractError",
    "FakeConfig",
    "FakeDiscoverer",
    "cancel_everywhere",
    "check_discoverer",
    "group",
]

_Action = Callable[[trio.MemorySendChannel[Sequence[TargetGroup]]], Awaitable[bool]]


def group(source: str, *addresses: str, labels: Mapping[str, str] | None = None) -> TargetGroup:
    """Return a group of targets that have an address and nothing else."""
    return TargetGroup(source, [{ADDRESS_LABEL: address} for address in addresses], labels or {})


class FakeDiscoverer:
    """A discoverer that does what the test says, when it says it.

    Put its :attr:`config` into a manager's configuration; equal names make equal configurations. Every run that the
    engine starts takes its orders from here; an order waits until a run is there to take it, and returns when it has
    been carried out.

    Args:
      name: tells configurations apart.
      linger: seconds that a run takes to end when cancelled, shielded, as clean-up may.
      first: what every run sends first of all without being told, or ``None`` to wait for orders.
    """

    def __init__(self, name: str, *, linger: float = 0.0, first: Iterable[TargetGroup] | None = None) -> None:
        self.config = FakeConfig(name, self)
        self.started = 0
        """How many runs have begun."""
        self.running = 0
        """How many runs are under way."""
        self.options: DiscovererOptions | None = None
        """What the engine handed to the latest run."""
        self._first = None if first is None else tuple(first)
        self._linger = linger
        self._orders, self._inbox = trio.open_memory_channel[_Action](0)

    async def run(self, updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> None:
        """Carry out orders until one of them ends the run."""
        self.started += 1
        self.running += 1
        try:
            if self._first is not None:
                await updates.send(self._first)
            while await (await self._inbox.receive())(updates):
                pass
        finally:
            with trio.CancelScope(shield=True):
                if self._linger:
                    await trio.sleep(self._linger)
            self.running -= 1

    async def send(self, *groups: TargetGroup) -> None:
        """Have the run send ``groups``, and wait until the engine has taken them.

        Raises:
          trio.BrokenResourceError: the run was cancelled instead.
        """
        taken = False
        done = trio.Event()

        async def action(updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> bool:
            nonlocal taken
            try:
                await updates.send(groups)
                taken = True
            finally:
                done.set()
            return True

        await self._orders.send(action)
        await done.wait()
        if not taken:
            raise trio.BrokenResourceError("the run was cancelled before the engine took what it sent")

    async def fail(self, error: Exception) -> None:
        """Have the run raise ``error``."""

        async def action(updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> bool:
            raise error

        await self._orders.send(action)

    async def finish(self) -> None:
        """Have the run return."""

        async def action(updates: trio.MemorySendChannel[Sequence[TargetGroup]]) -> bool:
            return False

        await self._orders.send(action)


@dataclass(frozen=True)
class FakeConfig(DiscovererConfig):
    """The configuration of a :class:`FakeDiscoverer`; equal to another of the same name."""

    mechanism: ClassVar[str] = "fake"
    name: str
    fake: FakeDiscoverer = field(compare=False, repr=False)

    def discoverer(self, options: DiscovererOptions) -> FakeDiscoverer:
        """Return the fake that the test holds."""
        self.fake.options = options
        return self.fake


class CancelAfter(trio.abc.Instrument):
    """Cancels ``scope`` once the task that made this has taken ``steps`` steps; use it in a ``with`` block.

    Run something with 1 step, 2 steps and so on until it is no longer cancelled, and every await of it was cancelled.
    """

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one step."""
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()

    def __enter__(self) -> CancelAfter:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)


async def cancel_everywhere(
    scenario: Callable[[], Awaitable[None]], check: Callable[[bool], None] = lambda completed: None
) -> int:
    """Run ``scenario`` again and again, cancelled one step later each time, until it completes; return how often.

    So every await of it is cancelled once. After each run no task may live that did not before the first, by the names
    of tasks, and ``check`` is called.

    Args:
      scenario: what to run. It must not swallow its cancellation.
      check: looks at what the run has left behind; told whether it completed.

    Raises:
      AssertionError: a task outlived its run.
    """
    steps = 0
    completed = False
    before = _tasks()
    while not completed:
        steps += 1
        with trio.CancelScope() as scope, CancelAfter(steps, scope):
            await scenario()
        completed = not scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        if left := _tasks() - before:
            raise AssertionError(f"cancelled after {steps} steps, it left behind: {', '.join(left.elements())}")
        check(completed)
    return steps


def _tasks() -> Counter[str]:
    """Return how many tasks of each name live in this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found: Counter[str] = Counter()
    ahead = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
    while ahead:
        task = ahead.pop()
        found[task.name] += 1
        ahead += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


class ContractError(AssertionError):
    """A discoverer breaks the contract; the message says which rule."""


async def check_discoverer(config: DiscovererConfig, *, patience: float = 5.0) -> tuple[TargetGroup, ...]:
    """Run the discoverers of ``config`` through the contract, and return the first full set.

    The configuration must be hashable and equal to a copy of itself. Making a discoverer opens nothing. Its first
    send comes within ``patience`` seconds and consists of target groups, no two of one source. It does not close the
    channel. Cancelled at any step, it ends within that time and leaves no file descriptor. Another one, run beside
    it, finds the same.

    Args:
      config: of a source that does not change meanwhile.
      patience: seconds for what should take little time.

    Raises:
      ContractError: a rule is broken.
    """
    twin = copy.copy(config)
    _require(twin == config and hash(twin) == hash(config), "a configuration equals a copy of itself, and hashes alike")
    opened = _descriptors()
    async with trio.open_nursery() as nursery:
        options = DiscovererOptions(Resources(nursery))
        discoverer = config.discoverer(options)
        _require(_descriptors() == opened, "nothing is opened before run()")
        found, again = await _first_set(discoverer, patience), await _first_set(twin.discoverer(options), patience)
        sources = [one.source for one in found]
        _require(len(set(sources)) == len(sources), "no two groups of an update have the same source")
        _require(sorted(sources) == sorted(one.source for one in again), "equal configurations find the same")
        steps = 0
        cancelled = True
        while cancelled:
            steps += 1
            cancelled = await _cancelled_after(steps, config.discoverer(options), patience)
            _require(_descriptors() == opened, f"nothing stays open, but does when cancelled after {steps} steps")
    return found


async def _first_set(discoverer: Discoverer, patience: float) -> tuple[TargetGroup, ...]:
    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    with send, receive:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discoverer.run, send)
            with trio.move_on_after(patience) as scope:
                found = tuple(await receive.receive())
            _require(not scope.cancelled_caught, f"the first full set comes within {patience:g} s")
            nursery.cancel_scope.cancel()
        try:
            send.send_nowait(())
        except trio.ClosedResourceError:
            _require(False, "the channel is the engine's to close")
        except trio.WouldBlock:
            pass
    _require(all(type(one) is TargetGroup for one in found), "an update consists of target groups")
    return found


async def _cancelled_after(steps: int, discoverer: Discoverer, patience: float) -> bool:
    """Run until the first full set or the given number of steps; return whether it was the latter."""
    with trio.CancelScope() as scope:
        once = _Once(scope)
        with trio.fail_after(patience), CancelAfter(steps, scope):
            await discoverer.run(once)  # type: ignore[arg-type]  # it has all of a channel that run() may use
    return not once.taken


class _Once:
    """A channel that ends the run when it has taken one update."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self.taken = False

    async def send(self, groups: Sequence[TargetGroup]) -> None:
        await trio.lowlevel.checkpoint()
        self.taken = True
        self._scope.cancel()


def _descriptors() -> set[str] | None:
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ContractError(f"broken: {rule}")
