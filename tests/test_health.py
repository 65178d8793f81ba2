"""How everything fares: what statistics tell, and the lines that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sd.discoverer import DiscovererStatistics
from trio_sd.manager import ManagerStatistics, SetStatistics, open_manager
from trio_sd.outputs.health import age, health_lines
from trio_sd.provider import Backoff, ProviderStatistics
from trio_sd.state_file import StateFileStatistics
from trio_sd.subscription import SubscriptionStatistics, Throttle
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer, group

EXACT = Backoff(10, 10)


class HighRandom:
    """Draws what makes each pause the longest."""

    def random(self) -> float:
        return 1.0


# --- in words ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (1, "1s"),
        (59, "59s"),
        (60, "1m"),
        (3_599, "60m"),
        (3_600, "1h"),
        (86_399, "24h"),
        (86_400, "1d"),
        (10_000 * 86_400, "10000d"),
    ],
)
def test_a_span_of_time_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text


PROVIDER = ProviderStatistics(
    name="file/0",
    sets=("web", "db"),
    state="synced",
    last_attempt=10.0,
    last_success=70.0,
    last_error=None,
    last_failure=None,
    failure_streak=0,
    groups=2,
    targets=5,
    updates=3,
    restarts=0,
    duplicates=0,
    age=30.0,
    stale=False,
)
MANAGER = ManagerStatistics(
    name="scrape",
    revision=7,
    sets=(SetStatistics("web", 2, 5, ("file/0",), ()),),
    providers=(PROVIDER,),
    subscriptions=(SubscriptionStatistics("table", 4, 1, 0, None),),
    stuck=(),
    resources=MappingProxyType({}),
    reloads=1,
    last_reload=10.0,
    state_file=None,
)
NOW = 100.0
UPDATES = "3 updates, 0 restarts, last attempt 2m ago, last success 30s ago"


def lines(**different: Any) -> list[str]:
    return list(health_lines(replace(MANAGER, **different), NOW))


def provider_line(**different: Any) -> str:
    (line,) = [one for one in lines(providers=(replace(PROVIDER, **different),)) if one.startswith("provider")]
    return line


def test_there_is_a_line_for_each() -> None:
    assert lines() == [
        "manager scrape: revision 7, 1 sets, 5 targets, 1 configurations applied, last 2m ago",
        "set web: 2 groups, 5 targets",
        f"provider file/0 of web, db: synced, 2 groups, 5 targets, right as of 30s ago, {UPDATES}",
        "subscription table: 4 delivered, 1 skipped, lag 0",
    ]


@pytest.mark.parametrize(
    ("different", "told"),
    [
        ({"age": None}, "nothing heard of it yet"),
        ({"last_attempt": None, "state": "paused"}, "last attempt never"),
        ({"last_success": None}, "last success never"),
        ({"stale": True, "age": 7_200.0}, "right as of 2h ago"),
        ({"stale": True}, "what is shown comes from the state file"),
        ({"failure_streak": 3}, "3 failures in a row"),
        ({"last_error": "ValueError: oops", "last_failure": 95.0}, "last error 5s ago: ValueError: oops"),
        ({"duplicates": 9}, "9 groups lost because of their source"),
        ({"details": DiscovererStatistics(errors=("one", "two"))}, "failing: one, failing: two"),
        ({"details": DiscovererStatistics(notes=("one", "two"))}, "note: one, note: two"),
        ({"details": DiscovererStatistics(counters={"reads": 4, "watches": 2})}, "reads 4, watches 2"),
    ],
)
def test_what_is_worth_telling_of_a_provider_is_told(different: dict[str, Any], told: str) -> None:
    assert told in provider_line(**different)
    assert told not in provider_line()


@pytest.mark.parametrize(
    ("different", "told"),
    [
        (
            {"reloads": 0, "last_reload": None},
            "manager scrape: revision 7, 1 sets, 5 targets, 0 configurations applied",
        ),
        ({"stuck": ("file/0", "file/1")}, "manager scrape: told to stop and still running: file/0, file/1"),
        (
            {"state_file": StateFileStatistics("/state", 3, 0, 40.0, None)},
            "state file /state: 3 saves, last 1m ago, 0 failures",
        ),
        (
            {"state_file": StateFileStatistics("/state", 0, 2, None, "no space")},
            "state file /state: 0 saves, last never, 2 failures, last error: no space",
        ),
        ({"sets": (SetStatistics("web", 0, 0, (), ("file/7",)),)}, "set web: 0 groups, 0 targets, leaving: file/7"),
        (
            {"subscriptions": (SubscriptionStatistics("", 0, 0, 2, 88.0),)},
            "subscription (no name): 0 delivered, 0 skipped, lag 2 since 12s",
        ),
    ],
)
def test_what_is_worth_telling_of_the_rest_is_told(different: dict[str, Any], told: str) -> None:
    assert told in lines(**different)


# --- in figures ---


def fields(found: ProviderStatistics, *names: str) -> dict[str, object]:
    return {name: getattr(found, name) for name in names}


async def test_each_attempt_success_and_failure_is_told_with_its_time(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    rng: Any = HighRandom()
    async with open_manager({"web": [fake.config]}, backoff=EXACT, rng=rng) as manager:

        def now_told() -> ProviderStatistics:
            (found,) = manager.statistics().providers
            return found

        await wait_all_tasks_blocked()
        assert fields(now_told(), "state", "age", "stale", "last_success", "last_error", "last_failure") == {
            "state": "starting",
            "age": None,
            "stale": False,
            "last_success": None,
            "last_error": None,
            "last_failure": None,
        }
        assert now_told().last_attempt == 0
        await trio.sleep(5)
        await fake.send(group("p", "1", "2"), group("q", "3"))
        await trio.sleep(2)
        assert fields(now_told(), "state", "age", "last_success", "groups", "targets", "updates") == {
            "state": "synced",
            "age": pytest.approx(2),
            "last_success": pytest.approx(5),
            "groups": 2,
            "targets": 3,
            "updates": 1,
        }
        await fake.fail(ValueError("oops"))
        await trio.sleep(3)
        assert fields(now_told(), "state", "age", "last_error", "last_failure", "failure_streak", "restarts") == {
            "state": "failing",
            "age": pytest.approx(5),
            "last_error": "ValueError: oops",
            "last_failure": pytest.approx(7),
            "failure_streak": 1,
            "restarts": 0,
        }
        await trio.sleep(8)
        assert fields(now_told(), "last_attempt", "restarts", "groups") == {
            "last_attempt": pytest.approx(17),
            "restarts": 1,
            "groups": 2,
        }
        await fake.fail(OSError("again"))
        await wait_all_tasks_blocked()
        assert now_told().failure_streak == 2
        await trio.sleep(10)
        await fake.send()
        assert fields(now_told(), "state", "age", "last_error", "failure_streak", "groups", "restarts") == {
            "state": "synced",
            "age": 0,
            "last_error": "OSError: again",
            "failure_streak": 0,
            "groups": 0,
            "restarts": 2,
        }


async def test_the_age_is_of_what_is_shown_whatever_reload_it_is_from(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}) as manager:
        await fake.send(group("p", "1"))
        await trio.sleep(60)
        await manager.apply_config({"web": [fake.config]})
        await wait_all_tasks_blocked()
        (found,) = manager.statistics().providers
        assert found.age == pytest.approx(60)
        assert (found.last_success, found.updates) == (None, 0)
        await fake.send(group("p", "1"))
        (found,) = manager.statistics().providers
        assert (found.age, found.updates) == (0, 1)


async def test_what_is_shown_because_its_removal_waits_counts(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with open_manager({"web": [fake.config]}, removal_delay=30) as manager:
        await fake.send(group("p", "1", "2"), group("q", "3"))
        await fake.send(group("p", "1"), group("q"))
        statistics = manager.statistics()
        assert (statistics.providers[0].groups, statistics.providers[0].targets) == (2, 3)
        assert (statistics.sets[0].groups, statistics.sets[0].targets) == (2, 3)
        await trio.sleep(30.001)
        statistics = manager.statistics()
        assert (statistics.providers[0].groups, statistics.providers[0].targets) == (1, 1)
        assert (statistics.sets[0].groups, statistics.sets[0].targets) == (1, 1)


async def test_how_a_subscriber_keeps_up_is_told(autojump_clock: MockClock) -> None:
    fake = FakeDiscoverer("a")
    async with (
        open_manager({"web": [fake.config]}, throttle=Throttle(0, 0)) as manager,
        manager.subscribe(name="slow") as updates,
    ):
        seen: Sequence[TargetGroup] = ()
        await updates.receive()
        for number in range(3):
            await trio.sleep(10)
            await fake.send(group("p", f"{number}"))
        (found,) = manager.statistics().subscriptions
        assert (found.name, found.delivered, found.skipped, found.lag) == ("slow", 1, 0, 3)
        assert found.behind_since == pytest.approx(10)
        seen = (await updates.receive()).snapshot["web"]
        await wait_all_tasks_blocked()
        (found,) = manager.statistics().subscriptions
        assert (found.delivered, found.skipped, found.lag, found.behind_since) == (2, 2, 0, None)
        assert seen == (group("p", "2"),)
        assert any(
            "subscription slow: 2 delivered, 2 skipped, lag 0" in line
            for line in health_lines(manager.statistics(), 30)
        )


async def test_every_line_of_a_real_manager_is_one_line(autojump_clock: MockClock) -> None:
    fake, other = FakeDiscoverer("a"), FakeDiscoverer("b", first=[])
    async with open_manager({"web": [fake.config, other.config], "none": []}) as manager, manager.subscribe():
        await fake.send(group("p", "1"), group("p", "2"))
        await fake.fail(ValueError("oops"))
        await wait_all_tasks_blocked()
        await manager.pause("fake/1")
        told = list(health_lines(manager.statistics(), trio.current_time()))
        assert [line.split(":")[0] for line in told] == [
            "manager scrape",
            "set web",
            "set none",
            "provider fake/0 of web",
            "provider fake/1 of web",
            "subscription (no name)",
        ]
        assert "failing" in told[3]
        assert "1 groups lost because of their source" in told[3]
        assert "paused" in told[4]
