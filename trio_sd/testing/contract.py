"""The contract between the engine and discoverers, rule by rule, for discoverers of all kinds.

Who writes a mechanism writes a :class:`ContractSource` for it, a server of his that does what it is told, and hands
what opens it to the rules. With pytest::

    @pytest.mark.parametrize("rule", contract_rules(), ids=str)
    def test_racks_keep_the_contract(rule: ContractRule) -> None:
        trio.run(rule.check, open_racks)

Without: ``trio.run(check_contract, open_racks)``. A rule that needs what the source can't do is skipped, and named. The
test above is sync on purpose: pytest-trio would lose the reason of a skip.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, TypeAlias
from unittest import SkipTest

import trio

from ..discoverer import Discoverer, DiscovererConfig, DiscovererOptions
from ..resources import Resources
from ..secrets import Secret
from ..targets import TargetGroup
from .cancellation import CancelAfter
from .observed import (
    ContractError,
    ManagedRun,
    check_update,
    managed_run,
    most_held,
    require,
    require_released,
    what_is_held,
)

__all__ = [
    "Capability",
    "ContractRule",
    "ContractSource",
    "OpenSource",
    "RuleSkipped",
    "check_contract",
    "check_discoverer",
    "contract_rules",
]

logger = logging.getLogger(__name__)

_A: Final = "127.0.0.1:9100"
_B: Final = "127.0.0.2:9100"
_C: Final = "127.0.0.3:9100"
_MOMENT: Final = 0.2  # seconds in which a read has surely begun
_CHANGES: Final = 10  # while the discoverer is held back
_CHANGE_TIME: Final = 0.06  # seconds between them, in which it may find out about each
_MELTED: Final = 3  # updates in which it tells of them: what it was about to send, and the newest state
_SHOWN_SECRET: Final = 4  # characters; a shorter one is in any text by chance

Capability: TypeAlias = Literal["change", "fail", "hang"]
"""What a source may be able to do while a discoverer runs."""


class ContractSource(ABC):
    """Something to discover targets from, and under control: a fake or a real server, a directory, a zone.

    At first, it has no targets. ``fail`` and ``hang`` last until ``show``. All of them return when they are in effect.
    """

    can: ClassVar[frozenset[Capability]] = frozenset()
    """What the source can do while a discoverer runs; one that can ``fail`` or ``hang`` can ``change`` as well."""

    config: DiscovererConfig
    """The configuration of a discoverer for this source, and no other.

    It has the discoverer look again soon: when the source tells of a change, or every 50 ms. If it lists the targets
    itself, ``show`` replaces it.
    """

    @abstractmethod
    async def show(self, *addresses: str) -> None:
        """From now on, have exactly one target at each of the ``addresses``: IPv4 addresses, all with one port."""

    async def fail(self) -> None:
        """From now on, be something that can't be read."""
        raise NotImplementedError

    async def hang(self) -> None:
        """From now on, be something of which reading does not end."""
        raise NotImplementedError


OpenSource: TypeAlias = Callable[[], AbstractAsyncContextManager[ContractSource]]
"""Opens a source of its own each time, maybe several at once, and in another ``trio.run``."""


