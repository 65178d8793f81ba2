"""Words that error messages share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

__all__ = ["is_utf8", "item_path", "key_path", "one_line", "printable", "quote", "unknown_key"]

_LISTED: Final = 20  # keys that a message names
_LONGEST: Final = 2_000  # characters of a message


def is_utf8(text: str) -> bool:
    """Tell whether ``text`` can be written as UTF-8; what a ``!!binary`` scalar holds may not be."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def quote(text: str) -> str:
    r"""Return ``text`` in double quotes on one line, bytes that are no UTF-8 as ``\xff``."""
    return _visible(json.dumps(text, ensure_ascii=False))


def one_line(text: str) -> str:
    """Return a whole message as one line that does a terminal no harm, without the middle if it is very long."""
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return _visible(text)


def _visible(text: str) -> str:
    """Return ``text`` with everything escaped that is no UTF-8, or that a terminal takes for an order."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    # 0xdc80 to 0xdcff is how the error handler "surrogateescape" keeps a byte.
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}"


def unknown_key(key: str, known: Iterable[str], section: str) -> str:
    """Return the message for a key that ``section`` doesn't have: the known one that it looks like, or all of them."""
    expected = sorted(known)
    alike = get_close_matches(key, expected, n=1)
    listed = ", ".join(expected[:_LISTED]) + (f" and {len(expected) - _LISTED} more" if len(expected) > _LISTED else "")
    hint = f"did you mean {alike[0]}?" if alike else f"expected one of: {listed}"
    return f"field {printable(key)} not found in {section}; {hint}"


def printable(key: str) -> str:
    """Return ``key`` as it is where that is readable, else in quotes."""
    return key if key and key.isprintable() and " " not in key else quote(key)


def key_path(path: str, key: str) -> str:
    """Return the document path of ``key`` in the mapping at ``path``."""
    return f"{path}.{printable(key)}" if path else printable(key)


def item_path(path: str, index: int) -> str:
    """Return the document path of one item of the list at ``path``."""
    return f"{path}[{index}]"
