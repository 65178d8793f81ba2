"""From a target file's bytes to target groups. Pure: no file is opened here.

JSON is read by the rules of Go's ``encoding/json``, because that is what Prometheus users' files have passed: keys
are matched without regard to case, the last of two equal keys wins (the labels of both are merged), ``null`` leaves a
value empty, unknown keys are refused. YAML is read as the rest of the configuration is. A JSON file is never parsed
as YAML: escaped surrogate pairs would break, and it would take ten times as long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final, NoReturn

from ...config.groups import decode_target_group
from ...config.nodes import SequenceNode, describe, is_null, parse_yaml
from ...errors import ConfigError, Position
from ...limits import Limits
from ...messages import key_path, quote
from ...targets import ADDRESS_LABEL, LABEL_NAME, META_LABEL_PREFIX, Labels, TargetGroup
from .outline import Parsed, read_groups

__all__ = ["FILEPATH_LABEL", "Parse", "parse", "parse_again"]

Parse = Callable[[bytes, str, Limits, Parsed | None], Parsed]
"""Makes target groups of a file's content, path and limits, as :func:`parse_again` does."""

FILEPATH_LABEL: Final = META_LABEL_PREFIX + "filepath"

_FIELDS: Final = ("targets", "labels")
_WORTH_AN_OUTLINE: Final = 50_000  # characters; less is decoded in a millisecond
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def parse(content: bytes, path: str, limits: Limits) -> tuple[TargetGroup, ...]:
    """Return the target groups of a file, in its order; the source of each is ``path:index``.

    Args:
      content: the whole file.
      path: how the pattern spells it; the extension tells the format.
      limits: bounds on size, groups, labels and nesting.

    Raises:
      ConfigError: the content can't be used. One bad group is enough, so that nobody acts on half of a file.
    """
    return parse_again(content, path, limits, None).groups


def parse_again(content: bytes, path: str, limits: Limits, before: Parsed | None) -> Parsed:
    """Do what :func:`parse` does, with less work if the content differs in little from what it was.

    Args:
      content: the whole file.
      path: as there.
      limits: as there.
      before: what this function has returned for the same path and limits, with any equal groups in the place of those
        that it had made; ``None`` if nothing is known.

    Raises:
      ConfigError: the content can't be used.
    """
    if len(content) > limits.file_bytes:
        message = f"larger than the {limits.file_bytes} bytes that the limit file_bytes allows"
        raise ConfigError(message, Position(path, 1, 1))
    if not content.strip():
        # Prometheus reads an empty YAML file as an empty list. But an empty file is far more often one that is about
        # to be written; an empty list can be written as [].
        raise ConfigError("the file is empty; an empty list is written []", Position(path, 1, 1))
    if not path.lower().endswith(".json"):
        return Parsed(tuple(_decode_yaml(content, path, limits)))
    text = content.decode("utf-8", "replace")  # as Go does
    # Half of a surrogate pair can be mended by who decodes all of the text only. One character that is not ASCII may
    # make Python hold two or four bytes for each, and the text is held for as long as the file is as it is.
    if len(text) >= _WORTH_AN_OUTLINE and text.isascii() and not _may_have_lone_surrogates(text):
        found = read_groups(text, _DECODER, _JSONGroups(path, limits), limits.groups, before)
        if found is not None:
            return found
    return Parsed(tuple(_decode_json(text, path, limits)))


class _GroupMaker:
    """Makes the groups of one file; groups with equal labels share one label set."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._labels: dict[tuple[tuple[str, str], ...], Labels] = {}

    def make(self, index: int, targets: tuple[Labels, ...], labels: dict[str, str]) -> TargetGroup:
        key = tuple(labels.items())
        shared = self._labels.get(key)
        if shared is None:
            labels.pop(ADDRESS_LABEL, None)  # every target has an address of its own, which wins
            labels[FILEPATH_LABEL] = self._path
            shared = self._labels[key] = Labels(labels)
        return TargetGroup(f"{self._path}:{index}", targets, shared)


def _decode_yaml(content: bytes, path: str, limits: Limits) -> list[TargetGroup]:
    node = parse_yaml(content, file=path, limits=limits)
    if node is None or is_null(node):
        return []
    if not isinstance(node, SequenceNode):
        raise node.error(f"expected a list of target groups, found {describe(node)}")
    if len(node.items) > limits.groups:
        raise node.error(_too_many("groups", len(node.items), limits.groups))
    maker = _GroupMaker(path)
    groups = []
    for index, item in enumerate(node.items):
        place = f"[{index}]"
        targets, labels = decode_target_group(item, place)
        if len(labels) > limits.labels:
            raise item.error(_too_many("labels", len(labels), limits.labels), place)
        groups.append(maker.make(index, targets, dict(labels)))
    return groups


def _too_many(what: str, found: int, limit: int) -> str:
    return f"{found} {what} are more than the {limit} that the limit {what} allows"


class _JSONValueError(ValueError):
    """A JSON value can't be used. Its position is worked out later, so that good files do not pay for positions."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def _decode_json(text: str, path: str, limits: Limits) -> list[TargetGroup]:
    start = Position(path, 1, 1)
    if text.startswith("\ufeff"):
        raise ConfigError("not JSON: Unexpected UTF-8 BOM", start)
    try:
        document = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error.msg}", Position(path, error.lineno, error.colno)) from None
    except _JSONValueError as refused:
        raise ConfigError(str(refused), start) from None
    except RecursionError:
        raise ConfigError("not a list of target groups: nested too deep", start) from None
    if document is None:
        return []
    if type(document) is not list:
        raise ConfigError(f"expected a list of target groups, found {_kind(document)}", start)
    if len(document) > limits.groups:
        raise ConfigError(_too_many("groups", len(document), limits.groups), start)
    source = _JSONGroups(path, limits, mend=_may_have_lone_surrogates(text))
    groups = []
    for index, item in enumerate(document):
        try:
            groups.append(source.make(index, item))
        except _JSONValueError as refused:
            where = Position(path, *_line_and_column(text, _element_offset(text, index)))
            raise ConfigError(str(refused), where, f"[{index}]{refused.place}") from None
    return groups


