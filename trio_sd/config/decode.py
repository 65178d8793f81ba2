"""From nodes to frozen dataclasses, by their field types.

The type of a field says what is accepted; what a type can't say is the business of the object's own ``validate()``.
Every error carries the place in the text and the path in the document.

======================================  ==============================================================================
field type                              accepts
======================================  ==============================================================================
``str``                                 a scalar, of which the raw text is kept: ``010`` and ``no`` stay what they are
``Secret``                              a scalar likewise; no error shows what it is
``bool``, ``int``, ``float``            a scalar without quotes that YAML 1.1 takes for one
``Duration``                            a duration such as ``1m30s``
``Literal[...]`` of strings, an Enum    one of the texts, or of the Enum's values
``T | None``                            null, or what T accepts
``tuple[T, ...]``                       a list
``Mapping[str, str]``, ``Labels``       a mapping, kept as :class:`~trio_sd.targets.Labels`
``Mapping[str, T]``                     a mapping, kept as :class:`~trio_sd.config.FrozenMapping`
a dataclass                             a mapping whose keys are its fields
a class with ``decode(node, path)``     what that classmethod makes of the node
``Claims``                              a mapping of anything, as YAML 1.1 takes it
``Ignored``                             anything; known, and passed over
======================================  ==============================================================================

Null stands for the field's default. Where a field has none, or its metadata say ``"null": "empty"``, it stands for
the empty value of the field's type, as in Go.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from typing import Any, Final, Literal, TypeAlias, TypeVar, Union, cast

from ..durations import Duration
from ..errors import ConfigError, FieldError
from ..http_config import Claims
from ..messages import is_utf8, item_path, key_path, printable, quote, unknown_key
from ..secrets import Secret
from ..targets import Labels
from .frozen import FrozenMapping
from .nodes import MappingNode, Node, Scalar, SequenceNode, describe, is_null

__all__ = ["IGNORED", "Ignored", "decode"]

T = TypeVar("T")
_Class: TypeAlias = type[Any]  # a class of which only its fields, looked up at run time, matter
_Decoder: TypeAlias = Callable[[Node, str], Any]  # what it returns depends on the type that it was made for


@dataclass(frozen=True, slots=True)
class Ignored:
    """The type of a field that is known and passed over: whatever stands there is not looked at."""


IGNORED: Final = Ignored()
"""The one value of that type; the default of such a field."""

_TRUE: Final = frozenset({"y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"})
_FALSE: Final = frozenset({"n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"})
_INTEGER: Final = re.compile(r"[-+]?(0b[01]+|0x[0-9a-fA-F]+|0o?[0-7]+|0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TAGS_OF_STRINGS: Final = frozenset({None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:binary"})
_FLOAT_WORDS: Final = types.MappingProxyType(
    {
        **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
        **{f"{sign}{word}": float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    }
)


def decode(
    node: Node,
    cls: type[T],
    *,
    path: str = "",
    elsewhere: Collection[str] = frozenset(),
    check: Callable[[T], None] | None = None,
) -> T:
    """Return what ``node`` says, as a ``cls``.

    A key is the name of a field, or what the field's metadata gives as ``"key"``.

    Args:
      node: what the text says.
      cls: a dataclass, or any other type that a field may have.
      path: the document path of ``node``, for errors.
      elsewhere: keys of a dataclass's mapping that are known and that someone else reads.
      check: takes the place of a dataclass's own ``validate()``, where that needs to be told more.

    Raises:
      ConfigError: the text does not fit the type, or the object's ``validate()`` refuses it.
      TypeError: ``cls`` is, or has a field of, a type that can't be decoded.
    """
    if _is_record(cls):
        return cast("T", _record(cls, node, path, elsewhere, check))
    return cast("T", _decoder(cast("Hashable", cls))(node, path))


def _mismatch(node: Node, path: str, expected: str, *, secret: bool = False) -> ConfigError:
    """Return the error that ``node`` is not what is ``expected``; a text that may be ``secret`` is not shown."""
    found = "a string" if secret and type(node) is Scalar and not is_null(node) else describe(node)
    return node.error(f"found {found}, expected {expected}", path)


def _is_record(of: object) -> bool:
    return isinstance(of, type) and dataclasses.is_dataclass(of) and not (of in _SIMPLE or _decodes_itself(of))


def _decodes_itself(of: type) -> bool:
    return isinstance(inspect.getattr_static(of, "decode", None), classmethod)


@cache
def _decoder(of: Hashable) -> _Decoder:
    """Return what decodes ``of``: a type, or a form of ``typing``."""
    simple = _SIMPLE.get(of)
    if simple is not None:
        return simple
    if isinstance(of, type):
        return _class_decoder(of)
    origin, arguments = typing.get_origin(of), typing.get_args(of)
    if origin in (Union, types.UnionType):
        return partial(_optional, _decoder(_only_option(of, arguments)))
    if origin is Literal:
        return partial(_choice, {text: text for text in arguments})
    if origin is tuple and arguments[1:] == (...,):
        return partial(_list, _decoder(arguments[0]))
    if origin in (dict, Mapping) and arguments[0] is str:
        return _labels if arguments[1] is str else partial(_mapping, _decoder(arguments[1]))
    raise TypeError(f"can't decode a field of type {of}")


def _class_decoder(of: type) -> _Decoder:
    if _decodes_itself(of):
        return partial(_by_itself, of)
    if issubclass(of, Enum):
        return partial(_choice, {member.value: member for member in of})
    if dataclasses.is_dataclass(of):
        return partial(_record, of)
    raise TypeError(f"can't decode a field of type {of}")


def _only_option(of: object, arguments: tuple[object, ...]) -> object:
    options = [option for option in arguments if option is not types.NoneType]
    if len(options) != 1:
        raise TypeError(f"can't decode a field of type {of}: more than one type and None")
    return options[0]


# What a node is, by type


def _string(node: Node, path: str) -> str:
    if type(node) is not Scalar:
        raise _mismatch(node, path, "a string")
    if not is_utf8(node.text):
        raise node.error(f"{quote(node.text)} is not valid UTF-8", path)
    return "" if is_null(node) else node.text


def _secret(node: Node, path: str) -> Secret:
    if type(node) is Scalar and not is_utf8(node.text):
        raise node.error("what is found here is not valid UTF-8", path)
    return Secret(_string(node, path))


def _boolean(node: Node, path: str) -> bool:
    text = _plain_text(node)
    if text in _TRUE:
        return True
    if text in _FALSE or is_null(node):
        return False
    raise _mismatch(node, path, "true or false")


def _integer(node: Node, path: str) -> int:
    value = _number(node, path, "a whole number")
    if value != int(value):
        raise _mismatch(node, path, "a whole number")
    return int(value)


def _float(node: Node, path: str) -> float:
    text = _plain_text(node)
    return _FLOAT_WORDS[text] if text in _FLOAT_WORDS else float(_number(node, path, "a number"))


def _number(node: Node, path: str, expected: str) -> float:
    if is_null(node):
        return 0
    text = _plain_text(node).replace("_", "")
    if len(text) <= 64:  # so that neither int() nor float() can be made to work hard
        if _INTEGER.fullmatch(text) and -(2**63) <= (value := _parsed_integer(text)) < 2**64:
            return value
        if _FLOAT.fullmatch(text) and abs(float(text)) < 2**63:
            return float(text)
    raise _mismatch(node, path, expected)


def _parsed_integer(text: str) -> int:
    digits = text.lstrip("+-")
    value = int(digits, 8) if re.fullmatch("0[0-7]+", digits) else int(digits, 0)
    return -value if text.startswith("-") else value


def _plain_text(node: Node) -> str:
    """Return the text of a scalar without quotes and tag; what is no such scalar is no number and no truth either."""
    return node.text if type(node) is Scalar and node.plain and node.tag is None else ""


def _duration(node: Node, path: str) -> Duration:
    if is_null(node):
        return Duration()
    if type(node) is not Scalar:
        raise _mismatch(node, path, "a duration such as 1m30s")
    try:
        return Duration.of(node.text)
    except ValueError as error:
        raise node.error(str(error), path) from None


def _ignored(node: Node, path: str) -> Ignored:
    return IGNORED


def _optional(decoder: _Decoder, node: Node, path: str) -> object:
    return None if is_null(node) else decoder(node, path)


def _choice(choices: Mapping[str, object], node: Node, path: str) -> object:
    text = _string(node, path)
    if text not in choices:
        raise _mismatch(node, path, f"one of: {', '.join(printable(choice) for choice in choices)}")
    return choices[text]


def _list(decoder: _Decoder, node: Node, path: str) -> tuple[object, ...]:
    if is_null(node):
        return ()
    if type(node) is not SequenceNode:
        raise _mismatch(node, path, "a list", secret=decoder is _secret)
    return tuple(decoder(item, item_path(path, index)) for index, item in enumerate(node.items))


def _labels(node: Node, path: str) -> Labels:
    return Labels(_items(_string, node, path))


def _mapping(decoder: _Decoder, node: Node, path: str) -> FrozenMapping[object]:
    return FrozenMapping(_items(decoder, node, path))


def _items(decoder: _Decoder, node: Node, path: str) -> dict[str, Any]:  # as what `decoder` returns
    if is_null(node):
        return {}
    if type(node) is not MappingNode:
        raise _mapping_expected(node, path)
    return {_string(key, path): decoder(value, key_path(path, key.text)) for key, value in node.entries}


def _mapping_expected(node: Node, path: str) -> ConfigError:
    return _mismatch(node, path, "a mapping", secret=True)  # easily written where the mapping that holds it belongs


def _claims(node: Node, path: str) -> Claims:
    return Claims.of(_items(_anything, node, path))


def _anything(node: Node, path: str) -> object:
    """Return what YAML 1.1 takes ``node`` for, if JSON has it as well."""
    if isinstance(node, MappingNode):
        return _items(_anything, node, path)
    if isinstance(node, SequenceNode):
        return list(_list(_anything, node, path))
    if is_null(node):
        return None
    if node.tag not in _TAGS_OF_STRINGS:
        raise node.error(f"found the tag {quote(str(node.tag))}, expected none, or the one of a string", path)
    text = _plain_text(node)
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text in _FLOAT_WORDS or _looks_like_a_number(text):
        return _number(node, path, "a number from -2^63 to 2^64, or quotes around it")
    return _string(node, path)


def _looks_like_a_number(text: str) -> bool:
    digits = text.replace("_", "")
    return bool(_INTEGER.fullmatch(digits) or _FLOAT.fullmatch(digits))


def _by_itself(cls: _Class, node: Node, path: str) -> object:
    try:
        return cls.decode(node, path)
    except ValueError as error:
        raise node.error(str(error), path) from None


_SIMPLE: Final[Mapping[object, _Decoder]] = types.MappingProxyType(
    {
        str: _string,
        Secret: _secret,
        bool: _boolean,
        int: _integer,
        float: _float,
        Duration: _duration,
        Ignored: _ignored,
        Labels: _labels,
        Claims: _claims,
    }
)


# Records: dataclasses


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    decoder: _Decoder
    required: bool
    null_is_empty: bool
    secret: bool


def _fields(cls: _Class) -> Mapping[str, _Field]:
    return _field_table(cast("Hashable", cls))


@cache
def _field_table(cls: Hashable) -> Mapping[str, _Field]:
    """Return the fields of the dataclass ``cls`` by their keys."""
    assert dataclasses.is_dataclass(cls)  # Hashable is what `cache` accepts
    hints = typing.get_type_hints(cls)
    return {
        field.metadata.get("key", field.name): _Field(
            name=field.name,
            decoder=_decoder(hints[field.name]),
            required=_is_required(field),
            null_is_empty=_is_required(field) or field.metadata.get("null") == "empty",
            secret=_is_secret(hints[field.name]),
        )
        for field in dataclasses.fields(cls)
        if field.init
    }


def _is_secret(of: object) -> bool:
    return of is Secret or any(_is_secret(part) for part in typing.get_args(of))


def _is_required(field: dataclasses.Field[Any]) -> bool:  # Any: of whatever type the field is
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _record(
    cls: _Class,
    node: Node,
    path: str,
    elsewhere: Collection[str] = frozenset(),
    check: Callable[[Any], None] | None = None,  # Any: of the class that is decoded
) -> object:
    if type(node) is not MappingNode:
        raise _mapping_expected(node, path)
    fields = _fields(cls)
    values = {}
    for key, value in node.entries:
        field = fields.get(key.text)
        if field is None:
            if key.text not in elsewhere:
                raise _unknown_key(key, value, path, fields, elsewhere)
        elif field.null_is_empty or not is_null(value):
            values[field.name] = field.decoder(value, key_path(path, key.text))
    for name, field in fields.items():
        if field.required and field.name not in values:
            raise node.error(f"field {name} is missing", path)
    return _validated(cls, values, node, path, check)


def _unknown_key(
    key: Scalar, value: Node, path: str, fields: Mapping[str, _Field], elsewhere: Collection[str]
) -> ConfigError:
    known = {*fields, *elsewhere}
    if is_null(value) and any(field.secret for field in fields.values()):
        # `{password:hunter2}`, without a space after the colon, is one long key that has no value.
        message = "found a key without a value that is not known here, not shown because it may hold a secret"
        return key.error(f"{message}; expected one of: {', '.join(sorted(known))}", path)
    return key.error(unknown_key(key.text, known, "this section"), key_path(path, key.text))


def _validated(
    cls: _Class,
    values: Mapping[str, object],
    node: MappingNode,
    path: str,
    check: Callable[[Any], None] | None,  # Any: of the class that is decoded
) -> object:
    try:
        record = cls(**values)
        if check is not None:
            check(record)
        elif (validate := getattr(record, "validate", None)) is not None:
            validate()
    except FieldError as error:
        raise _field_error(cls, error, node, path) from None
    except ValueError as error:
        raise node.error(str(error), path) from None
    return record


def _field_error(cls: _Class, error: FieldError, node: MappingNode, path: str) -> ConfigError:
    """Return the error at the value that ``error`` names, or at the mapping where the document leaves it out."""
    if error.field is None:
        return node.error(error.message, path)
    name, index = error.field if isinstance(error.field, tuple) else (error.field, None)
    key = next((key for key, field in _fields(cls).items() if field.name == name), name)
    value = node.get(key)
    path = key_path(path, key)
    if index is not None:
        path = item_path(path, index)
        if type(value) is SequenceNode and index < len(value.items):
            value = value.items[index]
    return (value or node).error(error.message, path)
