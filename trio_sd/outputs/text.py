"""Texts that are safe to show on a terminal, and tables of them as plain text."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plain_table", "printable"]


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as wide as it needs to be, for what is no terminal."""
    lines = [headings, *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        ["  ".join([cell.ljust(width) for cell, width in zip(line, widths, strict=True)]).rstrip() for line in lines]
    )


def printable(text: str) -> str:
    """Return ``text`` with a replacement character for everything that would steer the terminal."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text])
