"""Texts that are never shown."""

from __future__ import annotations

from typing import Final, Self

from .errors import TrioSDError
from .messages import quote

__all__ = ["Secret", "SecretError"]


class SecretError(TrioSDError, ValueError):
    """A secret can't be read from its file. Names the file, and shows nothing of it."""


class Secret:
    """A text that no log, message or ``repr`` shows: all of them read ``<secret>``, as in Prometheus.

    Immutable and hashable, and equal to a secret of the same text. True if the text is not empty. On purpose no
    dataclass, whose fields ``dataclasses.asdict`` and pretty printers would look into.

    Args:
      text: what is kept.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text: Final = text

    @classmethod
    def read(cls, file: str) -> Self:
        """Return the secret that ``file`` holds now, without the white space around it, as Prometheus reads it.

        Blocks: call it in a thread.

        Raises:
          SecretError: the file can't be read, is empty, or is not UTF-8.
        """
        try:
            with open(file, encoding="utf-8") as opened:
                text = opened.read().strip()
        except OSError as error:
            raise SecretError(f"can't read {quote(file)}: {error.strerror}") from None
        except UnicodeDecodeError:  # which shows the bytes
            raise SecretError(f"can't read {quote(file)}: it is not UTF-8") from None
        except ValueError as error:  # a path with a NUL in it
            raise SecretError(f"can't read {quote(file)}: {error}") from None
        if not text:
            raise SecretError(f"{quote(file)} is empty, expected a secret in it")
        return cls(text)

    def reveal(self) -> str:
        """Return the text, to hand it to what needs it and to nothing else."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "<secret>"
