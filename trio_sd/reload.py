"""From "please reload" to the new configuration in force.

A request comes from SIGHUP, from a change of the configuration's files, or from code. Whatever the number of requests
while one is under way, one more reload follows it. Nothing is applied unless the whole configuration was read, parsed
and validated; otherwise the old one stays in force, and the log and :meth:`Reloader.statistics` say why.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio

from .config import Config, content_digest
from .discoverer import DiscovererOptions, Registry
from .discovery import load_config
from .discovery.file import FileDiscoverer
from .errors import ConfigError
from .limits import Limits
from .manager import Manager
from .resources import Resources
from .target_lists import Parsed
from .targets import TargetGroup

__all__ = ["ReloadStatistics", "Reloader", "load", "reload_on_sighup"]

logger = logging.getLogger(__name__)

_LOAD_DEADLINE = 30.0
_RECHECK = 300.0  # seconds between two readings of watched configuration files, whatever was told of them


@dataclass(frozen=True, slots=True)
class ReloadStatistics:
    """How reloads went. Times are ``trio.current_time()``.

    Attributes:
      succeeded: configurations put in force.
      failed: configurations refused.
      last_success: when the last one was put in force, or ``None``.
      last_error: why the last one was refused, or ``None`` if it was not.
    """

    succeeded: int
    failed: int
    last_success: float | None
    last_error: str | None


async def load(
    path: str | os.PathLike[str], *, registry: Registry | None = None, limits: Limits | None = None
) -> Config:
    """Read and validate a configuration in a thread, so that a hung file system does not stop everything else.

    Args:
      path: the configuration file.
      registry: the mechanisms to know; all that trio_sd has if ``None``.
      limits: bounds on what is read.

    Raises:
      ConfigError: the configuration can't be used, or could not be read within 30 seconds.

    Cancelled, it leaves the thread to itself, which ends when its read returns.
    """
    read = partial(load_config, path, registry=registry, limits=limits or Limits())
    with trio.move_on_after(_LOAD_DEADLINE):
        # A limiter of its own: a thread that hangs must not take one of the application's.
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
    raise ConfigError(f"{os.fspath(path)}: not read within {_LOAD_DEADLINE:g} s")


class Reloader:
    """Reloads the configuration at ``path`` into managers, one reload at a time.

    Args:
      path: the configuration file.
      scrape: the manager of ``Config.scrape``, if there is one.
      notify: the manager of ``Config.notify``, if there is one.
      registry: the mechanisms to know; all that trio_sd has if ``None``.
      limits: bounds on what is read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        scrape: Manager | None = None,
        notify: Manager | None = None,
        registry: Registry | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._path = os.path.abspath(path)
        self._scrape = scrape
        self._notify = notify
        self._limits = limits or Limits()
        self._load = partial(load, path, registry=registry, limits=limits)
        self._config: Config | None = None
        self._seen: dict[str, str | None] = {}  # digests by path, as the watch last saw them
        self._watching = trio.CancelScope()
        self._set_trigger, self._trigger = trio.open_memory_channel[None](1)
        self._turn = trio.Lock()
        self._succeeded = 0
        self._failed = 0
        self._last_success: float | None = None
        self._last_error: str | None = None

    def request(self) -> None:
        """Ask for a reload, which :meth:`run` carries out. Sync; never waits."""
        with suppress(trio.WouldBlock):
            self._set_trigger.send_nowait(None)

    async def run(self) -> None:
        """Carry out requests until cancelled; a configuration that is refused is logged."""
        async for _ in self._trigger:
            try:
                await self.reload()
            except ConfigError as error:
                logger.error("reload refused, the old configuration stays in force: %s", error)

    async def reload(self) -> Config:
        """Load the configuration and put it in force; also for the first time.

        Raises:
          ConfigError: it was refused; the old one stays in force.
          trio.ClosedResourceError: a manager is closed.

        If cancelled before everything is validated, nothing has changed.
        """
        async with self._turn:
            try:
                config = await self._load()
            except ConfigError as error:
                self._failed += 1
                self._last_error = str(error)
                raise
            if self._scrape is not None:
                await self._scrape.apply_config(config.scrape)
            if self._notify is not None:
                await self._notify.apply_config(config.notify)
            self._succeeded += 1
            self._last_success = trio.current_time()
            self._last_error = None
            for note in config.notes:
                logger.warning("%s: %s", self._path, note)
            logger.info("configuration %s is in force", self._path)
            self._watch_anew(config)
            return config

    async def watch(self) -> None:
        """Request a reload whenever a file of the configuration changes, until cancelled.

        A configuration's files are watched the way targets' files are, because all that can happen to those happens
        to these too: each file is "discovered" as a group that holds nothing but a digest of its content. A digest
        that differs from what was loaded is a change, so one in the middle of a reload is not missed either.
        """
        while True:
            with trio.CancelScope() as self._watching:
                await self._watch_files()

    async def _watch_files(self) -> None:
        config = self._config
        path = re.sub(r"([*?\[\\])", r"\\\1", self._path)  # a file, whatever characters are in its name
        files = dict.fromkeys([path, *(config.patterns if config else ())])
        send, receive = trio.open_memory_channel[Sequence[TargetGroup]](0)
        async with trio.open_nursery() as nursery:
            options = DiscovererOptions(Resources(nursery), self._limits)
            discoverer = FileDiscoverer(tuple(files), _RECHECK, options, parse=_digest)
            nursery.start_soon(discoverer.run, send)
            with receive:
                logger.info("watching %s", ", ".join(files))
                first = True
                async for groups in receive:
                    digests = {group.source: group.labels.get("digest") for group in groups}
                    loaded = self._config.digests if self._config else {}
                    if first:  # the full set; what was loaded and is not in it has gone since
                        digests = {**dict.fromkeys(loaded), **digests}
                        first = False
                    self._seen |= digests
                    # The last one refused is worth another try too: it may have been mended by going back.
                    if self._last_error or any(loaded.get(name) != digest for name, digest in digests.items()):
                        self.request()

    def _watch_anew(self, config: Config) -> None:
        """Note what was loaded; ask again if it is out of date already; watch other files if there are others."""
        before, self._config = self._config, config
        if any(self._seen.get(path, digest) != digest for path, digest in config.digests.items()):
            self.request()
        if before is None or before.patterns != config.patterns:
            self._watching.cancel()

    def statistics(self) -> ReloadStatistics:
        """Return how reloads went so far."""
        return ReloadStatistics(self._succeeded, self._failed, self._last_success, self._last_error)


def _digest(content: bytes, path: str, limits: Limits, before: Parsed | None) -> Parsed:
    return Parsed((TargetGroup(path, [{"__address__": path}], {"digest": content_digest(content)}),))


async def reload_on_sighup(
    path: str | os.PathLike[str],
    *,
    scrape: Manager | None = None,
    notify: Manager | None = None,
    task_status: trio.TaskStatus[Reloader] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Reload ``path`` into the managers whenever the process receives SIGHUP, until cancelled.

    Use ``await nursery.start(partial(reload_on_sighup, path, scrape=manager))``: the signal is caught from the moment
    when that returns, and what it returns is the :class:`Reloader`. Like all that catches signals it must run in the
    main thread.
    """
    reloader = Reloader(path, scrape=scrape, notify=notify)
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reloader.run)
            task_status.started(reloader)
            async for _ in signals:
                reloader.request()
