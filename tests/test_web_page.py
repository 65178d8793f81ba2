"""The page: what it is made of, asked without a server, and how it behaves in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
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
from trio_sd.set_configs import SetConfigs
from trio_sd.targets import TargetGroup
from trio_sd.testing import FakeDiscoverer
from trio_sd.web import ListenAddress, open_application, serve
from trio_sd.web.catalogue import Catalogue, Selection

from . import chromium
from .asgi import ask, streaming
from .managing import AT_ONCE, PATIENCE, synced

if TYPE_CHECKING:
    from starlette.types import ASGIApp

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
