"""The application: which path answers what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..errors import ConfigError
from ..manager import Manager
from ..reload import Reloader
from .bodies import Body
from .events import EventStream, Remembered
from .guard import Guard, Guarding
from .metrics import Exposition, observe
from .page import page_routes
from .sets import ServedSets, unavailable
from .target_list import encode_targets

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["open_application"]

T = TypeVar("T")

_STREAMS: Final = 400
_FLAGS: Final = MappingProxyType({"": False, "0": False, "false": False, "1": True, "true": True})


@asynccontextmanager
async def open_application(
    scrape: Manager,
    notify: Manager | None = None,
    *,
    reloader: Reloader | None = None,
    enable_reload: bool = False,
    guarding: Guarding | None = None,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[ASGIApp]:
    """Open the ASGI application, and at the end of the block end what it runs.

    ``async with open_application(manager) as app: await hypercorn.trio.serve(app, config)``, or
    :func:`~trio_sd.web.serve`. It must run in the Trio run of its managers.

    Args:
      scrape: the manager of what is to be scraped.
      notify: the manager of Alertmanagers.
      reloader: tells how reloads went, and reloads.
      enable_reload: whether ``POST /-/reload`` reloads.
      guarding: who may ask; whoever calls the server by an address or as ``localhost``, if ``None``.
      registry: what ``/metrics`` tells besides the statistics.

    When the block ends, or is cancelled, so do the answers to those who follow events.
    """
    async with trio.open_nursery() as nursery:
        site = _Site(nursery, scrape, notify, reloader, enable_reload, registry or CollectorRegistry())
        nursery.start_soon(site.end_streams)
        try:
            yield Guard(Starlette(routes=site.routes()), guarding or Guarding())
        finally:
            nursery.cancel_scope.cancel()


class _Site:
    """What the paths answer."""

    def __init__(
        self,
        nursery: trio.Nursery,
        scrape: Manager,
        notify: Manager | None,
        reloader: Reloader | None,
        enable_reload: bool,
        registry: CollectorRegistry,
    ) -> None:
        self._managers = {"scrape": scrape} | ({} if notify is None else {"notify": notify})
        self._sets = {name: ServedSets(manager, nursery) for name, manager in self._managers.items()}
        self._remembered = {(name, relabel): Remembered() for name in self._managers for relabel in (False, True)}
        self._reloader = reloader
        self._enable_reload = enable_reload
        self._exposition = Exposition(registry)
        self._streams = 0
        # Of what is worked out for each who asks. Who asks for much holds up nobody who looks after the engine.
        self._target_lists = trio.CapacityLimiter(1)
        self._expositions = trio.CapacityLimiter(1)
        self._ending = trio.Event()
        reloads = None if reloader is None else reloader.statistics
        self._page = page_routes(nursery, self._managers, reloads, self._ending)

    async def end_streams(self) -> None:
        """When cancelled, end the answers to those who follow events: nothing else ends them before the grace time."""
        try:
            await trio.sleep_forever()
        finally:
            self._ending.set()

    def routes(self) -> list[Route]:
        """Return all paths."""
        return [
            *self._page,
            Route("/sd", self.sets),
            Route("/sd/{name:path}", self.sets),
            Route("/metrics", self.metrics),
            Route("/api/v1/targets", self.targets),
            Route("/api/v1/events", self.events),
            Route("/-/healthy", self.healthy),
            Route("/-/ready", self.ready),
            Route("/-/reload", self.reload, methods=["POST"]),
        ]

    async def sets(self, request: Request) -> Response:
        """Answer with targets for http_sd."""
        sets = self._sets[self._manager_name(request)]
        body = await sets.body(
            request.path_params.get("name"), relabel=_flag(request, "relabel"), partial_=_flag(request, "partial")
        )
        return _body_response(request, body)

    async def metrics(self, request: Request) -> Response:
        """Answer with metrics."""
        observed = observe(self._managers.values(), self._reloader)
        accept = request.headers.get("accept", "")
        body, kind = await _in_thread(partial(self._exposition.expose, observed, accept), self._expositions)
        return Response(body, headers={"content-type": kind, "cache-control": "no-store"})

    async def targets(self, request: Request) -> Response:
        """Answer as Prometheus does."""
        manager = self._managers[self._manager_name(request)]
        state = request.query_params.get("state", "").lower() or "any"
        if state not in ("active", "dropped", "any"):
            raise HTTPException(400, "the state is active, dropped or any")
        pool = request.query_params.get("scrapePool", "")
        snapshot, labelings = manager.snapshot(), manager.labelings()
        sets = {
            name: [
                (labelings[name, provider], snapshot.groups_of(provider))
                for provider in snapshot.layout.providers[name]
                if (name, provider) in labelings  # otherwise restored, and nothing is configured yet
            ]
            for name in snapshot
            if pool in ("", name)
        }
        encode = partial(encode_targets, sets, active=state != "dropped", dropped=state != "active")
        body = await _in_thread(encode, self._target_lists)
        return Response(body, headers={"content-type": "application/json", "cache-control": "no-store"})

    async def events(self, request: Request) -> Response:
        """Answer with updates as they happen."""
        name, relabel = self._manager_name(request), _flag(request, "relabel")
        if request.method == "HEAD":
            return Response(headers={"content-type": "text/event-stream"})
        stream = EventStream(
            self._managers[name],
            relabel=relabel,
            remembered=self._remembered[name, relabel],
            last_seen=request.headers.get("last-event-id", ""),
            ending=self._ending,
        )
        return _Streaming(self, stream)

    @contextmanager
    def one_more_stream(self) -> Iterator[None]:
        """Count one who follows events.

        Raises:
          HTTPException: too many do.
        """
        if self._streams >= _STREAMS:
            raise unavailable("too many follow events")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams:
                for remembered in self._remembered.values():
                    remembered.forget_encoded()

    async def healthy(self, request: Request) -> Response:
        """Say that the process answers."""
        return PlainTextResponse("trio-sd is healthy.\n")

    async def ready(self, request: Request) -> Response:
        """Say whether everything was heard of."""
        missing = [line for name, manager in self._managers.items() for line in _missing(name, manager)]
        if missing:
            raise unavailable("\n".join(["trio-sd is not ready.", *missing[:100], ""]))
        return PlainTextResponse("trio-sd is ready.\n")

    async def reload(self, request: Request) -> Response:
        """Reload, and say how it went."""
        if self._reloader is None or not self._enable_reload:
            raise HTTPException(403, "reloading over HTTP is not enabled: --enable-reload enables it\n")
        try:
            await self._reloader.reload()
        except ConfigError as error:
            return PlainTextResponse(f"failed to reload config: {error}\n", 500)
        except trio.ClosedResourceError:
            raise unavailable("trio-sd is ending") from None
        return PlainTextResponse("reloaded\n")

    def _manager_name(self, request: Request) -> str:
        name = request.query_params.get("manager", "scrape")
        if name not in self._managers:
            raise HTTPException(404, f"there is no such manager; there is: {', '.join(self._managers)}")
        return name


class _Streaming(Response):
    """A response that goes on until somebody ends it."""

    def __init__(self, site: _Site, stream: EventStream) -> None:
        super().__init__()
        self._site = site
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._site.one_more_stream():
                await self._stream(scope, receive, send)
        except trio.ClosedResourceError:
            raise unavailable("trio-sd is ending") from None


async def _in_thread(function: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    return await trio.to_thread.run_sync(function, limiter=limiter, abandon_on_cancel=True)


def _missing(name: str, manager: Manager) -> Iterator[str]:
    """Yield a line for each provider of which nothing was ever heard."""
    statistics = manager.statistics()
    if not statistics.reloads:
        yield f"{name}: no configuration was applied yet"
    for provider in statistics.providers:
        if provider.age is None:
            yield f"{name}: nothing heard yet of {provider.name} of {', '.join(provider.sets[:10])}"


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "").lower()
    if value not in _FLAGS:
        raise HTTPException(400, f"{name} is 0 or 1")
    return _FLAGS[value]


def _body_response(request: Request, body: Body) -> Response:
    headers = {"etag": body.etag, "vary": "Accept-Encoding", "cache-control": "no-cache"}
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if body.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    if body.packed is not None and _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(body.packed, headers={**headers, "content-encoding": "gzip"}, media_type="application/json")
    return Response(body.content, headers=headers, media_type="application/json")


def _takes_gzip(header: str) -> bool:
    for coding in header.lower().split(","):
        name, _, quality = coding.partition(";")
        if name.strip() == "gzip":
            return quality.replace(" ", "").rstrip("0") not in ("q=", "q=0.")
    return False
