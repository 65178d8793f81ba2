"""Texts that are safe to show on a terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return ``text`` with a replacement character for everything that would steer the terminal."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text])
