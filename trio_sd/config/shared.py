"""What the sections of a configuration have in common: lists of sections, counts, sizes, and rules for labels."""

from __future__ import annotations

import re
from functools import partial
from typing import Final, Self

from ..errors import ConfigError, Position
from ..messages import item_path, key_path
from ..relabel import NameScheme, RelabelConfig
from .decode import decode
from .nodes import MappingNode, Node, SequenceNode, describe, is_null

__all__ = ["Count", "Size", "items_of", "no_section", "relabel_rules", "sections_of", "value_of"]

_SIZE: Final = re.compile(
    # Nothing here can be matched in two ways, and ++ does not look for one: a long text takes no more than its length.
    r"[-+]?(0|((?:[0-9]+(\.[0-9]*)?|\.[0-9]+)[KMGTPE]?B)++|((?:[0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]iB|B))++)"
)
_SIZE_PART: Final = re.compile("([0-9.]+)([KMGTPE]?)i?B")
_PREFIXES: Final = ("", "K", "M", "G", "T", "P", "E")


class Count(int):
    """A whole number that is not negative."""

    __slots__ = ()

    @classmethod
    def decode(cls, node: Node, path: str) -> Self:
        """Return the number that ``node`` says.

        Raises:
          ConfigError: it says none, or a negative one.
        """
        count = decode(node, int, path=path)
        if count < 0:
            raise node.error(f"found {describe(node)}, expected a whole number that is not negative", path)
        return cls(count)


class Size(int):
    """A number of bytes, written with its units: ``15MB``, ``1GiB512MiB``. Each unit is 1024 times the one before.

    As in Prometheus, it may have a sign.
    """

    __slots__ = ()

    @classmethod
    def decode(cls, node: Node, path: str) -> Self:
        """Return the number of bytes that ``node`` says.

        Raises:
          ConfigError: it is not written so, or has no place in 64 bits.
        """
        text = decode(node, str, path=path)
        if not _SIZE.fullmatch(text):
            raise node.error(f"found {describe(node)}, expected a size with its unit, such as 15MB", path)
        parts = _SIZE_PART.findall(text)
        sign = -1 if text.startswith("-") else 1
        size = sign * sum(float(number) * 1024.0 ** _PREFIXES.index(prefix) for number, prefix in parts)
        if not -(2**63) <= size < 2**63:
            raise node.error(f"found {describe(node)}, expected a size of less than 8EB", path)
        return cls(size)


def value_of(node: Node | None, key: str) -> Node | None:
    """Return the value of ``key``, or ``None`` where ``node`` is no mapping, or has no such key."""
    return node.get(key) if type(node) is MappingNode else None


def items_of(node: Node | None, path: str) -> list[Node]:
    """Return the items of a list; null and nothing have none.

    Raises:
      ConfigError: ``node``, at the document path ``path``, is something else.
    """
    if node is None or is_null(node):
        return []
    if type(node) is not SequenceNode:
        raise node.error(f"found {describe(node)}, expected a list", path)
    return node.items


def sections_of(node: Node | None, path: str) -> list[tuple[str, Node]]:
    """Return the items of a list, each with its document path.

    Raises:
      ConfigError: ``node``, at the document path ``path``, is no list.
    """
    return [(item_path(path, index), item) for index, item in enumerate(items_of(node, path))]


def no_section(node: Node, path: str, name: str) -> ConfigError:
    """Return the error that a section called ``name`` is expected where ``node`` is."""
    if is_null(node):
        return node.error(f"empty or null {name} section", path)
    return node.error(f"found {describe(node)}, expected a mapping", path)


def relabel_rules(
    node: MappingNode, path: str, key: str, what: str, scheme: NameScheme
) -> tuple[tuple[RelabelConfig, ...], tuple[Position, ...]]:
    """Return the rules under ``key``, and where they stand; ``what`` they are is told where one is missing.

    Args:
      node: the section that has the rules.
      path: its document path.
      key: where in it they are.
      what: what to call one of them.
      scheme: which names of labels are valid.

    Raises:
      ConfigError: they are no list, or one of them can't be used.
    """
    rules, positions = [], []
    for place, item in sections_of(node.get(key), key_path(path, key)):
        if is_null(item):
            raise item.error(f"empty or null {what}", place)
        rules.append(decode(item, RelabelConfig, path=place, check=partial(_check_rule, item, scheme)))
        positions.append(item.position)
    return tuple(rules), tuple(positions)


def _check_rule(node: Node, scheme: NameScheme, rule: RelabelConfig) -> None:
    rule.validate(scheme, given={name.text for name, _ in node.entries} if type(node) is MappingNode else ())
