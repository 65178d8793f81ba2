"""What a scan of the file system found, and which groups to send because of it. Values and pure functions only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ...target_lists import Outline
from ...targets import TargetGroup
from .patterns import clean

__all__ = ["File", "ScanResult", "WatchedNames", "all_groups", "changes", "restore"]


@dataclass(frozen=True, slots=True)
class File:
    """A file that a pattern matches.

    Attributes:
      groups: its last good groups.
      digest: of the content that was parsed last, good or bad; ``None`` if this run has not read the file yet.
      error: why the groups of the newest content are not shown; ``None`` if they are.
      outline: where they are in that content, if they are many.
    """

    groups: tuple[TargetGroup, ...] = ()
    digest: str | None = None
    error: str | None = None
    outline: Outline | None = None


@dataclass(slots=True)
class WatchedNames:
    """The names in one watched directory that matter to a discoverer.

    For a change of a name, the discoverer is told what to read again: the path of one file, or the text of one of its
    patterns, which stands for all files of that pattern.

    Attributes:
      names: for a single name, the paths and patterns to read again.
      files: pairs of a regular expression and a directory. The names that match are files in that directory; the path
        of the file is to be read again.
      directories: pairs of a regular expression and a pattern. The names that match are directories on the way of that
        pattern; the pattern is to be read again.
    """

    names: dict[str, set[str]] = field(default_factory=dict)
    files: set[tuple[re.Pattern[str], str]] = field(default_factory=set)
    directories: set[tuple[re.Pattern[str], str]] = field(default_factory=set)

    def add(self, name: str, path_or_pattern: str) -> None:
        """Read ``path_or_pattern`` again when ``name`` changes."""
        self.names.setdefault(name, set()).add(path_or_pattern)

    def paths_and_patterns(self, name: str) -> set[str]:
        """Return what to read again after a change of ``name``."""
        found = set(self.names.get(name, ()))
        found.update(clean(f"{directory}/{name}") for names, directory in self.files if names.fullmatch(name))
        found.update(pattern for names, pattern in self.directories if names.fullmatch(name))
        return found


@dataclass(slots=True)
class ScanResult:
    """What one scan found.

    Attributes:
      files: every file that a pattern matches, by its path, in the order of the patterns.
      watched: the names that matter, by the watch descriptor of their directory.
      errors: what could not be scanned, apart from files; :class:`File` holds the error of each file.
      notes: what an operator should know though nothing failed.
      reads: how many files were read.
      decoded: how many of them had new content.
      read_errors: how many files and directories could not be read or used.
      may_pass: whether something failed that may pass without an event: file descriptors used up, an I/O error.
    """

    files: dict[str, File] = field(default_factory=dict)
    watched: dict[int, WatchedNames] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reads: int = 0
    decoded: int = 0
    read_errors: int = 0
    may_pass: bool = False

    def all_errors(self) -> tuple[str, ...]:
        """Return everything that fails at present."""
        return (*self.errors, *(file.error for file in self.files.values() if file.error is not None))

    def can_be_sent_first(self) -> bool:
        """Return whether this result may be the first full set of groups that is sent.

        It may not if everything failed and no groups of an earlier run are known: that would say "no targets" when
        nobody knows whether there are any.
        """
        return not self.all_errors() or any(file.groups or file.error is None for file in self.files.values())


def restore(known: Mapping[str, TargetGroup]) -> dict[str, File]:
    """Return the files from which the groups of an earlier run came. The source of each group is ``path:index``."""
    indexed: dict[str, dict[int, TargetGroup]] = {}
    for source, group in known.items():
        path, colon, index = source.rpartition(":")
        if colon and index.isascii() and index.isdigit():
            indexed.setdefault(path, {})[int(index)] = group
    return {path: File(tuple(groups[i] for i in sorted(groups))) for path, groups in indexed.items()}


def all_groups(files: Mapping[str, File]) -> list[TargetGroup]:
    """Return the groups of all files."""
    return [group for file in files.values() for group in file.groups]


def changes(before: Mapping[str, File], after: Mapping[str, File]) -> list[TargetGroup]:
    """Return the groups that differ between two scans.

    A group that is new or changed is sent whole; a group that is gone is sent without targets. An unchanged group is
    the same object in both, because :mod:`.scan` keeps the old object, so groups need not be compared here again.
    """
    groups: list[TargetGroup] = []
    for path, file in after.items():
        earlier = before.get(path)
        groups.extend(_file_changes(earlier.groups if earlier else (), file.groups))
    for path, file in before.items():
        if path not in after:
            groups.extend(_file_changes(file.groups, ()))
    return groups


def _file_changes(before: tuple[TargetGroup, ...], after: tuple[TargetGroup, ...]) -> Iterator[TargetGroup]:
    if before is after:
        return
    pairs = [(old, new) for old, new in zip(before, after, strict=False) if old is not new]  # few, mostly
    earlier = {group.source: group for group in (*[old for old, _ in pairs], *before[len(after) :])}
    for group in (*[new for _, new in pairs], *after[len(before) :]):
        if earlier.pop(group.source, None) is not group:
            yield group
    for source in earlier:
        yield TargetGroup(source, ())
