"""A list of target groups in JSON, as files and HTTP endpoints have it. Pure: nothing is opened here.

It is read by the rules of Go's ``encoding/json``, because that is what the lists of Prometheus users have passed: keys
are matched without regard to case, the last of two equal keys wins (the labels of both are merged), ``null`` leaves a
value empty, unknown keys are refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final, NoReturn

from ..errors import ConfigError, Position
from ..limits import Limits
from ..messages import key_path, quote
from ..targets import ADDRESS_LABEL, LABEL_NAME, Labels, TargetGroup
from .outline import Parsed, read_groups

__all__ = ["GroupMaker", "Origin", "parse_json", "too_many"]

_FIELDS: Final = ("targets", "labels")
_WORTH_AN_OUTLINE: Final = 50_000  # characters; less is decoded in a millisecond
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a list is from.

    Attributes:
      name: the path or the URL. The source of each group is ``name:index``.
      label: the label that says so, of every group.
    """

    name: str
    label: str


def parse_json(content: bytes, origin: Origin, limits: Limits, before: Parsed | None = None) -> Parsed:
    """Return the target groups of a list, in its order, with less work if it differs in little from what it was.

    Args:
      content: the whole list.
      origin: where it is from.
      limits: bounds on groups and labels.
      before: what this function has returned for the same origin and limits, with any equal groups in the place of
        those that it had made; ``None`` if nothing is known.

    Raises:
      ConfigError: the content can't be used. One bad group is enough, so that nobody acts on half of a list.
    """
    text = content.decode("utf-8", "replace")  # as Go does
    # Half of a surrogate pair can be mended by who decodes all of the text only. One character that is not ASCII may
    # make Python hold two or four bytes for each, and the text is held for as long as the list is as it is.
    if len(text) >= _WORTH_AN_OUTLINE and text.isascii() and not _may_have_lone_surrogates(text):
        found = read_groups(text, _DECODER, _JSONGroups(origin, limits), limits.groups, before)
        if found is not None:
            return found
    return Parsed(tuple(_decode_json(text, origin, limits)))


class GroupMaker:
    """Makes the groups of one list; groups with equal labels share one label set."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._labels: dict[tuple[tuple[str, str], ...], Labels] = {}

    def make(self, index: int, targets: tuple[Labels, ...], labels: dict[str, str]) -> TargetGroup:
        """Return the group at ``index`` of the list; ``labels`` are its own, and may be changed."""
        key = tuple(labels.items())
        shared = self._labels.get(key)
        if shared is None:
            labels.pop(ADDRESS_LABEL, None)  # every target has an address of its own, which wins
            labels[self._origin.label] = self._origin.name
            shared = self._labels[key] = Labels(labels)
        return TargetGroup(f"{self._origin.name}:{index}", targets, shared)


def too_many(what: str, found: int, limit: int) -> str:
    """Return the message that more was found than the limit called ``what`` allows."""
    return f"{found} {what} are more than the {limit} that the limit {what} allows"


class _JSONValueError(ValueError):
    """A JSON value can't be used. Its position is worked out later, so that good lists do not pay for positions."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def _decode_json(text: str, origin: Origin, limits: Limits) -> list[TargetGroup]:
    start = Position(origin.name, 1, 1)
    if text.startswith("\ufeff"):
        raise ConfigError("not JSON: Unexpected UTF-8 BOM", start)
    try:
        document = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error.msg}", Position(origin.name, error.lineno, error.colno)) from None
    except _JSONValueError as refused:
        raise ConfigError(str(refused), start) from None
    except RecursionError:
        raise ConfigError("not a list of target groups: nested too deep", start) from None
    if document is None:
        return []
    if type(document) is not list:
        raise ConfigError(f"expected a list of target groups, found {_kind(document)}", start)
    if len(document) > limits.groups:
        raise ConfigError(too_many("groups", len(document), limits.groups), start)
    source = _JSONGroups(origin, limits, mend=_may_have_lone_surrogates(text))
    groups = []
    for index, item in enumerate(document):
        try:
            groups.append(source.make(index, item))
        except _JSONValueError as refused:
            where = Position(origin.name, *_line_and_column(text, _element_offset(text, index)))
            raise ConfigError(str(refused), where, f"[{index}]{refused.place}") from None
    return groups


def _may_have_lone_surrogates(text: str) -> bool:
    return "\\ud" in text or "\\uD" in text  # only an escape can make one


class _JSONGroups:
    """Makes the groups of one list of their decoded JSON.

    Args:
      origin: of the list.
      limits: bounds on labels.
      mend: whether strings may hold half of a surrogate pair, which Go replaces.
    """

    def __init__(self, origin: Origin, limits: Limits, *, mend: bool = False) -> None:
        self._origin = origin
        self._reader = _JSONReader(limits, mend)
        self._maker = GroupMaker(origin)

    def make(self, index: int, item: object) -> TargetGroup:
        return self._maker.make(index, *self._reader.group(item))

    def renumbered(self, index: int, group: TargetGroup) -> TargetGroup:
        return TargetGroup(f"{self._origin.name}:{index}", group.targets, group.labels)


class _JSONReader:
    """Reads the groups of one list.

    Args:
      limits: bounds on labels.
      mend: whether strings may hold half of a surrogate pair.
    """

    def __init__(self, limits: Limits, mend: bool) -> None:
        self._limits = limits
        self._mend = mend
        # The few label names of a list are checked once each, and held once each: a decoder makes them anew.
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
            raise _JSONValueError(too_many("labels", len(labels), self._limits.labels), ".labels")

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