def _may_have_lone_surrogates(text: str) -> bool:
    return "\\ud" in text or "\\uD" in text  # only an escape can make one


class _JSONGroups:
    """Makes the groups of one file of their decoded JSON.

    Args:
      path: of the file.
      limits: bounds on labels.
      mend: whether strings may hold half of a surrogate pair, which Go replaces.
    """

    def __init__(self, path: str, limits: Limits, *, mend: bool = False) -> None:
        self._path = path
        self._reader = _JSONReader(limits, mend)
        self._maker = _GroupMaker(path)

    def make(self, index: int, item: object) -> TargetGroup:
        return self._maker.make(index, *self._reader.group(item))

    def renumbered(self, index: int, group: TargetGroup) -> TargetGroup:
        return TargetGroup(f"{self._path}:{index}", group.targets, group.labels)


class _JSONReader:
    """Reads the groups of one file.

    Args:
      limits: bounds on labels.
      mend: whether strings may hold half of a surrogate pair.
    """

    def __init__(self, limits: Limits, mend: bool) -> None:
        self._limits = limits
        self._mend = mend
        # The few label names of a file are checked once each, and held once each: a decoder makes them anew.
        self._good_names: dict[str, str] = {}

    def group(self, item: object) -> tuple[tuple[Labels, ...], dict[str, str]]:
        if item is None:
            raise _JSONValueError("nil target group item found")
        if type(item) is not tuple:
            raise _JSONValueError(f"expected a target group, found {_kind(item)}")
        targets: tuple[Labels, ...] = ()
        labels: dict[str, str] = {}
        for key, value in item:
            name = key if key in _FIELDS else key.casefold()
            if name == "targets":
                targets = self._targets(value)
            elif name == "labels":
                if value is None:
                    labels = {}
                else:
                    self._add_labels(labels, value)
            else:
                raise _JSONValueError(f"unknown field {quote(key)}; a target group has targets and labels")
        return targets, labels

    def _targets(self, value: object) -> tuple[Labels, ...]:
        if value is None:
            return ()
        if type(value) is not list:
            raise _JSONValueError(f"expected a list of strings, found {_kind(value)}", ".targets")
        targets: list[Labels] = []
        for target in value:
            if type(target) is not str or self._mend:
                target = self._text(target, f".targets[{len(targets)}]")
            targets.append(Labels.one(ADDRESS_LABEL, target))
        return tuple(targets)

    def _add_labels(self, labels: dict[str, str], value: object) -> None:
        if type(value) is not tuple:
            raise _JSONValueError(f"expected an object of strings, found {_kind(value)}", ".labels")
        for name, text in value:
            if type(text) is not str or self._mend:
                text = self._text(text, key_path(".labels", name))
            good = self._good_names.get(name)
            if good is None:
                if not LABEL_NAME.fullmatch(name):
                    expected = "letters, digits and _, no digit first"
                    raise _JSONValueError(f"{quote(name)} is not a valid label name; expected {expected}", ".labels")
                good = self._good_names[name] = name
            labels[good] = text
        if len(labels) > self._limits.labels:
            raise _JSONValueError(_too_many("labels", len(labels), self._limits.labels), ".labels")

    def _text(self, value: object, place: str) -> str:
        if value is None:
            return ""
        if type(value) is not str:
            raise _JSONValueError(f"expected a string, found {_kind(value)}", place)
        return _LONE_SURROGATE.sub("\ufffd", value)


def _kind(value: object) -> str:
    names: dict[type, str] = {
        bool: "true or false", float: "a number", str: "a string", list: "a list", tuple: "an object"
    }  # fmt: skip
    return names.get(type(value), "null")


def _refuse_constant(name: str) -> NoReturn:
    raise _JSONValueError(f"not JSON: {name}")


# Objects become tuples of pairs, which keep repeated keys; `tuple` is the fastest hook. Arrays become lists. No number
# is valid here; as floats they may have any number of digits.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float, parse_constant=_refuse_constant)


def _element_offset(text: str, wanted: int) -> int:
    """Return where the element number ``wanted`` of the JSON array ``text`` starts. The text is known to be good."""
    decoder = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float)
    offset = _skip_space(text, text.index("[") + 1)
    for _ in range(wanted):
        _, offset = decoder.raw_decode(text, offset)
        offset = _skip_space(text, text.index(",", offset) + 1)
    return offset


def _skip_space(text: str, offset: int) -> int:
    space = _SPACE.match(text, offset)
    return space.end() if space else offset


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1
