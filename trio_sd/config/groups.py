"""One target group in the dialect: ``targets``, a list of addresses, and ``labels`` for all of them.

Written by hand rather than decoded by field types: a target file has ten thousand of these.
"""

from __future__ import annotations

from ..messages import is_utf8, item_path, key_path, quote, unknown_key
from ..targets import ADDRESS_LABEL, LABEL_NAME, NO_LABELS, Labels
from .nodes import MappingNode, Node, Scalar, SequenceNode, describe, is_null

__all__ = ["decode_labels", "decode_target_group"]


def decode_target_group(node: Node, path: str = "") -> tuple[tuple[Labels, ...], Labels]:
    """Return the targets of one group, each with its address as its only label, and the labels of the group.

    Args:
      node: the group's mapping.
      path: its document path, for errors.

    Raises:
      ConfigError: it is null or not a mapping, has an unknown key, a value of a wrong type, or a bad label name.
    """
    targets: tuple[Labels, ...] = ()
    labels = NO_LABELS
    if type(node) is not MappingNode:
        message = f"found {describe(node)}, expected a mapping with targets and labels"
        raise node.error("nil target group item found" if is_null(node) else message, path)
    for key, value in node.entries:
        if key.text == "targets":
            targets = _decode_targets(value, path)
        elif key.text == "labels":
            labels = decode_labels(value, f"{path}.labels" if path else "labels")
        else:
            message = unknown_key(key.text, ("targets", "labels"), "a target group")
            raise key.error(message, key_path(path, key.text))
    return targets, labels


def decode_labels(node: Node, path: str = "", *, any_name: bool = False) -> Labels:
    """Return the label set that a mapping holds.

    Args:
      node: the mapping; null is the empty set.
      path: its document path, for errors.
      any_name: whether a name may be any text but the empty one, rather than ``[a-zA-Z_][a-zA-Z0-9_]*``.

    Raises:
      ConfigError: it is not a mapping of scalars, or a name or value is not valid.
    """
    if type(node) is not MappingNode:
        if is_null(node):
            return NO_LABELS
        raise node.error(f"found {describe(node)}, expected a mapping of label names to values", path)
    labels = {}
    for key, value in node.entries:
        name = key.text
        if not (LABEL_NAME.fullmatch(name) or (any_name and name and is_utf8(name))):
            expected = "UTF-8" if any_name else "letters, digits and _, no digit first"
            raise key.error(f"{quote(name)} is not a valid label name; expected {expected}", key_path(path, name))
        if type(value) is not Scalar:
            raise value.error(f"found {describe(value)}, expected a label value", key_path(path, name))
        if not is_utf8(value.text):
            raise value.error(f"{quote(value.text)} is not a valid label value", key_path(path, name))
        labels[name] = "" if is_null(value) else value.text
    return Labels(labels)


def _decode_targets(node: Node, path: str) -> tuple[Labels, ...]:
    if type(node) is not SequenceNode:
        if is_null(node):
            return ()
        raise node.error(f"found {describe(node)}, expected a list of addresses", key_path(path, "targets"))
    targets: list[Labels] = []
    for item in node.items:
        if type(item) is not Scalar or not is_utf8(item.text):
            # The path is put together only now: this is run for every target of every file.
            place = item_path(key_path(path, "targets"), len(targets))
            raise item.error(f"found {describe(item)}, expected an address", place)
        targets.append(Labels.one(ADDRESS_LABEL, "" if is_null(item) else item.text))
    return tuple(targets)
