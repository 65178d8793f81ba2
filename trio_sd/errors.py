"""The exceptions that trio_sd raises on purpose.

A message names what went wrong, where, what was found and what was expected. Using a closed manager raises
:class:`trio.ClosedResourceError`, as Trio's own resources do.
"""

from __future__ import annotations

from dataclasses import dataclass

from .messages import one_line

__all__ = ["ConfigError", "DiscoveryError", "FieldError", "Position", "TrioSDError", "unwrapped"]


class TrioSDError(Exception):
    """Every exception of this package's own derives from this one."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text: ``file`` as the user named it, ``line`` and ``column`` counted from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class ConfigError(TrioSDError):
    """A configuration that can't be used.

    Attributes:
      message: what is wrong: what was found, and what was expected.
      position: where, or ``None`` when there is no text to point at (the file can't be read, say).
      path: the place in the document, such as ``scrape_configs[0].file_sd_configs[1].files``; empty at its root.
    """

    def __init__(self, message: str, position: Position | None = None, path: str = "") -> None:
        super().__init__(message, position, path)
        self.message = message
        self.position = position
        self.path = path

    def __str__(self) -> str:
        where = [str(part) for part in (self.position, self.path) if part]
        return one_line(": ".join([*where, self.message]))


class FieldError(ValueError):
    """Raised where a value is checked that knows nothing of texts and places: its ``field`` can't be used.

    Args:
      field: the field's name, or the field's name and an index for one item of a sequence; ``None`` where the fields
        don't go together.
      message: what was found and what was expected.
    """

    def __init__(self, field: str | tuple[str, int] | None, message: str) -> None:
        super().__init__(field, message)
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return self.message


class DiscoveryError(TrioSDError):
    """A discoverer could not find out what it was asked for; what it found before is still shown.

    Args:
      message: what went wrong, where, what was found and what was expected.
      retry_after: seconds for which who was asked does not want to be asked again, or ``None``.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def unwrapped(errors: ExceptionGroup[Exception]) -> Exception:
    """Return the one exception that a group holds, however deep, or the group if it holds several."""
    error: Exception = errors
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
