"""What ``trio-sd run --listen`` runs: the application, its server, and the web configuration file."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio
from prometheus_client import CollectorRegistry, Info, ProcessCollector

from ..errors import ConfigError
from ..manager import Manager
from ..reload import Reloader
from .application import open_application
from .guard import Guarding
from .server import ListenAddress, serve
from .web_config import WebConfig, load_web_config

__all__ = ["WebOptions", "run_web"]

logger = logging.getLogger(__name__)

_READING: Final = 30.0


@dataclass(frozen=True, slots=True)
class WebOptions:
    """How to serve.

    Attributes:
      address: where to listen.
      hosts: names by which clients may call the server, besides the one to listen on.
      config_file: the web configuration file, or ``None``.
      enable_reload: whether ``POST /-/reload`` reloads.
      version: what ``/metrics`` says that runs.
    """

    address: ListenAddress
    hosts: tuple[str, ...] = ()
    config_file: str | None = None
    enable_reload: bool = False
    version: str = ""


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
    config, tls = await _read(options.config_file)
    guarding = Guarding(
        hosts=(options.address.host, *options.hosts),
        users=config.users(),
        tokens=config.tokens(),
        headers=config.http_server_config.headers,
    )
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


async def _read(file: str | None) -> tuple[WebConfig, ssl.SSLContext | None]:
    if file is None:
        return WebConfig(), None
    with trio.move_on_after(_READING):
        limiter = trio.CapacityLimiter(1)  # a thread that hangs must not take one of the application's
        return await trio.to_thread.run_sync(_read_blocking, file, abandon_on_cancel=True, limiter=limiter)
    raise ConfigError(f"{file}: not read within {_READING:g} s")


def _read_blocking(file: str) -> tuple[WebConfig, ssl.SSLContext | None]:
    config = load_web_config(file)
    tls = config.tls_server_config
    return config, None if tls is None else tls.context()
