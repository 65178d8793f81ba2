"""From a target file's bytes to target groups. Pure: no file is opened here.

JSON is read as HTTP endpoints write it, by :mod:`trio_sd.target_lists`. YAML is read as the rest of the configuration
is. A JSON file is never parsed as YAML: escaped surrogate pairs would break, and it would take ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...config.groups import decode_target_group
from ...config.nodes import SequenceNode, describe, is_null, parse_yaml
from ...errors import ConfigError, Position
from ...limits import Limits
from ...target_lists import GroupMaker, Origin, Parsed, parse_json, too_many
from ...targets import META_LABEL_PREFIX, TargetGroup

__all__ = ["FILEPATH_LABEL", "Parse", "parse", "parse_again"]

Parse = Callable[[bytes, str, Limits, Parsed | None], Parsed]
"""Makes target groups of a file's content, path and limits, as :func:`parse_again` does."""

FILEPATH_LABEL: Final = META_LABEL_PREFIX + "filepath"


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
    if path.lower().endswith(".json"):
        return parse_json(content, Origin(path, FILEPATH_LABEL), limits, before)
    return Parsed(tuple(_decode_yaml(content, path, limits)))


def _decode_yaml(content: bytes, path: str, limits: Limits) -> list[TargetGroup]:
    node = parse_yaml(content, file=path, limits=limits)
    if node is None or is_null(node):
        return []
    if not isinstance(node, SequenceNode):
        raise node.error(f"expected a list of target groups, found {describe(node)}")
    if len(node.items) > limits.groups:
        raise node.error(too_many("groups", len(node.items), limits.groups))
    maker = GroupMaker(Origin(path, FILEPATH_LABEL))
    groups = []
    for index, item in enumerate(node.items):
        place = f"[{index}]"
        targets, labels = decode_target_group(item, place)
        if len(labels) > limits.labels:
            raise item.error(too_many("labels", len(labels), limits.labels), place)
        groups.append(maker.make(index, targets, dict(labels)))
    return groups
