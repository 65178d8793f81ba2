"""YAML text as a light tree in which every node knows its place.

PyYAML's event stream is turned into the tree with a stack of our own, so that no depth of nesting can exhaust the
interpreter's. An alias shares the node of its anchor and is counted with everything below it: a document that grows
without bound when expanded is refused before anything is expanded. Scalars keep their raw text; what a text means
is for whoever asks for a type.

Rejected: PyYAML's loaders. They recurse (200,000 brackets end the process), take duplicate keys in silence, and turn
``no`` and ``010`` into values from which the text can't be had back.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol, TypeAlias

import yaml
from yaml import (
    AliasEvent,
    DocumentEndEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from ..errors import ConfigError, Position
from ..limits import Limits
from ..messages import printable, quote

__all__ = ["MappingNode", "Node", "Scalar", "SequenceNode", "describe", "is_null", "parse_yaml"]

_LOADER: Final[type[yaml.SafeLoader]] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml may be missing

_BINARY_TAG: Final = "tag:yaml.org,2002:binary"
_NULL_TAG: Final = "tag:yaml.org,2002:null"
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_MERGE_KEY: Final = "<<"
_MOST_TAGS: Final = 100
_TAG_DIRECTIVE: Final = re.compile("(?:^|[\n\r\x85\u2028\u2029])%TAG")
_ESCAPE: Final = re.compile(r"%[89a-fA-F]|\\U")  # of a character that is not ASCII
_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Mark(Protocol):
    """A place as the parser tells it: ``line`` and ``column`` counted from 0."""

    name: str
    line: int
    column: int


class _Placed:
    """What has a place in a text. A node keeps the parser's mark: reading it apart can wait until it is asked for."""

    __slots__ = ("mark",)
    mark: _Mark

    @property
    def position(self) -> Position:
        """Where the node begins."""
        return _position(self.mark)

    @property
    def line(self) -> int:
        """The line where the node begins, counted from 1."""
        return self.mark.line + 1

    def error(self, message: str, path: str = "") -> ConfigError:
        """Return (not raise) the error that ``message`` describes, at this node."""
        return ConfigError(message, self.position, path)


class Scalar(_Placed):
    """A scalar.

    Attributes:
      text: the raw text; of a ``!!binary`` scalar, what its base64 says.
      plain: whether it is written without quotes, so that it may be more than a string.
      tag: the explicit tag, if there is one.
    """

    __slots__ = ("plain", "tag", "text")

    def __init__(self, text: str, plain: bool, tag: str | None, mark: _Mark) -> None:
        self.text = text
        self.plain = plain
        self.tag = tag
        self.mark = mark


class SequenceNode(_Placed):
    """A list.

    Attributes:
      items: the nodes in it.
    """

    __slots__ = ("items",)

    def __init__(self, items: list[Node], mark: _Mark) -> None:
        self.items = items
        self.mark = mark


class MappingNode(_Placed):
    """A mapping; no two of its keys have the same text.

    Attributes:
      keys: in the order of the document, those of merged mappings last.
      values: one for each key.
    """

    __slots__ = ("keys", "values")

    def __init__(self, keys: list[Scalar], values: list[Node], mark: _Mark) -> None:
        self.keys = keys
        self.values = values
        self.mark = mark

    @property
    def entries(self) -> Iterator[tuple[Scalar, Node]]:
        """The keys, each with its value."""
        return zip(self.keys, self.values, strict=True)

    def get(self, key: str) -> Node | None:
        """Return the value of ``key``, or ``None`` where there is no such key."""
        return next((value for name, value in self.entries if name.text == key), None)


_Event: TypeAlias = Any  # PyYAML's stubs make each attribute of an event optional, whatever kind of event it is
Node: TypeAlias = Scalar | SequenceNode | MappingNode


def is_null(node: Node | None) -> bool:
    """Tell whether ``node`` is missing, empty, or one of the plain scalars that say null."""
    if node is None:
        return True
    if type(node) is not Scalar:
        return False
    return node.tag == _NULL_TAG or (node.plain and node.tag is None and node.text in _NULLS)


