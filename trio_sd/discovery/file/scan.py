"""One scan of the file system: find the files of the patterns, watch what leads to them, read what may have changed.

Theory of operation
===================

Everything here is synchronous and may hang for as long as the file system does, so it runs in a worker thread.

Watch first, then read. A scan goes through each path from the root down. It watches a directory before it examines a
name in it or lists it, and it follows symbolic links one by one in the same way. So a change either happens before the
scan reads, and the scan sees it; or it happens later, and causes an event on a watch that is set already. Rejected:
watching only the directories that the patterns name, as users of fsnotify do. That misses a symbolic link on the way
that is pointed elsewhere, and a directory that is made later.

Every scan goes through all patterns, which costs a few system calls each, but it reads only the files that may have
changed. So there is one kind of scan, whatever caused it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from ...config import content_digest
from ...errors import ConfigError
from ...limits import Limits
from ...target_lists import Parsed
from ...targets import TargetGroup
from .parse import Parse, parse_again
from .patterns import Pattern
from .result import File, ScanResult, WatchedNames

__all__ = ["ScanRequest", "scan"]

_MAX_LINKS = 40  # the kernel's own limit
_GONE = (errno.ENOENT, errno.ENOTDIR)
_MAY_PASS = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EAGAIN, errno.ETIMEDOUT)


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What to scan.

    Attributes:
      patterns: the paths and patterns of the configuration.
      before: the files that the previous scan found.
      changed: the paths and patterns to read again; ``None`` means all. See :class:`~.result.WatchedNames`.
      watch: watches a directory and returns its watch descriptor; ``None`` if nothing can be watched.
      limits: bounds on what is read.
      stopped: returns whether nobody waits for the result any more.
      parse: makes target groups of a file's content.
    """

    patterns: Sequence[str]
    before: Mapping[str, File]
    changed: Set[str] | None
    watch: Callable[[str], int] | None
    limits: Limits = field(default_factory=Limits)
    stopped: Callable[[], bool] = lambda: False
    parse: Parse = parse_again


