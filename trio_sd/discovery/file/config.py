"""What the configuration says about file discovery."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

from ...discoverer import DiscovererConfig, DiscovererOptions
from ...durations import Duration
from ...errors import FieldError
from ...messages import quote
from .discoverer import FileDiscoverer
from .patterns import Pattern, clean

__all__ = ["FileSDConfig"]

_REFRESH_INTERVAL: Final = Duration.of("5m")
_FILE_NAME: Final = re.compile(r"[^*]*(\*[^/]*)?\.(json|yml|yaml|JSON|YML|YAML)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FileSDConfig(DiscovererConfig):
    """One item of ``file_sd_configs``.

    Attributes:
      files: paths of target files; the last element of each may be a pattern, as of Go's ``filepath.Glob``.
      refresh_interval: how often everything is read again, whatever the file events say.
    """

    mechanism: ClassVar[str] = "file"

    files: tuple[str, ...] = ()
    refresh_interval: Duration = _REFRESH_INTERVAL

    def validate(self) -> None:
        """Check the paths and the interval.

        Raises:
          FieldError: there is no path, a path does not end like a target file, or the interval is zero.
        """
        if not self.files:
            raise FieldError("files", "file service discovery config must contain at least one path name")
        for index, name in enumerate(self.files):
            if not _FILE_NAME.fullmatch(name):
                raise FieldError(
                    ("files", index),
                    f"path name {quote(name)} is not valid for file discovery; expected a name that ends in .json, "
                    ".yml or .yaml, with a * in its last element at most",
                )
            try:
                Pattern(name)
            except ValueError as error:  # it would match nothing, ever
                raise FieldError(("files", index), str(error)) from None
        if not self.refresh_interval.seconds > 0:
            raise FieldError("refresh_interval", "the refresh interval must be greater than zero")

    def with_directory(self, directory: str) -> Self:
        """Return this configuration with relative paths taken from ``directory``."""
        return replace(self, files=tuple(_join(directory, name) for name in self.files))

    def discoverer(self, options: DiscovererOptions) -> FileDiscoverer:
        """Return a new discoverer of these files. Opens nothing."""
        return FileDiscoverer(self.files, self.refresh_interval.seconds, options)


def _join(directory: str, name: str) -> str:
    if not name or name.startswith("/"):
        return name
    return clean(f"{directory}/{name}" if directory else name)
