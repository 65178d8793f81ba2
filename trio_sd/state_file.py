"""The state file on disk: read once at start, written after changes.

Theory of operation
===================

A file at the path is always whole: what is written goes to ``PATH.new``, to the disk, and then takes the place of the
old file by a rename, which goes to the disk too. Whenever the process or the machine dies, there is the old state or
the new one.

Writing is a subscription like any other: it is offered the newest state when it is ready for it, skips what it can't
keep up with, and holds up nobody. It writes a first change after quiet at once, then at most once a second, under
churn every five seconds; and rests for twenty times as long as the last write took of a core, a minute at the most, so
that it takes little however much there is to write.

All I/O is done in one thread at a time, which a hung disk may keep: then nothing more is written until it lets go,
and nothing else notices.
"""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Final

import trio

from .snapshots import Update
from .state import State, StateError, check_beginning, decode, encode
from .subscription import Throttle

__all__ = ["PACE", "StateFile", "StateFileStatistics"]

logger = logging.getLogger(__name__)

PACE: Final = Throttle(1.0, 5.0)
"""How often the file is written at most, and under constant change."""

_SHARE: Final = 20  # a write is followed by a rest of that many times the CPU time that it took
_LONGEST_REST: Final = 60.0
_DEADLINE: Final = 30.0  # seconds for reading or writing all of it
_TROUBLE: Final = (OSError, RuntimeError, MemoryError)  # RuntimeError: no thread can be started
_NOT_REGULAR: Final = "it is not a regular file"
_RETRY: Final = 30.0  # seconds until what could not be written is tried again, though nothing has changed


@dataclass(frozen=True, slots=True)
class StateFileStatistics:
    """How the state file fares. Times are ``trio.current_time()``.

    Attributes:
      path: where it is.
      saves: how often it was written.
      failures: how often that failed.
      last_saved: when it was last written, or ``None``.
      last_error: why the last write failed, or ``None`` if it did not.
    """

    path: str
    saves: int
    failures: int
    last_saved: float | None
    last_error: str | None


