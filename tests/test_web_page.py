"""The page: what it is made of, asked without a server, and how it behaves in a real browser."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import trio
import trio.testing

from trio_sd.config import parse_config
from trio_sd.discovery import default_registry
from trio_sd.manager import Manager, open_manager
from trio_sd.relabel import Relabeler
from trio_sd.set_configs import SetConfigs
from trio_sd.target_labels import Labeler, Outcome
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer, group
from trio_sd.web import ListenAddress, open_application, serve
from trio_sd.web.catalogue import Catalogue, Selection

from . import chromium
from .asgi import ask, receiving, scope_of, streaming
from .managing import AT_ONCE, PATIENCE, synced

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

CONFIG = b"""\
scrape_configs:
  - job_name: web
    static_configs: [{targets: [never:1]}]
    relabel_configs:
      - {source_labels: [env], regex: test, action: drop}
      - {source_labels: [__meta_zone], target_label: zone}
      - {source_labels: [bad], regex: (.+), target_label: __address__, replacement: http://$1}
  - job_name: team/api
    static_configs: [{targets: [never:2]}]
"""
HOSTILE = "<img src=x onerror=\"document.title='pwned'\">'&\u202e\u0007\ud800"


def web_group(number: int, **labels: str) -> TargetGroup:
    """Return a group of one target, as there are many of them."""
    zone = "abc"[number % 3]
    return TargetGroup(f"s{number:05}", [{"__address__": f"web-{number:05}:80"}], {"__meta_zone": zone, **labels})


@asynccontextmanager
async def serving(*groups: TargetGroup) -> AsyncIterator[tuple[ASGIApp, Manager, FakeDiscoverer]]:
    """Serve the set ``web``, and another one, by the rules of the configuration above."""
    fake = FakeDiscoverer("web", first=groups)
    labeling = parse_config(CONFIG, file="dir/p.yml", registry=default_registry()).scrape.labeling
    configs = SetConfigs({"web": [fake.config], "team/api": [synced("api", "api:1").config]}, labeling)
    async with open_manager(configs, throttle=AT_ONCE) as manager, open_application(manager) as app:
        await manager.wait_synced()
        yield app, manager, fake


FOUR = (
    web_group(0),
    web_group(1, env="test"),
    web_group(2, bad="/x"),
    TargetGroup("s3", web_group(0).targets, {"__meta_zone": "a"}),
)


async def targets(app: ASGIApp, query: str = "") -> Any:
    answer = await ask(app, f"/api/v1/page/targets?{query}")
    assert answer.status == 200
    return answer.json


def addresses(rows: list[str]) -> list[str]:
    return [unescape(match[1]) for row in rows if (match := re.search('<th scope="row"><a[^>]*>([^<]*)</a>', row))]


def links(text: str) -> list[str]:
    return [unescape(link) for link in re.findall('<a href="([^"]*target=[^"]*)"', text)]


# What the server answers


async def test_the_page_says_everything_without_the_script() -> None:
    async with serving(*FOUR) as (app, _, _):
        answer = await ask(app, "/")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert addresses(re.findall("<tr id=.*?</tr>", answer.text)) == [
            "web-00000:80",
            "web-00001:80",
            "web-00002:80",
            "web-00000:80",
            "1",
        ]
        for word in ("<b>5</b> targets", "team/api", "fake/0", "synced", "kept", "dropped", "unusable", "duplicate"):
            assert word in answer.text
        assert not re.search(r"<script(?! src=)|<style|style=|\son\w+=", answer.text)
        assert not re.search(r'(src|href|action)="(?![/#])', answer.text)
        searched = await ask(app, "/?set=scrape%2Fweb&q=zone%3Da")
        assert addresses(re.findall("<tr id=.*?</tr>", searched.text)) == ["web-00000:80", "web-00000:80"]
        assert '<option value="scrape/web" selected>' in searched.text
        assert 'value="zone=a"' in searched.text
        traced = await ask(app, links(answer.text)[1])
        assert "drop source_labels=[env] regex=test" in traced.text
        assert '<dialog id="trace" aria-labelledby="trace-title" open>' in traced.text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["web-00000:80", "web-00001:80", "web-00002:80", "web-00000:80", "1"]),
        ("set=scrape/team/api", ["1"]),
        ("set=scrape/gone", []),
        ("set=nonsense", []),
        ("state=kept", ["web-00000:80", "1"]),
        ("state=dropped", ["web-00001:80"]),
        ("state=unusable", ["web-00002:80"]),
        ("state=duplicate", ["web-00000:80"]),
        ("state=nonsense&limit=1", ["web-00000:80"]),
        ("q=ENV%3Dtest", ["web-00001:80"]),
        ("q=web+zone%3Da", ["web-00000:80", "web-00000:80"]),
        ("q=valid+hostname", ["web-00002:80"]),
        ("q=source%3Ds3", ["web-00000:80"]),
        ("q=nowhere", []),
        ("offset=1&limit=2", ["web-00001:80", "web-00002:80"]),
        ("offset=3&limit=2", ["web-00000:80", "1"]),
        ("offset=999&limit=2", ["web-00000:80", "1"]),
        ("offset=-1&limit=0", ["web-00000:80"]),
        ("offset=%C2%B2&limit=9999999999999", ["web-00000:80", "web-00001:80", "web-00002:80", "web-00000:80", "1"]),
    ],
)
async def test_searching_and_paging(query: str, found: list[str]) -> None:
    async with serving(*FOUR) as (app, _, _):
        assert addresses((await targets(app, query))["rows"]) == found


async def test_what_the_rules_did_is_what_explain_prints() -> None:
    async with serving(*FOUR) as (app, _, fake):
        link = links("".join((await targets(app, "state=dropped"))["rows"]))[0]
        answer = await ask(app, "/api/v1/page/explain" + link.removeprefix("/"))
        (entry,) = answer.json
        assert entry["state"] == "dropped"
        assert entry["steps"][0]["position"] == "dir/p.yml:5:9"
        assert entry["steps"][0]["config"]["action"] == "drop"
        html = (await ask(app, "/api/v1/page/trace" + link.removeprefix("/"))).json["html"]
        assert "p.yml:5" in html
        assert "drops the target" in html
        # It is found by its labels when others have moved it.
        await fake.send(web_group(0, new="1"), TargetGroup("a", [{"__address__": "first:1"}]))
        assert (await ask(app, "/api/v1/page/explain" + link.removeprefix("/"))).json == [entry]
        await fake.send(TargetGroup("s00001", []))
        for kind in ("trace", "explain"):
            assert (await ask(app, f"/api/v1/page/{kind}" + link.removeprefix("/"))).status == 404
        assert (await ask(app, "/api/v1/page/trace")).status == 404
        assert "not there any more" in (await ask(app, link)).text


async def test_everything_that_is_discovered_is_data() -> None:
    labels = {"env": HOSTILE, "</table><script>": "x", "__meta_zone": "<script>alert(1)</script>"}
    hostile = TargetGroup(HOSTILE, [{"__address__": HOSTILE}], labels)
    async with serving(web_group(0)) as (app, _, fake):
        await fake.send(hostile)
        page = await ask(app, "/?q=" + quote("<script>\"'", safe=""))
        found = await targets(app, "set=scrape/web")
        query = links("".join(found["rows"]))[0].removeprefix("/")
        traced = await ask(app, "/api/v1/page/trace" + query)
        async with streaming(app, "/api/v1/page/status") as stream:
            status = (await stream.event())["data"]
    parts = [
        page.text,
        *found["rows"],
        traced.json["html"],
        *json.loads(status)["changes"],
        json.loads(status)["sets"][0],
    ]
    for part in parts:
        assert "<img" not in part
        assert "<script>" not in part
        assert "\u202e" not in part
        assert "\u0007" not in part


async def test_the_status_tells_what_differs() -> None:
    async with serving(*FOUR) as (app, _, fake), streaming(app, "/api/v1/page/status") as stream:
        with trio.fail_after(PATIENCE):
            first = json.loads((await stream.event())["data"])
            assert {"revision", "summary", "notices", "sets", "providers", "changes", "options"} <= first.keys()
            counted = json.loads((await stream.event())["data"])  # as soon as that is worked out
            assert counted.keys() - {"providers"} == {"now", "sets"}
            assert "–" in first["sets"][0]
            assert "–" not in counted["sets"][0]
            await fake.send(web_group(7), TargetGroup("s00000", []))
            changed = json.loads((await stream.event())["data"])
        assert changed["revision"] != first["revision"]
        assert any("+1" in change and "web-00007:80" in change for change in changed["changes"])
        assert any("1</b>" in change and "s00000" in change for change in changed["changes"])


async def test_the_status_beats_when_nothing_happens(autojump_clock: object) -> None:
    async with serving(*FOUR) as (app, _, _), streaming(app, "/api/v1/page/status") as stream:
        events = [json.loads((await stream.event())["data"]) for _ in range(4)]
        assert events[-1].keys() == {"now"}


async def test_the_status_ends_with_the_application() -> None:
    async with open_manager({"web": [synced("web").config]}) as manager, trio.open_nursery() as nursery:
        over = trio.Event()

        async def follow(app: ASGIApp) -> None:
            assert (await ask(app, "/api/v1/page/status")).status == 200
            over.set()

        async with open_application(manager) as app:
            nursery.start_soon(follow, app)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(PATIENCE):
            await over.wait()


async def test_the_files_of_the_page_are_asked_for_once() -> None:
    async with serving() as (app, _, _):
        page = (await ask(app, "/")).text
        for name in ("page.js", "page.css", "icon.svg"):
            assert f"/static/{name}" in page
            answer = await ask(app, f"/static/{name}")
            assert answer.status == 200
            again = await ask(app, f"/static/{name}", if_none_match=answer.headers["etag"])
            assert (again.status, again.body) == (304, b"")


async def test_a_catalogue_remembers_nothing_when_nobody_looks() -> None:
    async with open_manager({"web": [synced("web").config]}) as manager:
        await manager.wait_synced()
        catalogue = Catalogue({"scrape": manager})
        key = "scrape", "web"
        with catalogue.in_use():
            assert (await catalogue.find(Selection(), 0, 1)).total == 1
            before = catalogue.counts(key)
            assert before is not None
            assert before["kept"] == 1
            await catalogue.update()
            assert catalogue.counts(key) is before  # nothing was worked out anew
            await manager.apply_config({"other": []})
            await catalogue.update()
            assert catalogue.counts(key) is None
        assert catalogue.counts(("scrape", "other")) is None


class Threads(Labeler):
    """Has no rules, and notes in which threads it is asked."""

    def __init__(self, used: set[int]) -> None:
        super().__init__(Relabeler([]))
        self._used = used

    def discovered_labels(self, target: Mapping[str, str], group: Mapping[str, str]) -> dict[str, str]:
        self._used.add(threading.get_ident())
        return {**group, **target}

    def _finished(self, labels: dict[str, str]) -> dict[str, str]:
        return labels


async def test_what_takes_time_is_left_to_threads() -> None:
    used: set[int] = set()

    class Noting:
        def labeler(self) -> Labeler:
            return Threads(used)

    configs = SetConfigs({"web": [synced("web", "a", "b").config]}, {"web": Noting()})
    async with open_manager(configs) as manager:
        await manager.wait_synced()
        catalogue = Catalogue({"scrape": manager})
        with catalogue.in_use():
            assert (await catalogue.first(1)).total == 2
            assert used
            await catalogue.find(Selection(search="a"), 0, 1)
        assert threading.get_ident() not in used


async def test_the_first_targets_wait_for_no_others() -> None:
    """One who comes while all targets are worked out for another one sees the first ones at once."""
    going_on, enough = threading.Event(), threading.Event()

    class Slow(Threads):
        def target_labels(self, discovered: Mapping[str, str]) -> Outcome:
            if discovered["__address__"] == "c:1":
                going_on.set()
                assert enough.wait(PATIENCE)
            return super().target_labels(discovered)

    class Slowly:
        def labeler(self) -> Labeler:
            return Slow(set())

    configs = SetConfigs({"web": [synced("web", "a", "b", "c").config]}, {"web": Slowly()})
    async with open_manager(configs) as manager, trio.open_nursery() as nursery:
        await manager.wait_synced()
        catalogue = Catalogue({"scrape": manager})
        with catalogue.in_use():
            nursery.start_soon(catalogue.update)
            try:
                await trio.to_thread.run_sync(going_on.wait, PATIENCE)
                with trio.fail_after(PATIENCE):
                    assert len((await catalogue.first(2)).rows) == 2
            finally:
                enough.set()


async def test_no_burst_gets_past_the_limit_of_viewers() -> None:
    async with serving(*FOUR) as (app, _, _), trio.open_nursery() as nursery:
        statuses = []

        async def follow(gone: trio.Event) -> None:
            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])
                await trio.lowlevel.checkpoint()

            await app(scope_of("/api/v1/page/status", "GET", {}), receiving(gone), send)

        gone = trio.Event()
        for _ in range(120):
            nursery.start_soon(follow, gone)
        await trio.testing.wait_all_tasks_blocked()
        assert (statuses.count(200), statuses.count(503)) == (100, 20)
        gone.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(follow, gone)  # they have made room
        await trio.testing.wait_all_tasks_blocked()
        assert statuses[-1] == 200


@pytest.mark.parametrize("path", ["/", "/api/v1/page/targets", "/api/v1/page/trace", "/api/v1/page/explain"])
@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "1" * 500,
        "9" * 9,
        "0x10",
        "1e9",
        "%00",
        "%ED%A0%80",  # a lone surrogate
        "%FF%FE",
        "%F0%9F%92%A9" * 100,
        "%3Cscript%3E",
        "%22%27%3E",
        "%2F" * 500,
        "a+" * 500,
        "a" * 3000,
        "%C4%B0" * 200,  # a character that gets longer when its case is put aside
        "scrape/web",
        "scrape%2F%00",
    ],
)
async def test_whatever_is_asked_for_gets_a_sane_answer(path: str, value: str) -> None:
    async with serving(*FOUR) as (app, _, _):
        for name in ("set", "state", "q", "offset", "limit", "of", "at", "target"):
            for query in (f"{name}={value}", f"of=scrape/web&target=x&{name}={value}", f"{name}={value}&{name}=1"):
                answer = await ask(app, f"{path}?{query}")
                assert answer.status in (200, 404), query
                assert len(answer.body) < 60_000, query
                assert "<script>" not in answer.text
                assert "\0" not in answer.text
        assert (await ask(app, f"{path}?q={value}{'a' * 4_096}")).status == 414


# In a browser

_FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
_ROWS = "document.querySelectorAll('#rows tr').length"


@asynccontextmanager
async def in_browser(app: ASGIApp) -> AsyncIterator[chromium.Browser]:
    """Open the page in a browser, which must have nothing to complain about."""
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(serve, app, ListenAddress.parse("127.0.0.1:0"))
        async with chromium.open_browser() as browser:
            await browser.go(url)
            yield browser
            assert await browser.complaints() == []
        nursery.cancel_scope.cancel()


@dataclass
class Server:
    url: str
    scope: trio.CancelScope


async def begin(app: ASGIApp, address: str, task_status: trio.TaskStatus[Server]) -> None:
    """Serve until the scope is cancelled."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            (url,) = await nursery.start(partial(serve, app, ListenAddress.parse(address), grace=0))
            task_status.started(Server(url, scope))


@asynccontextmanager
async def ten_targets() -> AsyncIterator[tuple[ASGIApp, FakeDiscoverer]]:
    """Serve ten targets in three sets, by a provider that is synced, one that fails, and one never heard of.

    Once the block begins, the first provider can be given orders.
    """
    web = FakeDiscoverer("web", first=[*FOUR, *map(web_group, range(4, 8))])
    database, blackbox = FakeDiscoverer("database"), FakeDiscoverer("blackbox")
    labeling = parse_config(CONFIG, file="dir/p.yml", registry=default_registry()).scrape.labeling
    sets = {"web": [web.config], "database": [database.config], "blackbox": [blackbox.config]}
    async with open_manager(SetConfigs(sets, labeling), throttle=AT_ONCE) as manager, open_application(manager) as app:
        await database.send(group("postgres", "db-1:5432", "db-2:5432", labels={"team": "storage"}))
        await database.fail(ConnectionRefusedError("nobody listens at the registry"))
        yield app, web


async def look(browser: chromium.Browser, scheme: str, width: int) -> None:
    """Show the page to somebody who prefers light or dark, in a window of that width."""
    preferred = {"name": "prefers-color-scheme", "value": scheme}
    await browser.tell("Emulation.setEmulatedMedia", features=[preferred])
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    await browser.tell("Emulation.setDeviceMetricsOverride", **size)


# What is written in a colour that does not stand out from what is behind it, by the rule of WCAG for text.
_PALE = """
(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => numbers(color).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0.05);
  const behind = (one) => {
    const color = getComputedStyle(one).backgroundColor;
    return (numbers(color)[3] ?? 1) ? color : behind(one.parentElement);
  };
  return [...document.body.querySelectorAll("*:not(option)")]
    .filter((one) => one.checkVisibility())
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()))
    .filter((one) => {
      const [low, high] = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => a - b);
      return high / low < 4.5;
    })
    .map((one) => `${one.className}: ${one.textContent}`);
})()
"""
_TABLE_TEXT = "[...document.querySelectorAll('#{0} tr')].map((row) => row.innerText.replace(/\\s+/g, ' '))"
# Rows whose cells are not under their headings.
_ASKEW = """
[...document.querySelectorAll(".panel table, #targets")].flatMap((table) => {
  const edges = (row) => [...row.children].filter((cell) => cell.checkVisibility())
    .map((cell) => Math.round(cell.getBoundingClientRect().right));
  const wanted = String(edges(table.tHead.rows[0]));
  return [...table.tBodies[0].rows].filter((row) => row.className !== "more" && String(edges(row)) !== wanted)
    .map((row) => row.innerText);
})
"""


async def test_ten_targets_and_how_they_fare() -> None:
    chromium.needed()
    async with ten_targets() as (app, _), in_browser(app) as browser:
        await browser.until("document.querySelector('#connection').className === 'live'")
        await browser.until("document.querySelector('#providers .failing')")
        await browser.until("!document.querySelector('#sets').textContent.includes('–')")
        assert await browser.run("document.querySelector('#summary').textContent") == (
            "10 targets in 3 sets by 3 providers, 1 failing"
        )
        assert [row.strip() for row in await browser.run(_TABLE_TEXT.format("sets"))] == [
            "web 8 5 1 1 1",
            "database 2 2 0 0 0",
            "blackbox 0 0 0 0 0",
        ]
        failing, error, *others = await browser.run(_TABLE_TEXT.format("providers"))
        assert re.fullmatch(r"fake/1 failing \d+s 2 1 database ?", failing)
        assert error.strip() == "ConnectionRefusedError: nobody listens at the registry"
        assert re.fullmatch(r"fake/0 synced (now|\d+s) 8 1 web ?", others[0])
        assert others[1].strip() == "fake/2 starting never 0 0 blackbox"
        assert [row.strip() for row in await browser.run(_TABLE_TEXT.format("rows"))] == [
            "kept web web-00000:80 zone=a zone=a",
            "dropped web web-00001:80 zone=b env=test",
            'unusable web web-00002:80 "http:///x" is not a valid hostname zone=c bad=/x',
            "kept web web-00004:80 zone=b zone=b",
            "kept web web-00005:80 zone=c zone=c",
            "kept web web-00006:80 zone=a zone=a",
            "kept web web-00007:80 zone=b zone=b",
            "duplicate web web-00000:80 zone=a zone=a",
            "kept database db-1:5432 team=storage team=storage",
            "kept database db-2:5432 team=storage team=storage",
        ]


async def test_ten_targets_change_are_searched_and_explained() -> None:
    chromium.needed()
    async with ten_targets() as (app, web), in_browser(app) as browser:
        await browser.until("document.querySelector('#connection').className === 'live'")
        await web.send(web_group(4, env="test"), TargetGroup("s00005", []), web_group(9))
        await browser.until("document.querySelector('#rows').textContent.includes('web-00009:80')")
        await browser.until("document.querySelector('#changes').textContent.includes('web-00009:80')")
        changes = await browser.run("[...document.querySelectorAll('#changes li')].map((one) => one.innerText)")
        told = {re.sub(r"^\S+\s+", "", change) for change in changes}
        assert {
            "+1 web web-00009:80 s00009",
            "\N{MINUS SIGN}1 web web-00005:80 s00005",
            "+1 \N{MINUS SIGN}1 web web-00004:80 s00004",
        } <= told
        await browser.press("/", "team=storage")
        await browser.until("document.querySelector('#total').textContent === '2'")
        await browser.until(f"{_ROWS} === 2")
        await browser.run("(document.querySelector('#filter input').select(), true)")
        await browser.press("web-00004")
        await browser.until(f"{_ROWS} === 1")
        await browser.run("document.querySelector('#rows a').click()")
        await browser.until("document.querySelector('dialog[open] #trace-title')")
        assert "drop source_labels=[env] regex=test" in await browser.run("document.querySelector('dialog').innerText")
        await web.send(web_group(4))  # it is followed while it is looked at
        await browser.until("document.querySelector('dialog').innerText.includes('not there any more')")
        (complaint,) = await browser.complaints()
        assert "404" in complaint


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everything_can_be_read_in_light_and_dark_and_in_narrow_windows(scheme: str) -> None:
    chromium.needed()
    async with ten_targets() as (app, web), in_browser(app) as browser:
        await browser.until("document.querySelector('#connection').className === 'live'")
        await web.send(web_group(9), TargetGroup("s00005", []))
        await browser.until("document.querySelector('#changes .went')")
        await browser.until("document.querySelector('#providers .failing')")
        grounds = []
        for width in (1600, 1050, 400):
            await look(browser, scheme, width)
            await browser.until(f"innerWidth === {width}")
            assert await browser.run("document.documentElement.scrollWidth <= innerWidth"), width
            assert await browser.run(_ASKEW) == [], width
            assert await browser.run(_PALE) == [], width
            await browser.run("document.querySelector('#rows tr.dropped a').click()")
            await browser.until("document.querySelector('dialog[open] #trace-title')")
            assert await browser.run(_PALE) == [], width
            final = "document.querySelector('dialog .wide:last-child th:last-child').getBoundingClientRect()"
            assert await browser.run(f"{final}.right <= innerWidth"), width
            await browser.run("document.querySelector('dialog').close()")
            grounds.append(await browser.run("getComputedStyle(document.body).backgroundColor"))
        assert set(grounds) == {"rgb(246, 247, 249)" if scheme == "light" else "rgb(18, 22, 27)"}


async def test_a_change_shows_up_without_reloading() -> None:
    chromium.needed()
    async with serving(*[web_group(number) for number in range(10)]) as (app, _, fake), in_browser(app) as browser:
        await browser.until("document.querySelector('#connection').className === 'live'")
        await browser.run("(window.sameDocument = true)")
        await fake.send(web_group(11, env=HOSTILE), TargetGroup("s00003", []))
        await browser.until("document.querySelector('#rows').textContent.includes('web-00011:80')")
        await browser.until("!document.querySelector('#rows').textContent.includes('web-00003:80')")
        await browser.until("document.querySelector('#changes').textContent.includes('web-00011:80')")
        await browser.until("document.querySelector('#sets').textContent.includes('10')")
        assert await browser.run("window.sameDocument")
        assert await browser.run("document.title") == "trio-sd"
        assert await browser.run("document.images.length") == 0


async def test_a_lost_connection_is_told_and_comes_back() -> None:
    chromium.needed()
    async with serving(web_group(0)) as (app, _, fake), trio.open_nursery() as nursery:
        server = await nursery.start(begin, app, "127.0.0.1:0")
        async with chromium.open_browser() as browser:
            await browser.go(server.url)
            await browser.until("document.querySelector('#connection').className === 'live'")
            server.scope.cancel()
            await browser.until("document.querySelector('#connection').textContent.startsWith('connection lost at ')")
            await fake.send(web_group(1))
            await nursery.start(begin, app, server.url.removeprefix("http://"))
            await browser.until("document.querySelector('#connection').className === 'live'")
            await browser.until("document.querySelector('#rows').textContent.includes('web-00001:80')")
        nursery.cancel_scope.cancel()


async def test_fifty_thousand_targets_by_keyboard() -> None:
    chromium.needed()
    many = [web_group(number, **({"env": "test"} if number % 7 == 3 else {})) for number in range(50_000)]
    async with serving(*many) as (app, _, _), in_browser(app) as browser:
        paints = [await browser.until(_FIRST_PAINT)]
        for _ in range(2):  # always three, of which the one in the middle counts: other tests use the processors, too
            await browser.go(await browser.run("location.href"))
            paints.append(await browser.until(_FIRST_PAINT))
        assert sorted(paints)[1] < 1_000, paints
        assert await browser.run(_ROWS) <= 200
        await browser.run("document.querySelector('#targets').focus()")
        await browser.press("End")
        await browser.until("document.querySelector('#rows tr.chosen:last-child')?.textContent.includes('team/api')")
        assert await browser.run(_ROWS) <= 200
        assert await browser.run("document.querySelector('#targets').getAttribute('aria-rowcount')") == "50002"
        assert (
            await browser.run(
                "document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).ariaRowIndex"
            )
            == "50002"
        )
        await browser.press("/", "WEB-49 env=test zone=b")
        await browser.until("document.querySelector('#total').textContent === '48'")
        await browser.until(f"{_ROWS} === 48")
        await browser.press("Tab")  # from the search to the table
        await browser.until("document.activeElement.id === 'targets'")
        await browser.press("Down", "Enter")
        await browser.until("document.querySelector('dialog[open] #trace-title')")
        assert "drops the target" in await browser.run("document.querySelector('dialog').textContent")
        await browser.press("Escape")
        await browser.until("!document.querySelector('dialog[open]') && document.activeElement.id === 'targets'")