def scan(request: ScanRequest) -> ScanResult:
    """Scan, and return what was found. What fails is part of the result; nothing is raised."""
    running = _Scan(request)
    for text in request.patterns:
        try:
            running.add(Pattern(text))
        except ValueError as error:
            running.result.errors.append(f"{text}: {error}")
    return running.result


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class _Scan:
    """The state of one scan."""

    def __init__(self, request: ScanRequest) -> None:
        self._request = request
        self._descriptors: dict[str, int | None] = {}  # of the watches, by directory; None if it can't be watched
        self.result = ScanResult()

    def add(self, pattern: Pattern) -> None:
        """Find the files of one pattern, and read those that may have changed."""
        errors = len(self.result.errors)
        found = self._matches(pattern)
        for path, directory, name in found:
            if self._request.stopped():
                return
            if path not in self.result.files:
                file = self._file(pattern, path, directory, name)
                if file is not None:
                    self.result.files[path] = file
        if len(self.result.errors) > errors:
            # While one of its directories can't be scanned, none of the pattern's files counts as gone.
            for path, file in self._request.before.items():
                if pattern.matches(path):
                    self.result.files.setdefault(path, file)
        elif not found:
            self.result.notes.append(f"{pattern.text}: no file matches")

    # Finding: from patterns to directories and names.

    def _matches(self, pattern: Pattern, whole: Pattern | None = None) -> list[tuple[str, str, str]]:
        """Return the matches of a pattern: the path as spelled, the directory without symbolic links, and the name.

        The directory of a pattern may itself be a pattern. Its matches are found first, by this same function;
        ``whole`` is then the pattern of the configuration that it is a part of.
        """
        whole = whole or pattern
        directories = [pattern.directory]
        if pattern.parent is not None:
            directories = [path for path, *_ in self._matches(pattern.parent, whole)]
        matches = []
        for directory in directories:
            try:
                physical = self._resolve(directory, whole.text)
                names = self._names(pattern, directory, physical, whole)
            except OSError as error:
                self.result.may_pass |= error.errno in _MAY_PASS
                if error.errno not in _GONE:
                    self.result.read_errors += 1
                    self.result.errors.append(f"{directory}: {_reason(error)}")
            else:
                matches += [(pattern.path(directory, name), physical, name) for name in names]
        return matches

    def _names(self, pattern: Pattern, directory: str, physical: str, whole: Pattern) -> list[str]:
        """Return the names in a directory that the pattern's last element matches, sorted.

        The directory is given as spelled, and without symbolic links. A change of a name is reported as the file's
        path. If the names are directories, because the pattern is only a part of ``whole``, it is reported as that.
        """
        watched = self._watched(physical)
        if pattern.name is None:
            watched.add(pattern.last, pattern.path(directory, pattern.last) if pattern is whole else whole.text)
            os.lstat(f"{physical}/{pattern.last}")
            return [pattern.last]
        if pattern is whole:
            watched.files.add((pattern.name, directory))
        else:
            watched.directories.add((pattern.name, whole.text))
        return sorted(name for name in os.listdir(physical) if pattern.name.fullmatch(name))

    def _resolve(self, path: str, path_or_pattern: str) -> str:
        """Return the path without symbolic links. The directory of each step is watched before the step is examined.

        Args:
          path: what to resolve.
          path_or_pattern: what to read again when one of the steps changes.

        Raises:
          OSError: the path does not exist, can't be reached, or its links lead in a circle.
        """
        physical = ""  # the root; never ends in a slash
        ahead = (path if path.startswith("/") else f"{os.getcwd()}/{path}").split("/")[::-1]
        links = 0
        while ahead:
            name = ahead.pop()
            if name in ("", "."):
                continue
            if name == "..":
                physical = physical.rpartition("/")[0]
                continue
            self._watched(physical).add(name, path_or_pattern)
            here = f"{physical}/{name}"
            mode = os.lstat(here).st_mode
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(here)
                if target.startswith("/"):
                    physical = ""
                ahead += target.split("/")[::-1]
            elif ahead and not stat.S_ISDIR(mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            else:
                physical = here
        return physical or "/"

    def _watched(self, physical: str) -> WatchedNames:
        """Watch a directory, and return the names in it that matter, to be added to.

        If it can't be watched, the names added are lost; the next full scan finds what changed there.
        """
        physical = physical or "/"
        if physical not in self._descriptors:
            self._descriptors[physical] = self._watch(physical)
        descriptor = self._descriptors[physical]
        if descriptor is None:
            return WatchedNames()
        return self.result.watched.setdefault(descriptor, WatchedNames())

    def _watch(self, physical: str) -> int | None:
        if self._request.watch is None:
            return None
        try:
            return self._request.watch(physical)
        except OSError as error:
            if error.errno not in _GONE:
                # ENOSPC is what the kernel says when the watches are used up; "no space left on device" misleads.
                full = "the limit fs.inotify.max_user_watches is reached" if error.errno == errno.ENOSPC else ""
                self.result.notes.append(f"{physical}: can't be watched for changes: {full or _reason(error)}")
            return None

    # Reading.

    def _file(self, pattern: Pattern, path: str, directory: str, name: str) -> File | None:
        """Return a file that was found, read again if it may have changed; ``None`` if it went away meanwhile."""
        before = self._request.before.get(path)
        changed = self._request.changed
        link = False
        try:
            path.encode()
            physical = f"{directory.rstrip('/')}/{name}"
            link = stat.S_ISLNK(os.lstat(physical).st_mode)
            if link:
                physical = self._resolve(physical, path)
            if before and before.digest and changed is not None and not {path, pattern.text} & changed:
                return before
            self.result.reads += 1
            content = _read(physical, self._request.limits.file_bytes)
        except UnicodeEncodeError:
            return self._bad(before, f"{path!r}: the name is not UTF-8")
        except OSError as error:
            self.result.may_pass |= error.errno in _MAY_PASS
            if error.errno == errno.ENOENT and not link:
                return None
            return self._bad(before, f"{path}: {_reason(error)}")
        digest = content_digest(content)
        if before and before.digest == digest:
            self.result.read_errors += before.error is not None
            return before
        self.result.decoded += 1
        try:
            # What was only kept while the file could not be read is sent anew, though equal: now it is known again.
            known = before if before is not None and before.digest is not None and before.error is None else None
            earlier = None if known is None else Parsed(known.groups, known.outline)
            parsed = self._request.parse(content, path, self._request.limits, earlier)
        except ConfigError as error:
            return self._bad(before, str(error), digest)
        groups = parsed.groups if known is None else _keep(known.groups, parsed.groups)
        return File(groups, digest, outline=parsed.outline)

    def _bad(self, before: File | None, error: str, digest: str | None = None) -> File:
        self.result.read_errors += 1
        return File(before.groups if before else (), digest, error)


def _keep(before: tuple[TargetGroup, ...], after: tuple[TargetGroup, ...]) -> tuple[TargetGroup, ...]:
    """Return ``after``, with the old object for each group that is unchanged: the store holds that object already.

    Equal groups are at equal places, because their places are in their sources.
    """
    same_places = [old if old is new or old == new else new for old, new in zip(before, after, strict=False)]
    kept = (*same_places, *after[len(same_places) :])
    return before if before == kept else kept


def _read(path: str, limit: int) -> bytes:
    """Return the content of a regular file, at most one byte more than ``limit``.

    Raises:
      OSError: it can't be read, or is not a regular file. Opening a FIFO does not wait for a writer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"not a regular file but {_type(mode)}")
        return file.read(limit + 1)


def _type(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a character device"}
    return kinds.get(stat.S_IFMT(mode), "a special file")
