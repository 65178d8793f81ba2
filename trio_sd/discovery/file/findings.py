"""What a look at the file system found, and what to send about it. Values and pure functions only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ...targets import TargetGroup

__all__ = ["File", "Findings", "GlobInterest", "Interest", "all_groups", "changes", "restore"]


@dataclass(frozen=True, slots=True)
class File:
    """A file that a pattern matches.

    Attributes:
      groups: its last good groups.
      digest: of the content that was decoded last, good or bad; ``None`` if it has not been read in this run.
      error: why the newest content is not shown; ``None`` if it is.
      modified: when the newest content was modified, in whole seconds; ``None`` if it has not been read.
    """

    groups: tuple[TargetGroup, ...] = ()
    digest: bytes | None = None
    error: str | None = None
    modified: int | None = None


class GlobInterest(NamedTuple):
    """Every name that ``name`` matches is of interest.

    ``directory`` is how the pattern spells the directory: the subject is then the file. Without it the names are
    directories, and the subject is ``subject``.
    """

    name: re.Pattern[str]
    directory: str | None
    subject: str


@dataclass(slots=True)
class Interest:
    """What a discoverer wants to know about one watched directory.

    A *subject* is what has to be looked at again when a name changes: a file's path, or a pattern, which stands for
    all its files.

    Attributes:
      names: the subjects of single names.
      globs: the names that patterns match.
    """

    names: dict[str, set[str]] = field(default_factory=dict)
    globs: set[GlobInterest] = field(default_factory=set)

    def subjects(self, name: str) -> set[str]:
        """Return the subjects that a change of ``name`` concerns."""
        found = set(self.names.get(name, ()))
        for glob in self.globs:
            if glob.name.fullmatch(name):
                found.add(glob.subject if glob.directory is None else _join(glob.directory, name))
        return found


def _join(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}" if directory != "." else name


@dataclass(slots=True)
class Findings:
    """The result of one look.

    Attributes:
      files: every matched file by its path, in the order of the patterns.
      interests: what to be told about, by watch descriptor.
      errors: what could not be looked at, apart from files, which tell their own.
      notes: what an operator should know though nothing failed.
      reads: how many files were read.
      decoded: how many of them had content that was not known yet.
      read_errors: how many files and directories could not be read or used.
    """

    files: dict[str, File] = field(default_factory=dict)
    interests: dict[int, Interest] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reads: int = 0
    decoded: int = 0
    read_errors: int = 0

    def all_errors(self) -> tuple[str, ...]:
        """Return everything that fails at present."""
        return (*self.errors, *(file.error for file in self.files.values() if file.error is not None))

    def is_news(self) -> bool:
        """Return whether these findings are fit for a first full set.

        They are not if everything failed and no earlier groups are known either: a failed read is not news.
        """
        return not self.all_errors() or any(file.groups or file.error is None for file in self.files.values())


def restore(known: Mapping[str, TargetGroup]) -> dict[str, File]:
    """Return the files that the groups of an earlier run came from, told by their sources ``path:index``."""
    indexed: dict[str, dict[int, TargetGroup]] = {}
    for source, group in known.items():
        path, colon, index = source.rpartition(":")
        if colon and index.isascii() and index.isdigit():
            indexed.setdefault(path, {})[int(index)] = group
    return {path: File(tuple(groups[i] for i in sorted(groups))) for path, groups in indexed.items()}


def all_groups(files: Mapping[str, File]) -> list[TargetGroup]:
    """Return the full set."""
    return [group for file in files.values() for group in file.groups]


def changes(before: Mapping[str, File], after: Mapping[str, File]) -> list[TargetGroup]:
    """Return the groups to send so that who was told ``before`` knows ``after``.

    Groups that differ come whole; groups that are gone come empty. A group that stayed as it was is the same object
    in both: whoever reads a file sees to that, so that nothing is compared twice.
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
    earlier = {group.source: group for group in before}
    for group in after:
        if earlier.pop(group.source, None) is not group:
            yield group
    for source in earlier:
        yield TargetGroup(source, ())
