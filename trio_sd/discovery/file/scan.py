"""One look at the file system: arm the watches, find the files, read what may have changed.

Everything here is synchronous and may hang for as long as the file system does; it runs in a worker thread.

Arm, then look. Whatever is looked at is watched *before*: for each component of a path, from the root down, the
directory that holds it is watched before the component is examined, symbolic links are followed one by one in the
same way, and a directory is watched before it is listed. A change is then either seen by the look or told by a watch
that the look has set, so no second look is needed to be sure. Rejected: watching the directories that the patterns
spell, as fsnotify users do; a symbolic link on the way that is pointed elsewhere, or a directory that is made later,
goes unseen.

Every look walks all the patterns, which costs a few system calls each, but reads only the files that may have
changed: one way to look, whatever happened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from ...errors import ConfigError
from ...limits import Limits
from ...targets import TargetGroup
from .findings import File, Findings, GlobInterest, Interest
from .parse import parse
from .patterns import Pattern, clean

__all__ = ["Request", "scan"]

_MAX_LINKS = 40  # the kernel's own limit
_GONE = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Request:
    """What to look at.

    Attributes:
      patterns: the paths and patterns of the configuration.
      before: the files that the look before this one found.
      dirty: the subjects that may have changed, or ``None`` for all; see :class:`~.findings.Interest`.
      watch: watches a directory and returns its watch descriptor; ``None`` if nothing can be watched.
      limits: bounds on what is read.
      stopped: tells that nobody waits for the findings any more.
      parse: makes groups of a file's content.
    """

    patterns: Sequence[str]
    before: Mapping[str, File]
    dirty: Set[str] | None
    watch: Callable[[str], int] | None
    limits: Limits = field(default_factory=Limits)
    stopped: Callable[[], bool] = lambda: False
    parse: Callable[[bytes, str, Limits], tuple[TargetGroup, ...]] = parse


def scan(request: Request) -> Findings:
    """Look, and return what was found. What fails is part of the findings; nothing is raised."""
    look = _Look(request)
    for text in request.patterns:
        try:
            look.at(Pattern(text))
        except ValueError as error:
            look.findings.errors.append(f"{text}: {error}")
    return look.findings


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class _Look:
    """The state of one look."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._armed: dict[str, int | None] = {}
        self.findings = Findings()

    def at(self, pattern: Pattern) -> None:
        """Find the files of one pattern, and read those that need it."""
        errors = len(self.findings.errors)
        found = self._matches(pattern)
        for path, directory, name in found:
            if self._request.stopped():
                return
            if path not in self.findings.files:
                file = self._file(pattern, path, directory, name)
                if file is not None:
                    self.findings.files[path] = file
        if len(self.findings.errors) > errors:
            # While some of its directories can't be looked at, none of a pattern's files is taken for gone.
            for path, file in self._request.before.items():
                if pattern.matches(path):
                    self.findings.files.setdefault(path, file)
        elif not found:
            self.findings.notes.append(f"{pattern.text}: no file matches")

    # Finding: from patterns to directories and names.

    def _matches(self, pattern: Pattern) -> list[tuple[str, str, str]]:
        """Return the matches as (path as spelled, directory without symbolic links, name)."""
        matches: list[tuple[str, str, str]] = []
        for directory in self._directories(pattern, pattern.text):
            try:
                physical = self._resolve(directory, pattern.text)
                names = self._names(pattern, directory, physical)
            except OSError as error:
                self._failed(directory, error)
            else:
                matches += [(pattern.path(directory, name), physical, name) for name in names]
        return matches

    def _failed(self, directory: str, error: OSError) -> None:
        if error.errno not in _GONE:
            self.findings.read_errors += 1
            self.findings.errors.append(f"{directory}: {_reason(error)}")

    def _directories(self, pattern: Pattern, subject: str) -> list[str]:
        """Return the directories that a pattern's directory stands for, as spelled."""
        parent = pattern.parent
        if parent is None:
            return [pattern.directory]
        found = []
        for directory in self._directories(parent, subject):
            try:
                physical = self._resolve(directory, subject)
                names = self._names(parent, None, physical, subject)
            except OSError as error:
                self._failed(directory, error)
            else:
                found += [parent.path(directory, name) for name in names]
        return found

    def _names(self, pattern: Pattern, directory: str | None, physical: str, subject: str = "") -> list[str]:
        """Return the names in ``physical`` that the pattern's last element matches, sorted.

        ``directory`` is given when the names are files: they are then subjects of their own.
        """
        interest = self._arm(physical)
        if pattern.name is None:
            path = subject if directory is None else pattern.path(directory, pattern.last)
            interest.names.setdefault(pattern.last, set()).add(path)
            os.lstat(f"{physical}/{pattern.last}")
            return [pattern.last]
        spelled = None if directory is None else clean(directory)
        interest.globs.add(GlobInterest(pattern.name, spelled, subject))
        return sorted(name for name in os.listdir(physical) if pattern.name.fullmatch(name))

    def _resolve(self, path: str, subject: str) -> str:
        """Return the path without symbolic links, each step of the way armed before it is taken.

        Raises:
          OSError: it does not exist, can't be reached, or its links lead in a circle.
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
            self._arm(physical).names.setdefault(name, set()).add(subject)
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

    def _arm(self, physical: str) -> Interest:
        """Watch a directory, and return what is of interest there.

        A directory that can't be watched is noted; what changes in it is found by the next look at everything.
        """
        physical = physical or "/"
        if physical not in self._armed:
            self._armed[physical] = self._watch(physical)
        descriptor = self._armed[physical]
        if descriptor is None:
            return Interest()
        return self.findings.interests.setdefault(descriptor, Interest())

    def _watch(self, physical: str) -> int | None:
        if self._request.watch is None:
            return None
        try:
            return self._request.watch(physical)
        except OSError as error:
            if error.errno not in _GONE:
                # ENOSPC is what the kernel says when the watches are used up; "no space left on device" misleads.
                full = "the limit fs.inotify.max_user_watches is reached" if error.errno == errno.ENOSPC else ""
                self.findings.notes.append(f"{physical}: can't be watched for changes: {full or _reason(error)}")
            return None

    # Reading.

    def _file(self, pattern: Pattern, path: str, directory: str, name: str) -> File | None:
        """Return what a matched file has now; ``None`` if it went away just now."""
        before = self._request.before.get(path)
        dirty = self._request.dirty
        link = False
        try:
            path.encode()
            physical = f"{directory.rstrip('/')}/{name}"
            link = stat.S_ISLNK(os.lstat(physical).st_mode)
            if link:
                physical = self._resolve(physical, path)
            if before and before.digest and dirty is not None and not {path, pattern.text} & dirty:
                return before
            self.findings.reads += 1
            content, modified = _read(physical, self._request.limits.file_bytes)
        except UnicodeEncodeError:
            return self._bad(before, f"{path!r}: the name is not UTF-8")
        except OSError as error:
            if error.errno == errno.ENOENT and not link:
                return None
            return self._bad(before, f"{path}: {_reason(error)}")
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if before and before.digest == digest:
            self.findings.read_errors += before.error is not None
            return File(before.groups, digest, before.error, modified)
        self.findings.decoded += 1
        try:
            groups = self._request.parse(content, path, self._request.limits)
        except ConfigError as error:
            return self._bad(before, str(error), digest, modified)
        return File(_keep(before.groups, groups) if before else groups, digest, None, modified)

    def _bad(self, before: File | None, error: str, digest: bytes | None = None, modified: int | None = None) -> File:
        self.findings.read_errors += 1
        return File(before.groups if before else (), digest, error, modified)


def _keep(before: tuple[TargetGroup, ...], after: tuple[TargetGroup, ...]) -> tuple[TargetGroup, ...]:
    """Return ``after`` with the objects of ``before`` where they are equal: others hold those already."""
    earlier = {group.source: group for group in before}
    kept = tuple([old if (old := earlier.get(new.source)) == new else new for new in after])
    return before if before == kept else kept


def _read(path: str, limit: int) -> tuple[bytes, int]:
    """Return the content of a regular file, at most one byte more than ``limit``, and its modification time.

    Raises:
      OSError: it can't be read, or is not a regular file. Opening a FIFO does not wait for a writer.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"not a regular file but {_type(status.st_mode)}")
        return file.read(limit + 1), int(status.st_mtime)


def _type(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a character device"}
    return kinds.get(stat.S_IFMT(mode), "a special file")
