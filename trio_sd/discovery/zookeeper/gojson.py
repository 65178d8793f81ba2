"""JSON as Go's ``encoding/json`` decodes it into structs, where that shows.

Anybody writes members, and what Prometheus makes of the odd ones is what its users rely on. The syntax is read by the
standard library's scanner, which agrees with Go's but for NaN and Infinity, refused here. What Go does beyond syntax:

- **Text.** Each byte that is not part of a UTF-8 character becomes one U+FFFD, also each of a character that is cut
  short; so does an escaped half of a surrogate pair. A byte order mark is refused.
- **Field names** are matched without regard to case, by simple folding: besides the ASCII letters, U+017F is an s and
  U+212A a k. A name that no field has is ignored, whatever its value.
- **Repetition.** Every value is decoded into what is there already. A later string or number replaces; the fields of
  a later object go into the same struct; the entries of a later object go into the same map, where one of a key that
  is there starts anew.
- **null** leaves strings, numbers and structs as they are; it clears a map. Missing fields are empty or zero.
- **Types** are never converted. A wrong one refuses the whole, even where a later value replaces it. An integer is
  written as one, neither ``80.0`` nor ``3e3``, and has 64 bits; in an ignored field it may have any number of digits.

So a decoder here is a function of a JSON value and of what was there *before*, to what is there after; and objects
are tuples of pairs, which keep order and repetition.

Different from Go: nesting is refused where Python's recursion ends, some hundreds of levels deep, not after 10,000.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Final, NoReturn

from ...messages import key_path

__all__ = ["GoJSONError", "Pairs", "Place", "decode", "fold", "integer", "pairs", "string"]

Pairs = tuple[tuple[str, object], ...]
"""A JSON object: its keys and values in order, repeated ones too. Arrays are lists, so every tuple is an object."""

Place = tuple[str, ...]
"""The keys on the way from the top of the document to a value, for messages."""

_SPACE: Final = " \t\n\r"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ESCAPE: Final = re.compile(
    r"""
    (?P<kept> \\[^u] | \\u d[89ab][0-9a-f]{2} \\u d[c-f][0-9a-f]{2} )  # of one character, or a surrogate pair
    | \\u d[89a-f][0-9a-f]{2}  # half of a pair
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE | re.ASCII,
)
_INT64_MIN: Final = -(1 << 63)
_INT64_MAX: Final = (1 << 63) - 1
_INT64_CHARACTERS: Final = len(str(_INT64_MIN))
_QUOTED: Final = 40  # characters of a key that a message quotes


class GoJSONError(ValueError):
    """Go would refuse the data. The message says what was found, what was expected, and where in the data."""


def decode(data: bytes) -> object:
    """Return the document: objects as :data:`Pairs`, arrays as lists, numbers as ``int`` or ``float``.

    Of an integer that is longer than 64 bits allow, some digits may be missing.

    Raises:
      GoJSONError: it is not JSON, or nested too deep.
    """
    text = _text(data)
    start = len(text) - len(text.lstrip(_SPACE))
    decoder = _DECODER if len(text) < _CHECKED_DIGITS else _LONG_DECODER
    try:
        document, end = decoder.raw_decode(text, start)
        if text[end:].strip(_SPACE):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        raise GoJSONError(f"not JSON: {_reason(error)}") from None
    except RecursionError:
        raise GoJSONError("nested too deep") from None
    return document


def fold(name: str) -> str:
    """Return the spelling in lower case that all spellings of a field's name share.

    Only ASCII names may be compared with the result. ``str.lower`` maps U+212A to them, and nothing else that Go's
    simple folding doesn't; ``str.upper`` and ``str.casefold`` would also take ligatures apart.
    """
    return name.replace("\u017f", "s").lower()


def string(value: object, before: str, place: Place, key: str) -> str:
    """Return what is in a string after ``value`` was decoded into it; ``key`` at ``place`` is where it stands."""
    if type(value) is str:
        return value
    if value is None:
        return before
    raise _wrong_type(value, "a string", (*place, key))


def integer(value: object, before: int, place: Place, key: str) -> int:
    """Return what is in an integer after ``value`` was decoded into it; ``key`` at ``place`` is where it stands."""
    if type(value) is int and _INT64_MIN <= value <= _INT64_MAX:
        return value
    if value is None:
        return before
    raise _wrong_type(value, "a whole number", (*place, key))


def pairs(value: object, place: Place) -> Pairs:
    """Return the pairs to decode into a struct or a map: those of an object, none of ``null``."""
    if type(value) is tuple:
        return value
    if value is None:
        return ()
    raise _wrong_type(value, "an object", place)


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # "surrogateescape" makes one surrogate of each bad byte, where "replace" makes one U+FFFD of several.
        text = _SURROGATE.sub("\ufffd", data.decode(errors="surrogateescape"))
    return _ESCAPE.sub(_mended, text) if "\\u" in text else text


def _mended(escape: re.Match[str]) -> str:
    return escape["kept"] or "\\ufffd"  # as long as what it replaces, so that columns stay right


def _refuse_constant(name: str) -> NoReturn:
    raise GoJSONError(f"not JSON: found {name}, which is no number there")


def _clipped_integer(digits: str) -> int:
    return int(digits[: _INT64_CHARACTERS + 1])  # one character too many is enough to be refused


_DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_refuse_constant)
_LONG_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_constant=_refuse_constant, parse_int=_clipped_integer
)
"""For texts in which a number may have more digits than Python is willing to convert; half as fast."""
_CHECKED_DIGITS: Final = sys.int_info.str_digits_check_threshold


def _reason(error: json.JSONDecodeError) -> str:
    if not error.doc.strip(_SPACE):
        return "there is no data"
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    return f"{error.msg.removesuffix(' at')} at {line}column {error.colno}"


def _wrong_type(value: object, expected: str, place: Place) -> GoJSONError:
    path = ""
    for key in place:
        path = key_path(path, key if len(key) <= _QUOTED else f"{key[:_QUOTED]}…")
    where = f"{path}: " if path else ""
    return GoJSONError(f"{where}found {_kind(value)}, expected {expected}")


def _kind(value: object) -> str:
    if type(value) is int and not _INT64_MIN <= value <= _INT64_MAX:
        return "a number of more than 64 bits"
    kinds: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number with a fraction or an exponent",
        str: "a string",
        list: "a list",
        tuple: "an object",
    }
    return kinds[type(value)]