def describe(node: Node) -> str:
    """Return what to call ``node`` in a message: ``a list``, ``null``, or its text in quotes."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    if is_null(node):
        return "null"
    return quote(node.text if len(node.text) <= 80 else f"{node.text[:77]}...")


def parse_yaml(text: bytes, *, file: str, limits: Limits) -> Node | None:
    """Return the one document in ``text``, or ``None`` if it is empty.

    Args:
      text: what was read.
      file: the name of the file, for positions.
      limits: ``file_bytes``, ``depth`` and ``nodes`` apply.

    Raises:
      ConfigError: it is not UTF-8, not YAML, or not one document; a mapping has a key twice; a limit is reached.
    """
    decoded = _decode(text, file, limits)
    _check_tag_directives(decoded, file)
    try:
        return _build(_LOADER(_Source(decoded, file)).get_event, limits)
    except yaml.YAMLError as error:
        raise _translated(error, decoded, file) from None
    except (ValueError, OverflowError):  # libyaml lets escapes in tags pass that Python can't decode
        escape = _ESCAPE.search(decoded)
        position = _end_of(decoded[: escape.start()] if escape else "", file)
        raise ConfigError("found an escape of a character that does not exist", position) from None


class _Source(io.StringIO):
    """A text whose name the parser copies into its marks."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name


def _build(next_event: Callable[[], _Event], limits: Limits) -> Node | None:
    # One flat loop over local names: it runs for every node of files that have a hundred thousand of them.
    root: Node | None = None
    anchors: dict[str, tuple[Node, int, int] | None] = {}  # a node, its size, its height; None while it is open
    stack: list[tuple[_Event, list[Node], int, int]] = []  # what is open: event, siblings, count, deepest before it
    siblings: list[Node] = []  # in a mapping, keys and values take turns
    counted = deepest = 0
    node: Node
    while True:
        event = next_event()
        kind = type(event)
        if kind is ScalarEvent:
            node = Scalar(event.value, not event.style, event.tag, event.start_mark)
            if node.tag == _BINARY_TAG:
                node.text = _decode_binary(node)
            if event.anchor is not None:
                anchors[event.anchor] = node, 1, 0
            siblings.append(node)
            counted += 1
        elif kind is MappingStartEvent or kind is SequenceStartEvent:
            stack.append((event, siblings, counted, deepest))
            siblings = []
            counted += 1
            deepest = len(stack)
            if event.anchor is not None:
                anchors[event.anchor] = None
            if deepest > limits.depth:
                raise _too_deep(limits, event)
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            children = siblings
            start, siblings, before, outer = stack.pop()
            make = _mapping if kind is MappingEndEvent else SequenceNode
            node = make(children, start.start_mark)
            if start.anchor is not None:
                anchors[start.anchor] = node, counted - before, deepest - len(stack)
            siblings.append(node)
            deepest = max(deepest, outer)
        elif kind is AliasEvent:
            node, size, height = _aliased(event, anchors)
            siblings.append(node)
            counted += size
            deepest = max(deepest, len(stack) + height)
            if deepest > limits.depth:
                raise _too_deep(limits, event)
        elif kind is DocumentEndEvent:
            root = _only_document(root, siblings.pop())
            anchors.clear()
        elif kind is StreamEndEvent:
            return root
        if counted > limits.nodes:
            raise _error(f"more than {limits.nodes} nodes, aliases counted as what they repeat (limit: nodes)", event)


def _too_deep(limits: Limits, event: _Event) -> ConfigError:
    return _error(f"nested more than {limits.depth} levels deep (limit: depth)", event)


def _aliased(event: _Event, anchors: Mapping[str, tuple[Node, int, int] | None]) -> tuple[Node, int, int]:
    if event.anchor not in anchors:
        # Its name is not shown: a password that begins with * and has no quotes is an alias, too.
        raise _error("unknown anchor; a text that begins with * needs quotes", event)
    found = anchors[event.anchor]
    if found is None:
        raise _error(f"anchor {quote(event.anchor)} contains itself", event)
    return found


def _mapping(children: list[Node], mark: _Mark) -> MappingNode:
    """Return the mapping whose keys and values take turns in ``children``."""
    keys = children[::2]
    names = {key.text for key in keys if type(key) is Scalar}
    if len(names) < len(keys) or _MERGE_KEY in names:
        return _mapping_with_care(children, mark)
    return MappingNode(keys, children[1::2], mark)  # type: ignore[arg-type]  # as many names as keys: all are scalars


def _mapping_with_care(children: list[Node], mark: _Mark) -> MappingNode:
    """Return a mapping that merges others, as go-yaml does: in the order of the document, the last one wins."""
    taken: dict[str, list[tuple[Scalar, Node]]] = {}  # all that is said of a key, by its text
    own: dict[str, Scalar] = {}
    for key, value in zip(children[::2], children[1::2], strict=True):
        if type(key) is not Scalar:
            raise key.error(f"found {describe(key)} as a key, expected a scalar")
        if key.text == _MERGE_KEY and key.plain:
            for source in _merged(key, value):
                for name, merged in source.entries:
                    taken.setdefault(name.text, []).append((name, merged))
            continue
        first = own.setdefault(key.text, key)
        if first is not key:
            raise key.error(f"field {printable(key.text)} already set in this mapping, first at line {first.line}")
        taken.setdefault(key.text, []).append((key, value))
    return _united(taken.values(), mark)


