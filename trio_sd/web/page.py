"""The page at ``/``: what there is, how it fares, and what becomes of each target; live.

Theory of operation
===================

The server makes all the HTML. The page comes with everything that it shows at first, so it is of use without a script.
The script then follows ``/api/v1/page/status``, which sends the parts of the page whenever they differ; asks
``/api/v1/page/targets`` for the rows in view, whenever these may differ; and asks ``/api/v1/page/trace`` for what the
rules did to one target. A browser holds as many rows as it shows, however many targets there are.

While nobody looks, nothing runs but a subscription to each manager, for the latest changes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..config import AlertmanagerSection, ScrapeJob
from ..errors import Position
from ..manager import Manager, ManagerStatistics
from ..outputs.explain import explain_document
from ..outputs.health import Reloads
from .catalogue import STATES, Catalogue, Row, Selection, SetKey
from .page_html import (
    ListedSet,
    change_row,
    gone,
    more_row,
    notice,
    pages,
    provider_rows,
    set_options,
    set_row,
    state_options,
    summary,
    target_rows,
    trace,
)
from .recent import Recent
from .streaming import cancel_when_gone, cancel_when_set

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["page_routes"]

_FIRST_ROWS: Final = 100
_MOST_ROWS: Final = 500
_MOST_LISTED: Final = 500  # sets, and providers
_SEARCH: Final = 200  # characters
_PACE: Final = 1.0  # seconds from one status to the next
_RECHECK: Final = 3.0  # for what changes without a revision
_HEARTBEAT: Final = 10.0
_SENDING: Final = 30.0  # seconds that a client has to take a status
_VIEWERS: Final = 100

_SendSome = Callable[[bytes], Awaitable[None]]

_KINDS: Final = (("page.js", "text/javascript"), ("page.css", "text/css"), ("icon.svg", "image/svg+xml"))


def page_routes(
    nursery: trio.Nursery, managers: Mapping[str, Manager], reloads: Callable[[], Reloads] | None, ending: trio.Event
) -> list[Route]:
    """Return what answers the paths of the page.

    Args:
      nursery: runs what follows the changes.
      managers: what to show, by name.
      reloads: returns how reloads went, if anybody knows.
      ending: set when the server ends; streams end then.
    """
    page = _Page(managers, reloads, ending)
    for name, manager in managers.items():
        nursery.start_soon(page.recent.follow, name, manager)
    return page.routes()


@dataclass(frozen=True)
class _Asset:
    """A file that the page needs."""

    content: bytes
    kind: str
    etag: str

    @classmethod
    def read(cls, name: str, kind: str) -> _Asset:
        content = files(__package__).joinpath("static", name).read_bytes()
        return cls(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    async def answer(self, request: Request) -> Response:
        headers = {"etag": self.etag, "cache-control": "no-cache", "content-type": self.kind}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers)


class _Page:
    """What the paths of the page answer."""

    def __init__(
        self, managers: Mapping[str, Manager], reloads: Callable[[], Reloads] | None, ending: trio.Event
    ) -> None:
        self.recent = Recent()
        self._managers = managers
        self._reloads = reloads
        self.ending = ending
        self._catalogue = Catalogue(managers)
        self._template = Template(files(__package__).joinpath("static", "page.html").read_text("utf-8"))
        self._epoch = time.time() - trio.current_time()  # so that ages become times that stay the same
        self._viewers = 0

    def routes(self) -> list[Route]:
        """Return all paths."""
        assets = [
            Route(f"/static/{name}", _Asset.read(name, kind).answer, name=f"page {name}") for name, kind in _KINDS
        ]
        return [
            Route("/", self.page),
            Route("/api/v1/page/status", self.status),
            Route("/api/v1/page/targets", self.targets),
            Route("/api/v1/page/trace", self.trace),
            Route("/api/v1/page/explain", self.explain),
            *assets,
        ]

    async def page(self, request: Request) -> Response:
        """Answer with the page as it is now."""
        selection, offset = self._selection(request), _offset(request)
        with self._catalogue.in_use():
            if selection.whole and not offset:
                window = await self._catalogue.first(_FIRST_ROWS, selection.key)
            else:
                window = await self._catalogue.find(selection, offset, _FIRST_ROWS)
            trace = (await self._trace(request) or gone()) if "target" in request.query_params else ""
            status = self._status()
        lists = {name: "".join(rows) for name, rows in status.lists.items()}
        content = self._template.substitute(
            lists,
            summary=status.summary,
            notices=status.notices,
            now=f"{self._now():.1f}",
            sets_options=set_options(self._keys(), selection),
            states_options=state_options(selection),
            search=escape(selection.search),
            offset=str(window.offset),
            pages=pages(window, selection),
            total=str(window.total),
            total_text=f"{window.total:,}",
            rows="".join(target_rows(window, selection)),
            revision=escape(status.revision),
            trace=trace,
            trace_open=" open" if trace else "",
        )
        return _answer(content.encode("utf-8", "replace"), "text/html; charset=utf-8")

    async def targets(self, request: Request) -> Response:
        """Answer with the rows of targets that are in view."""
        selection = self._selection(request)
        limit = max(1, min(_number(request, "limit", _FIRST_ROWS), _MOST_ROWS))
        revision = self._revision()
        window = await self._catalogue.find(selection, _offset(request), limit)
        rows = target_rows(window, selection)
        return _json({"total": window.total, "offset": window.offset, "revision": revision, "rows": rows})

    async def trace(self, request: Request) -> Response:
        """Answer with what each rule did to a target, as a part of the page."""
        html = await self._trace(request)
        return _json({"html": html or gone()}, 200 if html else 404)

    async def explain(self, request: Request) -> Response:
        """Answer with what ``trio-sd explain --format json`` prints of a target."""
        found = await self._chosen(request)
        if found is None:
            raise HTTPException(404, "this target is not there any more")
        document = "".join(explain_document([found[1].explained()], _positions(found[1])))
        return _answer(document.encode("utf-8", "replace"), "application/json")

    async def _trace(self, request: Request) -> str:
        """Return what each rule did to the target that is asked for; nothing if it is not there."""
        found = await self._chosen(request)
        if found is None:
            return ""
        key, row = found
        which = {name: request.query_params.get(name, "") for name in ("of", "at", "target")}
        return trace(key, row.explained(), _positions(row), f"/api/v1/page/explain?{urlencode(which)}")

    async def _chosen(self, request: Request) -> tuple[SetKey, Row] | None:
        key = _key(request.query_params.get("of", ""))
        if key is None:
            return None
        identifier = request.query_params.get("target", "")
        row = await self._catalogue.target(key, identifier, _number(request, "at", 0))
        return None if row is None else (key, row)

    async def status(self, request: Request) -> Response:
        """Answer with how everything fares, again and again."""
        if request.method == "HEAD":
            return Response(headers={"content-type": "text/event-stream"})
        return _Following(self)

    @contextmanager
    def one_more_viewer(self) -> Iterator[None]:
        """Count one who follows how everything fares.

        Raises:
          HTTPException: too many do.
        """
        if self._viewers >= _VIEWERS:
            raise HTTPException(503, "too many look at the page", {"retry-after": "5"})
        self._viewers += 1
        try:
            yield
        finally:
            self._viewers -= 1

    async def tell(self, send: _SendSome) -> None:
        """Send the parts of the page that differ from what was sent before, at a bounded pace, until cancelled."""
        sent: dict[str, object] = {}
        last = -_HEARTBEAT
        with self._catalogue.in_use():
            while True:
                news = self.recent.news
                parts = self._status().parts()
                differing = {name: part for name, part in parts.items() if sent.get(name) != part}
                if differing or trio.current_time() - last >= _HEARTBEAT:
                    last = trio.current_time()
                    document = json.dumps({"now": self._now(), **differing}, ensure_ascii=False)
                    await send(f"data: {document}\n\n".encode("utf-8", "replace"))
                first, sent = not sent, parts
                if not first:
                    await trio.sleep(max(0.0, last + _PACE - trio.current_time()))
                    with trio.move_on_after(_RECHECK):
                        await news.wait()
                await self._catalogue.update()

    def _now(self) -> float:
        return self._epoch + trio.current_time()

    def _revision(self) -> str:
        return ", ".join([f"{name} {manager.snapshot().revision}" for name, manager in self._managers.items()])

    def _keys(self) -> list[SetKey]:
        return [(name, one) for name, manager in self._managers.items() for one in manager.snapshot()]

    def _status(self) -> _Status:
        """Return how everything fares now. Work in proportion to the number of sets and providers."""
        statistics = {name: manager.statistics() for name, manager in self._managers.items()}
        stale = {name: manager.snapshot().stale for name, manager in self._managers.items()}
        sets = [
            ListedSet((name, one.name), one, self._catalogue.counts((name, one.name)), stale[name].get(one.name))
            for name, found in statistics.items()
            for one in found.sets
        ]
        providers = [(name, provider) for name, found in statistics.items() for provider in found.providers]
        providers.sort(key=lambda provider: provider[1].state != "failing")  # stable, so the order is kept otherwise
        now = self._now()
        failing = sum([provider.state == "failing" for _, provider in providers])
        targets = sum([one.statistics.targets for one in sets])
        return _Status(
            revision=self._revision(),
            summary=summary(sets=len(sets), targets=targets, providers=len(providers), failing=failing),
            notices="".join(map(notice, self._troubles(statistics.values()))),
            options=set_options([one.key for one in sets], Selection()),
            lists={
                "sets": [*map(set_row, sets[:_MOST_LISTED]), *_more(sets)],
                "providers": [row for name, one in providers[:_MOST_LISTED] for row in provider_rows(name, one, now)]
                + _more(providers),
                "changes": list(map(change_row, self.recent.changes)),
            },
        )

    def _troubles(self, statistics: Iterable[ManagerStatistics]) -> Iterator[str]:
        """Yield what needs attention, besides providers that fail."""
        if self._reloads is not None and (error := self._reloads().last_error):
            yield f"the configuration was refused: {error}"
        for one in statistics:
            if one.state_file is not None and one.state_file.last_error:
                yield f"state file {one.state_file.path}: {one.state_file.last_error}"
            if one.stuck:
                yield f"{one.name}: told to stop and still running: {', '.join(one.stuck)}"

    def _selection(self, request: Request) -> Selection:
        # HTML knows no NUL, and the text stands there again.
        key, text = (
            request.query_params.get(name, "").replace("\0", "\N{REPLACEMENT CHARACTER}") for name in ("set", "q")
        )
        state = next((state for state in STATES if state == request.query_params.get("state")), None)
        return Selection(_key(key), state, text[:_SEARCH].strip())


@dataclass(frozen=True)
class _Status:
    """How everything fares, as parts of the page.

    Attributes:
      revision: what targets there are; differs when they differ.
      summary: all of it in one line.
      notices: what needs attention.
      options: the sets that can be chosen.
      lists: the rows of each list.
    """

    revision: str
    summary: str
    notices: str
    options: str
    lists: Mapping[str, Sequence[str]]

    def parts(self) -> dict[str, object]:
        """Return what the script is sent."""
        return {
            "revision": self.revision,
            "summary": self.summary,
            "notices": self.notices,
            "options": self.options,
            **self.lists,
        }


class _Following(Response):
    """A response that goes on until the client has gone, or the server ends."""

    def __init__(self, page: _Page) -> None:
        super().__init__()
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._page.one_more_viewer():
            await self._follow(receive, send)

    async def _follow(self, receive: Receive, send: Send) -> None:
        async def send_some(body: bytes) -> None:
            with trio.move_on_after(_SENDING) as patience:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if patience.cancelled_caught:
                nursery.cancel_scope.cancel()

        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            nursery.start_soon(cancel_when_set, self._page.ending, nursery.cancel_scope)
            await self._page.tell(send_some)
        with trio.move_on_after(1):
            await send({"type": "http.response.body", "body": b""})


def _positions(row: Row) -> Sequence[Position]:
    """Return where the rules of a target stand; a program's own have numbers only."""
    labeling = row.labeling
    if isinstance(labeling, ScrapeJob | AlertmanagerSection):
        return labeling.rule_positions
    return [Position("", step.index + 1, 1) for step in row.explained().steps]


def _more(found: Sequence[object]) -> list[str]:
    return [more_row(len(found) - _MOST_LISTED)] if len(found) > _MOST_LISTED else []


def _key(text: str) -> SetKey | None:
    manager, _, name = text.partition("/")
    return (manager, name) if text else None


def _offset(request: Request) -> int:
    return _number(request, "offset", 0)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


def _json(document: Mapping[str, object], status: int = 200) -> Response:
    return _answer(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"), "application/json", status)


def _answer(content: bytes, kind: str, status: int = 200) -> Response:
    headers = {"content-type": kind, "cache-control": "no-store"}
    return Response(content, status, headers=headers)