class RuleSkipped(SkipTest):
    """A rule was not checked, because it needs what the source can't do. Shown by pytest and unittest as a skip."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """What a rule is checked with."""

    source: ContractSource
    open_source: OpenSource
    patience: float

    def run(self) -> AbstractAsyncContextManager[ManagedRun]:
        return managed_run(self.patience)


@dataclass(frozen=True, slots=True)
class ContractRule:
    """One rule of the contract.

    Attributes:
      name: what it is called in messages.
      needs: what a source has to be able to do for it.
    """

    name: str
    needs: frozenset[Capability]
    _check: Callable[[_Trial], Awaitable[None]] = field(repr=False)

    def __str__(self) -> str:
        return self.name

    async def check(self, open_source: OpenSource, *, patience: float = 5.0) -> None:
        """Run discoverers of a source that is opened for this, and see whether they keep the rule.

        Args:
          open_source: opens the source.
          patience: seconds for what should take little time. It takes longer than the mechanism's own deadline.

        Raises:
          ContractError: the rule is broken; the message begins with its name.
          RuleSkipped: the source can't do what the rule needs.
        """
        broken: BaseException | None = None
        async with open_source() as source:
            lacking = sorted(self.needs - source.can)
            if not lacking:
                # Told once the source is closed, whose own nursery would wrap it.
                try:
                    await self._check(_Trial(source, open_source, patience))
                except* ContractError as errors:
                    broken = errors
        if lacking:
            raise RuleSkipped(f"{self.name} is not checked: the source can't {' and '.join(lacking)}")
        while isinstance(broken, BaseExceptionGroup):
            broken = broken.exceptions[0]
        if broken is not None:
            raise ContractError(f"{self.name}: {broken}") from broken


def contract_rules() -> tuple[ContractRule, ...]:
    """Return all rules."""
    return _RULES


async def check_contract(open_source: OpenSource, *, patience: float = 5.0) -> tuple[str, ...]:
    """Check all rules, one after the other, and return the names of those that were skipped; the log names them too.

    Args:
      open_source: opens a source; once for each rule, at least.
      patience: as of :meth:`ContractRule.check`.

    Raises:
      ContractError: a rule is broken; the message begins with its name.
    """
    skipped = []
    for rule in contract_rules():
        try:
            await rule.check(open_source, patience=patience)
        except RuleSkipped as skip:
            logger.warning("%s", skip)
            skipped.append(rule.name)
    return tuple(skipped)


# The rules


async def _configuration_is_a_value(trial: _Trial) -> None:
    await trial.source.show(_A)
    _check_config(trial.source.config)


async def _first_send_is_the_full_set(trial: _Trial) -> None:
    await trial.source.show(_A, _B, _C)
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        await seen.until(lambda: seen.updates > 0, "the first full set comes")
        require(seen.first == [_A, _B, _C], f"the first send is the full set, {[_A, _B, _C]}, but was {seen.first}")


async def _empty_is_sent(trial: _Trial) -> None:
    await trial.source.show()
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        await seen.until_shown([], "a first full set that is empty is sent")


async def _targets_that_go_are_removed(trial: _Trial) -> None:
    await trial.source.show(_A, _B)
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        await seen.until_shown([_A, _B], "the first full set comes")
        for addresses in [], [_B], []:
            await trial.source.show(*addresses)
            await seen.until_shown(addresses, "targets that have gone are removed, the last ones as well,")


async def _updates_add_up(trial: _Trial) -> None:
    await trial.source.show(_A)
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        for addresses in [_A], [_A, _B, _C], [_C, _A], [_B], [_A, _B], [_C]:
            await trial.source.show(*addresses)
            await seen.until_shown(addresses, "whole groups, put together by source, are what there is")


async def _failure_keeps_what_was_good(trial: _Trial) -> None:
    await trial.source.show(_A, _B)
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        await seen.until_shown([_A, _B], "the first full set comes")
        seen.keep = [_A, _B]
        await trial.source.fail()
        await seen.until_told()
        require(seen.addresses == [_A, _B], f"a failure changes nothing, but {seen.addresses} are shown")
        await trial.source.show(_B, _C)
        await seen.until_mended([_B, _C])


async def _failed_first_read_sends_nothing(trial: _Trial) -> None:
    await trial.source.show(_A)
    await trial.source.fail()
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        await seen.until_told()
        require(seen.updates == 0, f"nothing is sent before anything was found out, but {seen.first} was")
        await trial.source.show(_A, _B)
        await seen.until_mended([_A, _B])


async def _last_known_stays(trial: _Trial) -> None:
    await trial.source.show(_A, _B)
    async with trial.run() as run:
        earlier = run.observe(trial.source.config)
        await earlier.until_shown([_A, _B], "the first full set comes")
    await trial.source.fail()
    async with trial.run() as run:
        seen = run.observe(trial.source.config, earlier.shown)
        seen.keep = [_A, _B]
        await seen.until_told()
        require(seen.addresses == [_A, _B], f"only what was known is shown, but {seen.addresses} are")
        await trial.source.show(_B)
        await seen.until_mended([_B])


async def _cancelled_it_leaves_nothing(trial: _Trial) -> None:
    await trial.source.show(_A, _B)
    await check_discoverer(trial.source.config, patience=trial.patience)


async def _cancelled_while_hanging_it_ends(trial: _Trial) -> None:
    await trial.source.show(_A)
    held = await most_held()
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        await seen.until_shown([_A], "the first full set comes")
        await trial.source.hang()
        await trio.sleep(_MOMENT)
    async with trial.run() as run:
        run.observe(trial.source.config)
        await trio.sleep(_MOMENT)
    await trial.source.show(_A)  # so that a server that hung sees that it was left
    await require_released(held, "cancelled while reading hangs, it leaves nothing", trial.patience)


async def _hanging_is_told(trial: _Trial) -> None:
    await trial.source.show(_A)
    await trial.source.hang()
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        await seen.until_told()
        require(seen.updates == 0, f"nothing is sent before anything was found out, but {seen.first} was")
        await trial.source.show(_A, _B)
        await seen.until_mended([_A, _B])
        seen.keep = [_A, _B]
        await trial.source.hang()
        await seen.until_told()
        await trial.source.show(_C)
        await seen.until_mended([_C])


async def _hanging_holds_nobody_up(trial: _Trial) -> None:
    async with trial.open_source() as other:
        await trial.source.show(_A)
        await other.show(_B)
        await trial.source.hang()
        async with trial.run() as run:
            hung = run.observe(trial.source.config)
            await trio.sleep(_MOMENT)
            neighbour = run.observe(other.config)
            rule = "another source is read while one hangs"
            await neighbour.until_shown([_B], rule)
            await other.show(_B, _C)
            await neighbour.until_shown([_B, _C], rule)
            await trial.source.show(_A, _C)
            again = run.observe(trial.source.config)
            await again.until_shown([_A, _C], "who comes later reads a source that does not hang any more")
            await hung.until_mended([_A, _C])


async def _held_back_it_sends_the_newest_state(trial: _Trial) -> None:
    await trial.source.show(_A)
    async with trial.run() as run:
        seen = run.observe(trial.source.config)
        await seen.until_shown([_A], "the first full set comes")
        seen.hold()
        last = _A
        for number in range(_CHANGES):
            last = f"127.0.1.{number}:9100"
            await trial.source.show(_A, last)
            await trio.sleep(_CHANGE_TIME)
        before = seen.updates
        seen.release()
        await seen.until_shown([_A, last], "once it can send again, the newest state is sent")
        took = seen.updates - before
        require(took <= _MELTED, f"nothing queues while it is held back, but it sent {took} updates after that")


async def _managers_do_not_meet(trial: _Trial) -> None:
    await trial.source.show(_A, _B)
    rule = "a manager's discoverer finds everything, whatever others there are"
    async with trial.run() as outer:
        async with trial.run() as inner:
            first = inner.observe(trial.source.config)
            await first.until_shown([_A, _B], rule)
            second = outer.observe(trial.source.config)
            await second.until_shown([_A, _B], rule)
        if "change" in trial.source.can:
            await trial.source.show(_B, _C)
            await second.until_shown([_B, _C], "the end of one manager does not concern another")


async def _works_in_every_run(trial: _Trial) -> None:
    def run_twice() -> None:
        for _ in range(2):
            trio.run(discover)

    async def discover() -> None:
        async with trial.open_source() as source:
            await source.show(_A, _B)
            async with trial.run() as run:
                await run.observe(source.config).until_shown([_A, _B], "it works in one trio.run after the other")

    await trio.to_thread.run_sync(run_twice)


def _rule(check: Callable[[_Trial], Awaitable[None]], *needs: Capability) -> ContractRule:
    name = getattr(check, "__name__", "").strip("_").replace("_", "-")
    return ContractRule(name, frozenset(needs), check)


_RULES: Final = (
    _rule(_configuration_is_a_value),
    _rule(_first_send_is_the_full_set),
    _rule(_empty_is_sent),
    _rule(_targets_that_go_are_removed, "change"),
    _rule(_updates_add_up, "change"),
    _rule(_failure_keeps_what_was_good, "fail"),
    _rule(_failed_first_read_sends_nothing, "fail"),
    _rule(_last_known_stays, "fail"),
    _rule(_cancelled_it_leaves_nothing),
    _rule(_cancelled_while_hanging_it_ends, "hang"),
    _rule(_hanging_is_told, "hang"),
    _rule(_hanging_holds_nobody_up, "hang"),
    _rule(_held_back_it_sends_the_newest_state, "change"),
    _rule(_managers_do_not_meet),
    _rule(_works_in_every_run),
)


# The configuration


def _check_config(config: DiscovererConfig) -> None:
    """Check that ``config`` is a value that the engine can find again, compare and show.

    Raises:
      ContractError: it is no frozen dataclass; it is not equal to copies of itself, or equal to one that differs in a
        field that is compared; or it shows a secret.
    """
    require(bool(getattr(config, "mechanism", "")), "a configuration has a mechanism")
    parameters = getattr(config, "__dataclass_params__", None)
    require(parameters is not None and parameters.frozen, "a configuration is a frozen dataclass")
    require(type(config).__hash__ is not None, "a configuration is hashable")
    _require_equal_copies(config)
    for one in dataclasses.fields(config):  # type: ignore[arg-type]  # it is a dataclass, as was seen
        if one.compare:
            other = copy.copy(config)
            object.__setattr__(other, one.name, object())
            require(other != config, f"a configuration differs from one with another {one.name}")
    text = f"{config!r} {config}"
    for secret in _secrets(config):
        require(len(secret) < _SHOWN_SECRET or secret not in text, "the text of a configuration shows no secret")


def _require_equal_copies(config: DiscovererConfig) -> None:
    """Check that ``config`` equals copies of itself.

    Raises:
      ContractError: it does not.
    """
    for made in copy.copy, copy.deepcopy:
        twin = made(config)
        require(
            twin == config and hash(twin) == hash(config), "a configuration equals a copy of itself, and hashes alike"
        )


def _secrets(value: object) -> Iterator[str]:
    """Yield the secrets in a configuration, however deep."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _secrets(inner)
    elif isinstance(value, (tuple, frozenset)):
        for inner in value:
            yield from _secrets(inner)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            yield from _secrets(getattr(value, one.name))


