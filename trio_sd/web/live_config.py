"""The web configuration while a server runs: certificates are replaced, and users come and go, without a restart.

Whoever connects or asks has the files looked at first, but nobody does if that was done less than a second ago; while
nobody comes, nothing is done. A look is a ``stat`` of each file, in a thread. Only what has changed is read.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Self, TypeAlias

import trio

from ..errors import ConfigError
from .guard import Guarding
from .web_config import WebConfig, load_web_config

__all__ = ["LiveWebConfig"]

logger = logging.getLogger(__name__)

_READING: Final = 30.0  # seconds that the first reading may take
_LOOKING: Final = 5.0  # seconds that a look may take, for which those who connect wait
_PAUSE: Final = 1.0  # seconds from one look to the next

_Status: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was found in the files.

    Attributes:
      statuses: of each file, from before it was read: what changes meanwhile is seen at the next look.
      config: what the web configuration file says, or why that can't be used.
      context: how connections are encrypted; they are not if ``None``.
    """

    statuses: Mapping[str, _Status]
    config: WebConfig | ConfigError
    context: ssl.SSLContext | None = None


class LiveWebConfig:
    """A web configuration file and the files that it names, as they are now.

    What can't be used is logged, once for each reason, and what was in force before stays so. So it does if encryption
    is turned on or off, or if nobody needs a password or a token any more: a file may be looked at while it is written,
    and half of it must not open the door. Both take a restart. Use :meth:`read` to make one.
    """

    def __init__(self, file: str, guarding: Guarding, config: WebConfig, reading: _Reading) -> None:
        self._file = file
        self._statuses = reading.statuses
        self._context = reading.context
        self._guarding = replace(guarding, latest=self.latest_guarding)
        self._guarding = self._guarded(config)
        self._trouble: str | None = None  # what was logged last, if nothing was good since
        self._next_look = trio.current_time() + _PAUSE
        self._turn = trio.Lock()
        self._limiter = trio.CapacityLimiter(1)  # a thread that hangs must not take one of the application's

    @classmethod
    async def read(cls, file: str, guarding: Guarding) -> Self:
        """Read the files for the first time.

        Args:
          file: the web configuration file.
          guarding: who may ask, as far as the file does not say it.

        Raises:
          ConfigError: they can't be used, or not be read within 30 seconds.

        Cancelled, it leaves the thread to itself, which ends when its read returns.
        """
        limiter = trio.CapacityLimiter(1)
        with trio.move_on_after(_READING):
            reading = await trio.to_thread.run_sync(_read, file, abandon_on_cancel=True, limiter=limiter)
            if isinstance(reading.config, ConfigError):
                raise reading.config
            return cls(file, guarding, reading.config, reading)
        raise ConfigError(f"{file}: not read within {_READING:g} s")

    @property
    def guarding(self) -> Guarding:
        """Who may ask, as it was found last; its ``latest`` tells the rest."""
        return self._guarding

    @property
    def encrypts(self) -> bool:
        """Whether connections are encrypted, which stays so."""
        return self._context is not None

    async def latest_guarding(self) -> Guarding:
        """Have the files looked at, and return who may ask. Waits for 5 seconds at the most."""
        await self._look_if_due()
        return self._guarding

    async def latest_context(self) -> ssl.SSLContext:
        """Have the files looked at, and return how the next connection is encrypted. Waits for 5 seconds at the most.

        Raises:
          RuntimeError: connections are not encrypted.
        """
        await self._look_if_due()
        if self._context is None:
            raise RuntimeError("connections are not encrypted")
        return self._context

    def _is_due(self) -> bool:
        # While a thread hangs, nobody waits for it but those who did before.
        hangs = self._limiter.borrowed_tokens and not self._turn.locked()
        return trio.current_time() >= self._next_look and not hangs

    async def _look_if_due(self) -> None:
        if not self._is_due():
            await trio.lowlevel.checkpoint()
            return
        async with self._turn:
            if self._is_due():  # it is not if somebody else looked meanwhile
                await self._look()
                self._next_look = trio.current_time() + _PAUSE

    async def _look(self) -> None:
        look = partial(_read_if_changed, self._file, self._statuses)
        with trio.move_on_after(_LOOKING) as patience:
            reading = await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=self._limiter)
            if reading is not None:
                self._take(reading)
        if patience.cancelled_caught:
            self._statuses = {self._file: ()}  # read them next time, whatever they are like
            self._complain(logging.ERROR, f"can't be used, not read within {_LOOKING:g} s")

    def _take(self, reading: _Reading) -> None:
        """Put in force what was found, if it can be."""
        self._statuses = reading.statuses
        if isinstance(reading.config, ConfigError):
            self._complain(logging.ERROR, f"can't be used, {reading.config}")
        elif (reading.context is not None) != self.encrypts:
            turned = "off" if self.encrypts else "on"
            self._complain(logging.WARNING, f"turns encryption {turned}, which takes a restart")
        elif _protects(self._guarding) and not _protects(self._guarded(reading.config)):
            self._complain(logging.WARNING, "has no users and no tokens any more, which takes a restart")
        else:
            self._context = reading.context
            self._guarding = self._guarded(reading.config)
            self._trouble = None
            logger.info("web configuration %s is in force", self._file)

    def _complain(self, level: int, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            logger.log(level, "web configuration %s %s; the old one stays in force", self._file, trouble)

    def _guarded(self, config: WebConfig) -> Guarding:
        headers = config.http_server_config.headers
        return replace(self._guarding, users=config.users(), tokens=config.tokens(), headers=headers)


def _protects(guarding: Guarding) -> bool:
    return bool(guarding.users or tuple(guarding.tokens))


def _read(file: str) -> _Reading:
    statuses = {file: _status(file)}
    try:
        config = load_web_config(file)
        tls = config.tls_server_config
        if tls is None:
            return _Reading(statuses, config)
        statuses |= {named: _status(named) for named in tls.files()}
        return _Reading(statuses, config, tls.context())
    except ConfigError as error:
        return _Reading(statuses, error)


def _read_if_changed(file: str, statuses: Mapping[str, _Status]) -> _Reading | None:
    return None if all(_status(known) == status for known, status in statuses.items()) else _read(file)


def _status(file: str) -> _Status:
    """Return what is another one once the file, or a link on the way to it, is replaced, written or made readable."""
    try:
        found = os.stat(file)
    except OSError as error:
        return (error.errno or 0,)
    except ValueError:  # a path with a NUL in it
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