def _merged(key: Scalar, value: Node) -> list[MappingNode]:
    """Return the mappings that a merge key names; of a list, the first comes last, because it is to win."""
    sources: list[MappingNode] = []
    for source in value.items[::-1] if isinstance(value, SequenceNode) else [value]:
        if not isinstance(source, MappingNode):
            # What is left out at the end of the text would be on a line that is not there.
            place = key if source is value and is_null(value) else source
            raise place.error(f"found {describe(source)} to merge, expected a mapping or a list of mappings")
        sources.append(source)
    return sources


def _united(taken: Iterable[list[tuple[Scalar, Node]]], mark: _Mark) -> MappingNode:
    """Return the mapping in which the last value of each key counts."""
    keys, values = [], []
    for found in taken:
        key, value = found[-1]
        keys.append(key)
        values.append(value if len(found) == 1 else _last([value for _, value in found]))
    return MappingNode(keys, values, mark)


def _last(values: list[Node]) -> Node:
    """Return the last value, united with the mappings right before it, as Go decodes all of them into the same map.

    All at once, because uniting two at a time would copy the first ones again and again.
    """
    mappings: list[MappingNode] = []
    for value in reversed(values):
        if not isinstance(value, MappingNode):
            break
        mappings.append(value)
    if len(mappings) < 2:
        return values[-1]
    taken: dict[str, list[tuple[Scalar, Node]]] = {}
    for mapping in reversed(mappings):
        for name, inner in mapping.entries:
            taken.setdefault(name.text, []).append((name, inner))
    return _united(taken.values(), mappings[0].mark)


def _only_document(earlier: Node | None, document: Node) -> Node | None:
    if is_null(document):
        return earlier
    if earlier is not None:
        raise document.error(f"a second document; the first is at line {earlier.line}, and only one is expected")
    return document


def _decode_binary(scalar: Scalar) -> str:
    try:
        content = base64.b64decode("".join(scalar.text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise scalar.error("!!binary value contains invalid base64 data") from None
    return content.decode(errors="surrogateescape")


def _decode(text: bytes, file: str, limits: Limits) -> str:
    if len(text) > limits.file_bytes:
        message = f"larger than the {limits.file_bytes} bytes that the limit file_bytes allows"
        raise ConfigError(message, Position(file, 1, 1))
    try:
        return text.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        position = _end_of(text[: error.start].decode().removeprefix("\ufeff"), file)
        raise ConfigError(f"found byte 0x{text[error.start]:02x}, expected UTF-8", position) from None


def _check_tag_directives(text: str, file: str) -> None:
    """Refuse a great many of them: for each, and for each tag, libyaml looks at all of them."""
    if text.count("%TAG") > _MOST_TAGS:
        found = [match.end() - len("%TAG") for match in _TAG_DIRECTIVE.finditer(text)]
        if len(found) > _MOST_TAGS:
            message = f"more than {_MOST_TAGS} %TAG directives"
            raise ConfigError(message, _end_of(text[: found[_MOST_TAGS]], file))


def _translated(error: yaml.YAMLError, text: str, file: str) -> ConfigError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        message = ": ".join(part for part in (error.context, error.problem) if part)
        # libyaml takes the end of the text for a line of its own.
        if mark is None or mark.index >= len(text):
            return ConfigError(message, _end_of(text, file))
        return ConfigError(message, _position(mark))
    forbidden = _FORBIDDEN.search(text)
    if forbidden is None:
        return ConfigError(f"{quote(file)}: {error}")
    message = f"character U+{ord(forbidden[0]):04X} is not allowed in YAML"
    return ConfigError(message, _end_of(text[: forbidden.start()], file))


def _error(message: str, event: _Event) -> ConfigError:
    return ConfigError(message, _position(event.start_mark))


def _position(mark: _Mark) -> Position:
    return Position(mark.name, mark.line + 1, mark.column + 1)


def _end_of(before: str, file: str) -> Position:
    """Return the place that follows the text ``before``, in lines as YAML counts them."""
    lines = _BREAK.split(before)
    return Position(file, len(lines), len(lines[-1]) + 1)