# One discoverer by itself


async def check_discoverer(config: DiscovererConfig, *, patience: float = 5.0) -> tuple[TargetGroup, ...]:
    """Run the discoverers of ``config`` through what can be checked without control of the source.

    The configuration must be hashable and equal to a copy of itself. Making a discoverer opens nothing. Its first
    send comes within ``patience`` seconds and consists of target groups, no two of one source. It does not close the
    channel. Cancelled at any step, it ends within that time and leaves no task, thread or file descriptor. Another one,
    run beside it, finds the same.

    Args:
      config: of a source that does not change meanwhile.
      patience: seconds for what should take little time.

    Returns:
      The first full set.

    Raises:
      ContractError: a rule is broken.
    """
    _require_equal_copies(config)
    twin = copy.copy(config)
    async with trio.open_nursery() as nursery:
        options = DiscovererOptions(Resources(nursery))
        held = await most_held()
        discoverer = config.discoverer(options)
        require(not what_is_held() - held, "nothing is opened before run()")
        found, again = await _first_set(discoverer, patience), await _first_set(twin.discoverer(options), patience)
        sources = [[one.source for one in groups] for groups in (found, again)]
        require(sorted(sources[0]) == sorted(sources[1]), "equal configurations find the same")
        steps = 0
        cancelled = True
        while cancelled:
            steps += 1
            cancelled = await _cancelled_after(steps, config.discoverer(options), patience)
            await require_released(held, f"nothing stays open or alive when cancelled after {steps} steps", patience)
    return found


async def _first_set(discoverer: Discoverer, patience: float) -> tuple[TargetGroup, ...]:
    send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
    with send, receive:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(discoverer.run, send)
            with trio.move_on_after(patience) as scope:
                found = await receive.receive()
            require(not scope.cancelled_caught, f"the first full set comes within {patience:g} s")
            nursery.cancel_scope.cancel()
        try:
            send.send_nowait(())
        except trio.ClosedResourceError:
            require(False, "the channel is the engine's to close")
        except trio.WouldBlock:
            pass
    check_update(found)
    return tuple(found)


async def _cancelled_after(steps: int, discoverer: Discoverer, patience: float) -> bool:
    """Run until the first full set or the given number of steps; return whether it was the latter."""
    deadline = trio.current_time() + patience
    with trio.CancelScope(deadline=deadline) as scope:
        once = _Once(scope)
        with CancelAfter(steps, scope):
            await discoverer.run(once)  # type: ignore[arg-type]  # it has all of a channel that run() may use
    late = trio.current_time() - deadline
    require(late < patience, f"cancelled after {steps} steps, it ends within {patience:g} s")
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
