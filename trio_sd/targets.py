"""Target groups: what a discoverer finds.

The values here are immutable all the way down, so that they are shared between the store, snapshots, updates and
every subscriber without a copy, compared to find what changed, and hashed as parts of a configuration.
"""

from __future__ import annotations

import re
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, final

__all__ = [
    "ADDRESS_LABEL",
    "LABEL_NAME",
    "META_LABEL_PREFIX",
    "NO_LABELS",
    "Labels",
    "TargetGroup",
    "join_host_port",
]

ADDRESS_LABEL: Final = "__address__"
LABEL_NAME: Final = re.compile("[a-zA-Z_][a-zA-Z0-9_]*")
"""What a label name is, by the older rule that every release of Prometheus accepts."""
META_LABEL_PREFIX: Final = "__meta_"


@final
class Labels(Mapping[str, str]):
    """An immutable, hashable label set, ordered by name.

    Equal to any mapping with the same items. It is a flat, sorted tuple of names and values: a one-label set takes
    96 bytes where a ``dict`` takes 184, which counts when a hundred thousand targets are held. Look-up is a linear
    scan; label sets are small.

    Raises:
      TypeError: if it is made of something else than a mapping, or a name or a value is not a ``str``.
    """

    __slots__ = ("_flat",)
    _flat: tuple[str, ...]

    def __init__(self, labels: Mapping[str, str] = {}) -> None:
        if type(labels) is Labels:
            self._flat = labels._flat
            return
        try:
            items = labels.items()
        except AttributeError:
            raise TypeError(f"a label set is a mapping, not {type(labels).__name__}: {labels!r}") from None
        flat = tuple(chain.from_iterable(items if len(items) < 2 else sorted(items)))
        for text in flat:
            if type(text) is not str:
                raise TypeError(f"label names and values are str, not {type(text).__name__}: {text!r}")
        self._flat = flat

    @classmethod
    def one(cls, name: str, value: str) -> Labels:
        """Return a label set of one label, for parsers that make many of them. Nothing is checked."""
        labels = cls.__new__(cls)
        labels._flat = (name, value)
        return labels

    @classmethod
    def of_sorted(cls, flat: tuple[str, ...]) -> Labels:
        """Return a label set of alternating names and values, for parsers that know the order of the names.

        Nothing is checked: the names are in order, none comes twice, and all are ``str``.
        """
        labels = cls.__new__(cls)
        labels._flat = flat
        return labels

    def __getitem__(self, name: str) -> str:
        pairs = iter(self._flat)
        for key in pairs:
            value = next(pairs)
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._flat[::2])

    def __len__(self) -> int:
        return len(self._flat) // 2

    def items(self) -> ItemsView[str, str]:
        """Return the names and values, in the order of the names."""
        return dict(
            zip(self._flat[::2], self._flat[1::2], strict=True)
        ).items()  # far quicker than the mixin's look-ups

    def __eq__(self, other: object) -> bool:
        if type(other) is Labels:
            return self._flat == other._flat
        if isinstance(other, Mapping):
            return dict(self) == dict(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._flat)

    def __repr__(self) -> str:
        return repr(dict(self))


NO_LABELS: Final = Labels()
"""The empty label set."""


@dataclass(frozen=True, slots=True, init=False)
class TargetGroup:
    """Targets that were found together, and the labels that they share.

    A discoverer names each group by its ``source``, unique among its own groups and stable from one update to the
    next. A group without targets says that its source has nothing (any more).

    Args:
      source: where the group comes from: ``path:index`` for a file, a znode's path for ZooKeeper.
      targets: one label set a target. A target's labels win over the group's.
      labels: labels of every target in the group.

    Raises:
      TypeError: if ``source``, a label name or a label value is not a ``str``.
    """

    source: str
    targets: Sequence[Mapping[str, str]]
    labels: Mapping[str, str] = NO_LABELS

    def __init__(
        self, source: str, targets: Iterable[Mapping[str, str]], labels: Mapping[str, str] = NO_LABELS
    ) -> None:
        if type(source) is not str:
            raise TypeError(f"a target group's source is a str, not {type(source).__name__}: {source!r}")
        # Written by hand because the generated one would set what is given first, and what is frozen after.
        freeze = object.__setattr__
        freeze(self, "source", source)
        # One label set alone is the usual case where a group is a target, and copying it takes a third of the time.
        frozen = type(targets) is tuple and len(targets) == 1 and type(targets[0]) is Labels
        freeze(self, "targets", targets if frozen else tuple([t if type(t) is Labels else Labels(t) for t in targets]))
        freeze(self, "labels", labels if type(labels) is Labels else Labels(labels))


def join_host_port(host: str, port: int | str) -> str:
    """Return ``host:port``, with brackets around an IPv6 address that has none yet.

    >>> join_host_port("example.org", 80), join_host_port("::1", 80), join_host_port("[::1]", 80)
    ('example.org:80', '[::1]:80', '[::1]:80')
    """
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{host}:{port}"
