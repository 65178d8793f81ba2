"""What ``trio-sd run --listen`` runs: the application, its server, and the web configuration file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio
from prometheus_client import CollectorRegistry, Info, ProcessCollector

from ..manager import Manager
from ..reload import Reloader
from .application import open_application
from .guard import Guarding
from .live_config import LiveWebConfig
from .server import ListenAddress, TLSSource, serve

__all__ = ["WebOptions", "run_web"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WebOptions:
    """How to serve.

    Attributes:
      address: where to listen.
      hosts: names by which clients may call the server, besides the one to listen on.
      config_file: the web configuration file, or ``None``.
      enable_reload: whether ``POST /-/reload`` reloads.
      version: what ``/metrics`` says that runs.
      cors_origin: an expression that matches the whole origin of each page that may read the answers, or ``None``.
    """

    address: ListenAddress
    hosts: tuple[str, ...] = ()
    config_file: str | None = None
    enable_reload: bool = False
    version: str = ""
    cors_origin: str | None = None


async def run_web(
    options: WebOptions,
    scrape: Manager,
    notify: Manager,
    reloader: Reloader,
    *,
    task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve both managers until cancelled. Started when clients can connect, with the URLs that they can use.

    Raises:
      ConfigError: the web configuration file can't be used.
      ServeError: the address can't be listened on.

    Cancelled, it lets requests under way end for a few seconds.
    """
    guarding = Guarding(hosts=(options.address.host, *options.hosts), cors_origin=options.cors_origin)
    tls: TLSSource | None = None
    if options.config_file is not None:
        live = await LiveWebConfig.read(options.config_file, guarding)
        guarding = live.guarding
        tls = live.latest_context if live.encrypts else None
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Info("trio_sd_build", "What runs.", registry=registry).info({"version": options.version})
    async with (
        open_application(
            scrape,
            notify,
            reloader=reloader,
            enable_reload=options.enable_reload,
            guarding=guarding,
            registry=registry,
        ) as app,
        trio.open_nursery() as nursery,
    ):
        urls = await nursery.start(partial(serve, app, options.address, tls=tls))
        for url in urls:
            logger.info("listening on %s", url)
        task_status.started(urls)