class StateFile:
    """Reads and writes the state of one manager.

    Args:
      path: of the file. A symbolic link is followed: the file it leads to is the one that is replaced.
      manager: the manager's name; the state of another one is not read.
      refresh: seconds after which it is written though nothing has changed.
    """

    def __init__(self, path: str | os.PathLike[str], manager: str, *, refresh: float = inf) -> None:
        self._path = os.path.abspath(path)
        self._manager = manager
        self._refresh = refresh
        self._thread = trio.CapacityLimiter(1)
        self._unread = False  # it may hold something good, which is not to be written over
        self._written: tuple[int, int] | None = None  # the file that was written last
        self._shared = False  # told that somebody else writes it, too
        self._cpu = 0.0  # seconds that the last write took of a core
        self._saves = 0
        self._failures = 0
        self._last_saved: float | None = None
        self._last_error: str | None = None

    async def read(self) -> State | None:
        """Return what the file says, or ``None`` if there is none that can be used.

        One that can't be used is logged and set aside: renamed to ``PATH.unusable-1``, or the next number that is
        free, so that it can be looked at and is not written over. One that could not be read, or not within 30
        seconds, is logged, and set aside before another one is written.
        """
        content: bytes | None = None
        try:
            with trio.fail_after(_DEADLINE):
                content = await trio.to_thread.run_sync(self._content, abandon_on_cancel=True, limiter=self._thread)
            if content is None:
                logger.info("there is no state file %s yet", self._path)
                return None
            # Without a deadline: it takes long where there is much, but does not hang.
            return await trio.to_thread.run_sync(
                decode, io.BytesIO(content), self._manager, abandon_on_cancel=True, limiter=self._thread
            )
        except StateError as error:
            try:
                with trio.fail_after(_DEADLINE):
                    done = await trio.to_thread.run_sync(self._set_aside, abandon_on_cancel=True, limiter=self._thread)
            except (*_TROUBLE, trio.TooSlowError) as trouble:
                done = f"It can't be set aside, {_reason(trouble)}, and will be written over"
            logger.error("state file %s can't be used, %s; beginning without it. %s", self._path, error, done)
        except (*_TROUBLE, trio.TooSlowError) as error:
            self._unread = True
            logger.error("state file %s can't be read, %s; beginning without it", self._path, _reason(error))
        return None

    def _content(self) -> bytes | None:
        """Return the content of the file, or ``None`` if there is none."""
        path = os.path.realpath(self._path)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for; opening a device may do anything
                raise StateError(_NOT_REGULAR)
            with open(path, "rb") as file:
                beginning = file.read(1_000)
                check_beginning(beginning)  # before something very large is read that is not ours
                return beginning + file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _set_aside(self) -> str:
        path = os.path.realpath(self._path)
        if not os.path.isfile(path):
            return "It stays where it is"
        aside = next(free for n in count(1) if not os.path.lexists(free := f"{path}.unusable-{n}"))
        try:
            os.rename(path, aside)
        except OSError as error:
            return f"It can't be set aside as {aside}, {error.strerror}, and will be written over"
        return f"It was set aside as {aside}"

    async def keep(self, updates: trio.MemoryReceiveChannel[Update], current: Callable[[], State]) -> None:
        """Write ``current()`` for each update, until cancelled. What fails is logged, and tried again after 30 s."""
        saved = True
        while True:
            with trio.move_on_after(self._refresh if saved else _RETRY):
                await updates.receive()  # not bound to a name, which would keep what it holds
            saved = await self.save(current())
            await trio.sleep(min(_SHARE * self._cpu, _LONGEST_REST))

    async def save(self, state: State) -> bool:
        """Write ``state``, and return whether that went well. A failure is logged.

        Cancelled, it leaves the thread to itself, which ends when its write does; the file is whole even then.
        """
        try:
            with trio.fail_after(_DEADLINE):
                await trio.to_thread.run_sync(self._write, state, abandon_on_cancel=True, limiter=self._thread)
        except (*_TROUBLE, trio.TooSlowError) as error:
            reason = _reason(error)
            self._failures += 1
            if self._last_error is None:  # told once, until it works again
                logger.error("state file %s can't be written: %s", self._path, reason)
            self._last_error = reason
            return False
        if self._last_error is not None:
            logger.info("state file %s is written again", self._path)
        logger.debug("state file %s was written", self._path)
        self._saves += 1
        self._last_saved = trio.current_time()
        self._last_error = None
        return True

    def _write(self, state: State) -> None:
        began = time.thread_time()
        try:
            self._replace(state)
        finally:
            self._cpu = time.thread_time() - began

    def _replace(self, state: State) -> None:
        path = os.path.realpath(self._path)
        if os.path.lexists(path) and not os.path.isfile(path):
            raise FileExistsError(errno.EEXIST, _NOT_REGULAR, path)
        if self._unread and os.path.isfile(path):
            logger.warning("state file %s could not be read. %s", path, self._set_aside())
            self._unread = False
        self._look_for_another_writer(path)
        new = f"{path}.new"
        with open(_open_locked(new), "wb") as file:
            try:
                file.truncate()  # of a process that was killed
                file.writelines(encode(state))
                file.flush()
                os.fsync(file.fileno())
                os.replace(new, path)
                self._written = _identity(os.fstat(file.fileno()))
            except OSError:
                with suppress(OSError):
                    os.unlink(new)
                raise
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _look_for_another_writer(self, path: str) -> None:
        """Tell if the file is not the one that was written last: two that take turns lose each other's state."""
        with suppress(OSError):
            if self._written not in (None, _identity(os.stat(path))) and not self._shared:
                self._shared = True
                logger.error("state file %s is written by somebody else, too: each needs a file of its own", path)

    def statistics(self) -> StateFileStatistics:
        """Return how the file fares, at this moment."""
        return StateFileStatistics(self._path, self._saves, self._failures, self._last_saved, self._last_error)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_mtime_ns


def _reason(error: BaseException) -> str:
    return f"not done within {_DEADLINE:g} s" if isinstance(error, trio.TooSlowError) else str(error)


def _open_locked(path: str) -> int:
    """Open a file to write to, and lock it, so that nobody else who does the same gets it before it is closed.

    Who else might: another process that was given the same path by mistake, or a write that was left to itself because
    its disk hung.

    Raises:
      OSError: it can't be opened, or somebody else has it.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        os.fchmod(fd, 0o600)  # what was discovered is nobody else's business, whoever has made the file
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EWOULDBLOCK, "somebody else is writing it", path) from None
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            raise BlockingIOError(errno.EWOULDBLOCK, "somebody else has just written it", path)
    except OSError:
        os.close(fd)
        raise
    return fd
