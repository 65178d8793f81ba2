"""Changes to bad input and good: lines, words and indentation, with what means something to the dialect."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

__all__ = ["SEEDS", "mutated"]

DATA: Final = Path(__file__).parent / "data"

SEEDS: Final = [path.read_bytes() for path in sorted((*DATA.glob("fuzz/*"), *DATA.glob("config/config/*.yml")))]
"""Configurations and target files, good ones and bad ones."""

_LINES: Final = sorted({line for seed in SEEDS for line in seed.split(b"\n") if line.strip()})
_WORDS: Final[list[bytes]] = sorted({word for seed in SEEDS for word in re.findall(rb"[\w./$()*-]+", seed)})
_PIECES: Final = [
    b"~", b"[]", b"{}", b"''", b"&a ", b"*a", b"<<: *a", b"<<: {}", b"!!binary /w==", b"!!binary AA==", b"!!str ",
    b"!<%ED%A0%80> ", b"%TAG ! x\n", b"---\n", b"...\n", b"? ", b": ", b"- ", b"|\n", b">\n", b".nan", b".inf", b"-1",
    b"1e400", b"0x", b"9" * 70, b"a" * 2000, b"[" * 101, b"\"\\0\"", b"\"\\U0001F600\"", b"\x7f", b"\xc2\x85",
    b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff", b"\r", b"\t", b"${1}", b"$", b"(?i)", b"(?P<a>", b"\\Q", b"[[:alpha:]]",
    b"{1000}", b"\\pL", b"NaN", b"1m", b"1GB", b"http://[::1]:80/%zz", b"[{\"targets\": [\"a\"]}]",
    b"\\ud800", b"null",
]  # fmt: skip
"""What means something to YAML, to JSON, to the dialect, or to regular expressions."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with one to four changes."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        change = rng.choice(_CHANGES)
        data = change(data, rng)
    return data


def _change_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    line = lines[at]
    indent = line[: len(line) - len(line.lstrip())]
    key, colon, _ = line.partition(b":")
    other = rng.choice(_LINES)
    lines[at : at + 1] = rng.choice(
        [
            [],
            [line, line],
            [b" " + line],
            [line[2:]],
            [line, indent + other.lstrip()],
            [indent + other.lstrip(b" -")],
            [line, b"  " + indent + other.lstrip()],
            [key + colon + b" " + rng.choice(_PIECES)],
            [key + colon + b" " + rng.choice(_WORDS)],
            [key + b": &a" + line[len(key) + 1 :]],
            [indent + b"- " + line.lstrip()],
        ]
    )
    return b"\n".join(lines)


def _change_word(data: bytes, rng: random.Random) -> bytes:
    words = list(re.finditer(rb"[\w./$()*-]+", data))
    other = rng.choice(_WORDS if rng.random() < 0.5 else _PIECES)
    start, end = rng.choice(words).span() if words else (0, 0)
    return data[:start] + other + data[end:]


def _insert_piece(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_PIECES) + data[at:]


def _move_lines(data: bytes, rng: random.Random) -> bytes:
    """Take lines of another seed in, or copy some of this one to another place."""
    lines = data.split(b"\n")
    source = rng.choice([lines, rng.choice(SEEDS).split(b"\n")])
    start = rng.randrange(len(source))
    at = rng.randrange(len(lines) + 1)
    shift = b" " * rng.choice([0, 0, 0, 2, 4])
    lines[at:at] = [shift + line for line in source[start : start + rng.randrange(1, 12)]]
    return b"\n".join(lines)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


_CHANGES: Final[Sequence[Callable[[bytes, random.Random], bytes]]] = (
    *[_change_line] * 3,
    *[_change_word] * 2,
    _insert_piece,
    _move_lines,
    _cut,
)
