"""Words that error messages share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["is_utf8", "item_path", "key_path", "printable", "quote", "unknown_key"]

_LISTED = 20  # keys that a message names


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
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted if is_utf8(text) else "".join(_escaped(char) for char in quoted)


def _escaped(char: str) -> str:
    # 0xdc80 to 0xdcff is how the error handler "surrogateescape" keeps a byte.
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char if is_utf8(char) else f"\\u{ord(char):04x}"


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
