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
from itertools import count
from typing import Final, NoReturn

from ...config.groups import decode_target_group
from ...config.nodes import Node, Scalar, SequenceNode, parse_yaml
from ...errors import ConfigError, Position
from ...limits import Limits
from ...targets import ADDRESS_LABEL, META_LABEL_PREFIX, Labels, TargetGroup

__all__ = ["FILEPATH_LABEL", "parse"]

FILEPATH_LABEL: Final = META_LABEL_PREFIX + "filepath"

_LABEL_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def parse(content: bytes, path: str, limits: Limits) -> tuple[TargetGroup, ...]:
    """Return the target groups of a file, in its order; the source of each is ``path:index``.

    Args:
      content: the whole file.
      path: how the pattern spells it; the extension tells the format.
      limits: bounds on size, groups, labels and nesting.

    Raises:
      ConfigError: the content can't be used. One bad group spoils the file, so that nobody acts on half of it.
    """
    if len(content) > limits.file_bytes:
        raise ConfigError(f"{path}: larger than the {limits.file_bytes} bytes that the limit file_bytes allows")
    if not content.strip():
        # Prometheus takes an empty YAML file for an empty list. It is far more often a file that is about to be
        # written; who means an empty list can say so: [].
        raise ConfigError("the file is empty; an empty list is written []", Position(path, 1, 1))
    decode = _decode_json if path.lower().endswith(".json") else _decode_yaml
    return tuple(decode(content, path, limits))


class _GroupMaker:
    """Makes the groups of one file; groups that have no labels of their own share one label set."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._bare = Labels({FILEPATH_LABEL: path})

    def make(self, index: int, targets: tuple[Labels, ...], labels: dict[str, str]) -> TargetGroup:
        if labels:
            labels.pop(ADDRESS_LABEL, None)  # every target has an address of its own, which wins
            labels[FILEPATH_LABEL] = self._path
        return TargetGroup(f"{self._path}:{index}", targets, Labels(labels) if labels else self._bare)


def _decode_yaml(content: bytes, path: str, limits: Limits) -> list[TargetGroup]:
    node = parse_yaml(content, file=path, limits=limits)
    if node is None or _is_null(node):
        return []
    if not isinstance(node, SequenceNode):
        raise ConfigError("expected a list of target groups", node.position)
    _check_count("groups", len(node.items), limits.groups, node.position)
    maker = _GroupMaker(path)
    groups = []
    for index, item in enumerate(node.items):
        place = f"[{index}]"
        targets, labels = decode_target_group(item, place)
        _check_count("labels", len(labels), limits.labels, item.position, place)
        groups.append(maker.make(index, targets, dict(labels)))
    return groups


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def _check_count(what: str, found: int, limit: int, position: Position | None = None, place: str = "") -> None:
    if found > limit:
        raise ConfigError(f"{found} {what} are more than the {limit} that the limit {what} allows", position, place)


class _Refused(ValueError):
    """A JSON value can't be used. The position is found out later: positions cost time that good files need not pay."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def _decode_json(content: bytes, path: str, limits: Limits) -> list[TargetGroup]:
    text = content.decode("utf-8", "replace")  # as Go does
    try:
        # Objects become tuples of pairs, arrays lists: the pairs tell of repeated keys, and `tuple` is called from C.
        # Numbers are never valid; as floats they have no limit on digits.
        document = json.loads(text, object_pairs_hook=tuple, parse_int=float, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error.msg}", Position(path, error.lineno, error.colno)) from None
    except _Refused as refused:
        raise ConfigError(str(refused), Position(path, 1, 1)) from None
    except RecursionError:
        raise ConfigError("not a list of target groups: nested too deep", Position(path, 1, 1)) from None
    if document is None:
        return []
    if type(document) is not list:
        raise ConfigError(f"expected a list of target groups, found {_kind(document)}", Position(path, 1, 1))
    _check_count("groups", len(document), limits.groups, Position(path, 1, 1))
    # Go replaces what can't be encoded in UTF-8. Escapes are the only way to write it, and start like this.
    mend = _mend if "\\ud" in text or "\\uD" in text else None
    maker = _GroupMaker(path)
    groups = []
    for index, item in enumerate(document):
        try:
            targets, labels = _json_group(item, mend, limits)
        except _Refused as refused:
            where = Position(path, *_line_and_column(text, _element_offset(text, index)))
            raise ConfigError(str(refused), where, f"[{index}]{refused.place}") from None
        groups.append(maker.make(index, targets, labels))
    return groups


def _json_group(
    item: object, mend: Callable[[str], str] | None, limits: Limits
) -> tuple[tuple[Labels, ...], dict[str, str]]:
    if item is None:
        raise _Refused("nil target group item found")
    if type(item) is not tuple:
        raise _Refused(f"expected a target group, found {_kind(item)}")
    targets: tuple[Labels, ...] = ()
    labels: dict[str, str] = {}
    for key, value in item:
        name = key if key in ("targets", "labels") else key.casefold()
        if name == "targets":
            targets = tuple([Labels({ADDRESS_LABEL: text}) for text in _json_targets(value, mend)])
        elif name == "labels":
            if value is None:
                labels = {}
            else:
                labels.update(_json_labels(value, mend))
                _check_count("labels", len(labels), limits.labels, place=".labels")
        else:
            raise _Refused(f'unknown field "{key}"; a target group has targets and labels')
    return targets, labels


def _json_targets(value: object, mend: Callable[[str], str] | None) -> list[str]:
    if value is None:
        return []
    if type(value) is not list:
        raise _Refused(f"expected a list of strings, found {_kind(value)}", ".targets")
    texts = []
    for index, target in enumerate(value):
        text = "" if target is None else target
        if type(text) is not str:
            raise _Refused(f"expected a string, found {_kind(text)}", f".targets[{index}]")
        texts.append(mend(text) if mend else text)
    return texts


def _json_labels(value: object, mend: Callable[[str], str] | None) -> dict[str, str]:
    if type(value) is not tuple:
        raise _Refused(f"expected an object of strings, found {_kind(value)}", ".labels")
    labels = {}
    for name, found in value:
        text = "" if found is None else found
        if type(text) is not str:
            raise _Refused(f"expected a string, found {_kind(text)}", f".labels.{name}")
        if not _LABEL_NAME.fullmatch(name):
            raise _Refused(f'"{name}" is not a valid label name', ".labels")
        labels[name] = mend(text) if mend else text
    return labels


def _kind(value: object) -> str:
    names: dict[type, str] = {
        bool: "true or false", float: "a number", str: "a string", list: "a list", tuple: "an object"
    }  # fmt: skip
    return names.get(type(value), "null")


def _mend(text: str) -> str:
    return _LONE_SURROGATE.sub("\ufffd", text)


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"not JSON: {name}")


def _element_offset(text: str, wanted: int) -> int:
    """Return where the element number ``wanted`` of the JSON array ``text`` starts. The text is known to be good."""
    decoder = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float)
    offset = text.index("[") + 1
    for index in count():
        offset = _SPACE.match(text, offset).end()  # type: ignore[union-attr]  # matches the empty string, too
        if index == wanted:
            return offset
        _, offset = decoder.raw_decode(text, offset)
        offset = text.index(",", offset) + 1
    raise AssertionError  # pragma: no cover (count() does not end)


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset) + 1, offset - (text.rfind("\n", 0, offset) + 1) + 1
