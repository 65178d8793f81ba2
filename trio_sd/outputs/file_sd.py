"""Target files for Prometheus: one file of ``file_sd`` JSON for each set, in a directory.

Theory of operation
===================

*Whole.* What is written goes to a file of another name in the same directory, to the disk, and then takes the place of
the old file by a rename. No pattern of Prometheus matches the other name, because it has no extension. It is random, so
that not even those whom no lock keeps apart, as on NFS, take the content of each other for their own.

*Only when changed.* Only sets that differ are encoded. Equal sets make equal bytes, and what the file says already is
not written again, also after a restart: what counts is what is on the disk.

*Only what it made.* A file in the directory lists the sets whose files were made here. It is on the disk before the
first file of a set is. A marker in the files themselves was rejected: it would have to be a group, which every reader
would see, and ``[]`` has no room for it. Whatever else has the name of a file is left alone, and told. The directory is
locked for as long as it is written to, so that two who were given the same one do not empty each other's files.

*Truth.* A set of which nothing was found out yet keeps the file that it has, or has none: an empty one would take
targets away. In the first seconds a set waits for all of its providers, which may have been in the file before.

*Others* can remove or edit what was written. Once a minute the status of each file is compared with what it was when
the file was written, and what says something else is written again. This is the one thing here that ticks: without it
the targets would be away until their set changes. File events are no way out. To listen for them is a mechanism of
discovery, of which outputs know nothing; no event tells what another machine does on a shared disk; and the kernel has
few watches, which those who read need more.

*Sets that went away* are empty first, so that every reader takes notice, and removed half a minute later. Before that,
all that is found is written: a set that was only renamed is never without targets. When the process ends the files stay
as they are; the list says at the next start whose sets have gone meanwhile.

*Trouble.* What can't be written stays due until it can, and holds up nothing else. All I/O is done in one thread at a
time, which a hung disk may keep: then nothing more is written until it lets go, and nothing else notices.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from typing import Final, NamedTuple, Self, TypeVar, TypeVarTuple
from urllib.parse import quote

import trio

from ..manager import Manager
from ..snapshots import Snapshot, Update
from ..subscription import Throttle
from ..targets import ADDRESS_LABEL, LABEL_NAME, TargetGroup

__all__ = ["EncodedGroups", "TargetFiles", "TargetFilesStatistics", "encode_groups", "file_name"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_LIST: Final = ".trio-sd-files"
_NEW: Final = re.compile(r"\.trio-sd-new(-[0-9a-f]{16})?")  # the names of files that are not whole yet
_EXTENSION: Final = ".json"
_LONGEST: Final = 255  # bytes of a file name, on all usual file systems
_KEPT: Final = 150  # of a name that is too long
_EMPTY: Final = b"[]\n"
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True)

_DEADLINE: Final = 30.0  # seconds for each step in the thread
_LAST_STEP: Final = 5.0  # and for what is under way when all ends
_PATIENCE: Final = 15.0  # seconds for which a set waits for all of its providers, as at a reload
_REMOVAL: Final = 30.0  # seconds for which readers have an empty file to notice
_CHECK: Final = 60.0  # seconds until it is looked whether others have changed what was written
_ABANDONED: Final = 300.0  # seconds after which what is not whole yet will never be, where nobody can be locked out
_RETRY: Final = 30.0  # seconds until what could not be written is tried again, though nothing has changed
_TROUBLE: Final = (OSError, RuntimeError, MemoryError, trio.TooSlowError)  # RuntimeError: no thread can be started


def file_name(set_name: str) -> str:
    """Return the name of the file of a set: ``web.json`` for ``web``, the same for no other set.

    Letters, digits, ``_``, ``-``, ``~`` and dots inside stand for themselves, every other character is percent-encoded;
    a name that gets too long is cut, and goes on with ``%~`` and its SHA-256 sum, which no encoded name has.
    """
    stem = quote(set_name, safe="", errors="surrogatepass") or "%"
    if stem.startswith("."):
        stem = f"%2E{stem[1:]}"  # not hidden
    if len(stem) > _LONGEST - len(_EXTENSION):
        stem = f"{stem[:_KEPT]}%~{sha256(set_name.encode('utf-8', 'surrogatepass')).hexdigest()}"
    return stem + _EXTENSION


@dataclass(frozen=True, slots=True)
class EncodedGroups:
    """The content of a file.

    Attributes:
      content: JSON; the same bytes for the same groups.
      left_out: the names of labels that no file may have.
    """

    content: bytes
    left_out: tuple[str, ...]


def encode_groups(groups: Iterable[TargetGroup]) -> EncodedGroups:
    """Return what Prometheus' ``file_sd`` reads as these groups, a group a line.

    A target in a file is an address; labels of its own make it a group of its own, together with those that have the
    same. Labels stay what they are, also hidden and empty ones. Those with names that not every release of Prometheus
    accepts are left out, because one of them would make the whole file unusable.
    """
    left_out: dict[str, None] = {}
    lines = []
    for group in groups:
        for labels, addresses in _entries(group):
            bad = [name for name in labels if not LABEL_NAME.fullmatch(name)]
            left_out.update(dict.fromkeys(bad))
            good = {name: value for name, value in labels.items() if name not in bad}
            lines.append(_ENCODER.encode({"labels": good, "targets": addresses}))
    text = "[\n" + ",\n".join(lines) + "\n]\n" if lines else _EMPTY.decode()
    return EncodedGroups(text.encode("utf-8", "replace"), tuple(sorted(left_out)))


def _entries(group: TargetGroup) -> Iterator[tuple[Mapping[str, str], Sequence[str]]]:
    """Yield the addresses of targets that have the same labels, with these, in the order of the first of each."""
    entries: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for target in group.targets:
        address = target.get(ADDRESS_LABEL, group.labels.get(ADDRESS_LABEL, ""))
        own = tuple([item for item in target.items() if item[0] != ADDRESS_LABEL])
        entries.setdefault(own, []).append(address)
    shared = {name: value for name, value in group.labels.items() if name != ADDRESS_LABEL}
    for own, addresses in entries.items():
        yield {**shared, **dict(own)}, addresses


@dataclass(frozen=True, slots=True)
class TargetFilesStatistics:
    """How the files of a directory fare. Times are ``trio.current_time()``.

    Attributes:
      directory: where they are.
      files: how many there are.
      writes: how often one was written.
      removals: how often one was removed.
      failures: how often something could not be done.
      last_written: when one was last written, or ``None``.
      errors: why some of them can't be written at present.
      left_out: by set, the names of labels that no file may have.
    """

    directory: str
    files: int
    writes: int
    removals: int
    failures: int
    last_written: float | None
    errors: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]


class TargetFiles:
    """Writes what a manager finds into a directory, for Prometheus to read: ``files: [DIRECTORY/*.json]``.

    Each manager needs a directory of its own.

    Args:
      directory: where to write. It is made if it is not there, but not the one that it is in. A symbolic link is
        followed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._folder = _Folder(os.path.abspath(directory))
        self._thread = trio.CapacityLimiter(1)
        self._snapshot: Snapshot | None = None
        self._due: dict[str, None] = {}  # sets whose files may have to be written
        self._leaving: dict[str, float] = {}  # sets that went away, and when their files are to be removed
        self._patience = 0.0  # until then sets wait for all of their providers
        self._opened = 0  # which of the directories that were at the path it deals with
        self._check = inf
        self._retry = inf
        self._errors: tuple[str, ...] = ()
        self._left_out: dict[str, tuple[str, ...]] = {}
        self._writes = 0
        self._removals = 0
        self._failures = 0
        self._last_written: float | None = None

    async def run(self, manager: Manager, *, relabel: bool = False, throttle: Throttle | None = None) -> None:
        """Keep the files up to date until cancelled, or until the manager is closed. May be run once.

        Nothing is written before the manager has a configuration, nor for a set of which nothing was found out. What
        can't be written is logged once for each reason, and tried again after half a minute and at every change. What
        somebody else has changed is written again within a minute, and logged.

        Args:
          manager: whose sets to write.
          relabel: whether to write targets as they are after relabeling; see :meth:`Manager.subscribe`.
          throttle: the pace; the manager's own if ``None``.

        Raises:
          trio.ClosedResourceError: the manager is closed before it has a configuration.

        Cancelled, it waits until the step under way is done, for five seconds at the most; files are whole even if a
        thread is left to itself because a disk hangs.
        """
        await manager.wait_configured()
        try:
            async with manager.subscribe(relabel=relabel, throttle=throttle, name="target files") as updates:
                self._patience = trio.current_time() + _PATIENCE
                with suppress(trio.EndOfChannel):
                    while True:
                        with trio.move_on_at(self._next_turn()):
                            self._take(await updates.receive())
                        if self._snapshot is not None:
                            await self._catch_up(self._snapshot)
        finally:
            with trio.move_on_after(_LAST_STEP, shield=True):
                await trio.to_thread.run_sync(self._folder.close, abandon_on_cancel=True, limiter=self._thread)

    def _next_turn(self) -> float:
        """Return when there is something to do though nothing changes."""
        waiting = self._patience if self._due and trio.current_time() < self._patience else inf
        # A check of files that others can touch is the price of truth: one wake-up in a minute.
        return min(waiting, self._retry if self._errors else min([self._check, *self._leaving.values()]))

    def _take(self, update: Update) -> None:
        self._snapshot = update.snapshot
        self._due.update(dict.fromkeys(update.changes))

    async def _catch_up(self, snapshot: Snapshot) -> None:
        """Write what is due, and remove what has been empty for long enough, as far as that can be done now."""
        trouble: dict[str, list[str]] = {}  # where something could not be done, by reason
        mended: list[str] = []  # what others had changed
        try:
            opened = await self._in_thread(self._folder.open, bool(snapshot))
            if opened != self._opened:
                if self._opened and snapshot:
                    logger.warning("directory %s was changed by somebody else; written again", self._folder.path)
                self._opened = opened
                self._leaving.clear()
                self._due.update(dict.fromkeys([*snapshot, *self._folder.sets]))
                self._check = trio.current_time() + _CHECK
            elif trio.current_time() >= self._check:
                self._check = trio.current_time() + _CHECK
                self._due.update(dict.fromkeys(await self._in_thread(self._folder.changed, list(snapshot))))
                if await self._in_thread(self._folder.mend_list):
                    mended.append(_LIST)
            ready = [name for name in self._due if self._is_known(snapshot, name)]
            await self._in_thread(self._folder.claim, [name for name in ready if name in snapshot])
            for name in sorted(ready, key=lambda name: name not in snapshot):  # those that went away are last
                try:
                    if await self._write(snapshot, name):
                        mended.append(file_name(name))
                    del self._due[name]
                except OSError as error:  # of this file, perhaps
                    trouble.setdefault(_reason(error), []).append(file_name(name))
            await self._remove([name for name, when in self._leaving.items() if when <= trio.current_time()])
        except _TROUBLE as error:
            trouble.setdefault(_reason(error), [])
        if mended:
            path, files = self._folder.path, _some(mended)
            logger.warning("target files in %s were changed by somebody else; written again: %s", path, files)
        self._note_trouble(trouble)

    def _is_known(self, snapshot: Snapshot, name: str) -> bool:
        """Tell whether what is shown of a set may be written; also that it has gone."""
        unheard = snapshot.unheard(name)
        if not unheard:
            return True
        return trio.current_time() >= self._patience and len(unheard) < len(snapshot.layout.providers[name])

    async def _write(self, snapshot: Snapshot, name: str) -> bool:
        """Write the file of a set if it says something else, and return whether somebody else had changed it."""
        gone = name not in snapshot
        if gone and name not in self._folder.sets:
            return False
        written, mended, left_out = await self._in_thread(self._folder.write, name, snapshot)
        if written:
            self._writes += 1
            self._last_written = trio.current_time()
            logger.debug("target file %s was written", self._folder.path_of(name))
        self._note_left_out(name, left_out)
        if not gone:
            self._leaving.pop(name, None)
        elif name not in self._leaving:
            self._leaving[name] = trio.current_time() + _REMOVAL
        return mended

    async def _remove(self, names: Collection[str]) -> None:
        if names:
            await self._in_thread(self._folder.remove, names)
            self._removals += len(names)
            for name in names:
                del self._leaving[name]

    async def _in_thread(self, step: Callable[[*Ts], T], *arguments: *Ts) -> T:
        with trio.fail_after(_DEADLINE):
            return await trio.to_thread.run_sync(step, *arguments, abandon_on_cancel=True, limiter=self._thread)

    def _note_left_out(self, name: str, left_out: tuple[str, ...]) -> None:
        if left_out and left_out != self._left_out.get(name):
            names = ", ".join(left_out)
            logger.warning("target file %s is without labels that it can't have: %s", self._folder.path_of(name), names)
        self._left_out.pop(name, None)
        if left_out:
            self._left_out[name] = left_out

    def _note_trouble(self, trouble: Mapping[str, Sequence[str]]) -> None:
        for reason, files in trouble.items():
            if reason not in self._errors:  # told once, until it is over
                which = f": {_some(files)}" if files else ""
                logger.error("target files in %s can't be written, %s%s", self._folder.path, reason, which)
        if self._errors and not trouble:
            logger.info("target files in %s are written again", self._folder.path)
        self._errors = tuple(trouble)
        self._failures += sum([len(files) or 1 for files in trouble.values()])
        self._retry = trio.current_time() + _RETRY

    def statistics(self) -> TargetFilesStatistics:
        """Return how the files fare, at this moment."""
        return TargetFilesStatistics(
            directory=self._folder.path,
            files=len(self._folder.sets),
            writes=self._writes,
            removals=self._removals,
            failures=self._failures,
            last_written=self._last_written,
            errors=self._errors,
            left_out=dict(self._left_out),
        )


def _reason(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"not done within {_DEADLINE:g} s"
    # Without the name of the file: what a thousand files have in common is told once.
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _some(files: Sequence[str]) -> str:
    return ", ".join(files[:3]) + (" and others" if len(files) > 3 else "")


class _Written(NamedTuple):
    """What became of the file of a set: whether it had to be written, because of others, and without which labels."""

    written: bool
    mended: bool
    left_out: tuple[str, ...]


class _Status(NamedTuple):
    """By what one sees that a file is another one, or was written to."""

    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class _Folder:
    """The directory, and which files in it were made here. Sync, for use in one thread at a time.

    Args:
      path: of the directory.

    Attributes:
      path: of the directory.
      sets: those whose files were made here; another object each time that differs. Any thread may look at it.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.sets: frozenset[str] = frozenset()
        self._fd: int | None = None
        self._opened = 0
        self._new = f".trio-sd-new-{secrets.token_hex(8)}"
        self._noted: dict[str, _Status | None] = {}  # how files were when they were last written, or found to be right

    def path_of(self, set_name: str) -> str:
        return os.path.join(self.path, file_name(set_name))

    def open(self, make: bool) -> int:
        """Make sure that what is opened is the directory at the path, and return a number that differs for another one.

        An answer that takes too long reaches nobody: whoever asks next sees by the number that it is another one.

        Args:
          make: whether to make the directory if it is not there. If not, and it is not, there is nothing in it.

        Raises:
          OSError: it can't be opened, or somebody else writes to it.
        """
        try:
            if self._fd is not None and os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                return self._opened
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # it was removed, perhaps from another machine
                raise
        self.close()
        if make:
            with suppress(FileExistsError):
                os.mkdir(self.path)
        elif not os.path.lexists(self.path):
            if self.sets:
                self.sets = frozenset()
                self._opened += 1
            return self._opened
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _clear(fd, alone=_lock(fd))
            noted = {_LIST: _status(fd, _LIST)}
            self.sets = _listed_sets(_content(fd, _LIST))
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._noted = fd, noted
        self._opened += 1
        return self._opened

    def close(self) -> None:
        """Let go of the directory."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def claim(self, names: Iterable[str]) -> None:
        """List these sets as such whose files are made here, but those whose files others have made.

        Raises:
          OSError: the list can't be written.
        """
        if new := [name for name in names if name not in self.sets and self._status_of(file_name(name)) is None]:
            self._list(self.sets.union(new))

    def _list(self, sets: frozenset[str]) -> None:
        assert self._fd is not None
        self._replace(_LIST, json.dumps({"version": 1, "sets": sorted(sets)}).encode())
        os.fsync(self._fd)  # before anything that is in the list
        self.sets = sets

    def mend_list(self) -> bool:
        """Write the list again if somebody else has changed it, and return whether that was so.

        Raises:
          OSError: it can't be written.
        """
        if self._fd is None or self._status_of(_LIST) == self._noted[_LIST]:
            return False
        self._list(self.sets)
        return True

    def changed(self, names: Iterable[str]) -> list[str]:
        """Return those of these sets whose files are not as they were when they were written.

        Raises:
          OSError: it can't be found out.
        """
        files = [(name, file_name(name)) for name in names]
        return [name for name, file in files if file in self._noted and self._status_of(file) != self._noted[file]]

    def write(self, set_name: str, snapshot: Snapshot) -> _Written:
        """Have the file of a set say what a snapshot says; nothing, if the set is not there.

        Raises:
          OSError: it can't be written, or was not made here.
        """
        assert self._fd is not None
        if set_name not in self.sets:
            raise FileExistsError(errno.EEXIST, "somebody else has made it")
        encoded, file = encode_groups(snapshot.get(set_name, ())), file_name(set_name)
        status = self._status_of(file)
        changed = file in self._noted and self._noted[file] != status
        if _content(self._fd, file, len(encoded.content)) == encoded.content:
            self._noted[file] = status
            return _Written(False, False, encoded.left_out)
        self._replace(file, encoded.content)
        return _Written(True, changed, encoded.left_out)

    def remove(self, names: Collection[str]) -> None:
        """Remove the files of these sets, but for those that somebody has written something into.

        Raises:
          OSError: they can't be removed.
        """
        assert self._fd is not None
        for file in map(file_name, names):
            with suppress(FileExistsError):  # somebody has put something there
                if _content(self._fd, file, len(_EMPTY)) == _EMPTY:
                    os.unlink(file, dir_fd=self._fd)
            self._noted.pop(file, None)
        self._list(self.sets.difference(names))

    def _status_of(self, file: str) -> _Status | None:
        assert self._fd is not None
        return _status(self._fd, file)

    def _replace(self, file: str, content: bytes) -> None:
        """Write a file, so that at any time it has the old content or the new, and note how it is then."""
        fd, name = self._fd, self._new

        def make(path: str, flags: int) -> int:
            return os.open(path, flags, 0o666, dir_fd=fd)  # others are to read it, if the umask allows

        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)  # of a write whose clean-up failed, too
        try:
            with open(name, "xb", opener=make) as new:
                new.write(content)
                new.flush()
                os.fsync(new.fileno())
                status = _Status.of(os.fstat(new.fileno()))
            os.replace(name, file, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError:
            with suppress(OSError):
                os.unlink(name, dir_fd=fd)
            raise
        self._noted[file] = status


def _lock(fd: int) -> bool:
    """Lock a directory until it is closed, and return whether nobody else can write there now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EWOULDBLOCK, "somebody else writes target files there") from None
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP):  # NFS does not lock directories
            raise
        return False
    return True


def _clear(fd: int, alone: bool) -> None:
    """Remove from a directory what processes that were killed have not made whole.

    Args:
      fd: the directory.
      alone: whether nobody else writes there. If not, what is new is left to those who may be at work on it.
    """
    with os.scandir(fd) as entries:
        left = [entry.name for entry in entries if _NEW.fullmatch(entry.name)]
    for name in left:
        with suppress(OSError):  # it is gone, or a directory
            if alone or os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime < time.time() - _ABANDONED:
                os.unlink(name, dir_fd=fd)


def _status(fd: int, file: str) -> _Status | None:
    """Return how a file in a directory is, or ``None`` if there is none."""
    try:
        return _Status.of(os.stat(file, dir_fd=fd, follow_symlinks=False))
    except FileNotFoundError:
        return None


def _content(fd: int, file: str, size: int | None = None) -> bytes | None:
    """Return what a file in a directory says; ``None`` if there is none, or it has another size.

    Raises:
      OSError: it can't be read, or is no regular file.
    """

    def open_it(path: str, flags: int) -> int:  # no pipe that takes its place meanwhile is waited for, no link followed
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)

    try:
        status = os.stat(file, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):  # somebody has put it there
            raise FileExistsError(errno.EEXIST, "it is not a regular file")
        if size is not None and status.st_size != size:
            return None
        with open(file, "rb", opener=open_it) as opened:
            return opened.read()
    except FileNotFoundError:
        return None


def _listed_sets(content: bytes | None) -> frozenset[str]:
    """Return the sets that a list names.

    Raises:
      OSError: it is damaged, or of a later version.
    """
    if content is None:
        return frozenset()
    try:
        document = json.loads(content)
        if document["version"] == 1 and all(isinstance(name, str) for name in document["sets"]):
            return frozenset(document["sets"])
    except (ValueError, LookupError, TypeError):
        pass
    message = f"its list {_LIST} can't be used: remove it, and the files that were made here"
    raise OSError(errno.EINVAL, message)
