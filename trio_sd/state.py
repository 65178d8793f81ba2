"""What a state file says: last known good over a restart of the process, as a value and as bytes. No I/O.

The format is JSON, one value a line, so that ``head -1`` and ``jq`` can be used on it::

    {"format": "trio-sd state", "version": 1, "manager": "scrape", "saved": 1767225600.0, "sets": {"web": [0]}}
    {"mechanism": "file", "fingerprint": "…", "known_good": 1767225600.0, "groups": 1}
    [{"source": "/etc/targets.json:0", "targets": [{"__address__": "web-1:80"}], "labels": {}}]
    {"sha256": "…"}

The last line is the digest of all bytes before it: a file that was cut off or changed is told from a whole one before
anything of it is used. Sets name their providers by number, in the order in which these follow; each is followed by
its groups, a hundred a line: so encoding 100,000 groups in a thread never holds the interpreter for long.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from math import isfinite
from typing import BinaryIO, Final, TypeVar

from .discoverer import DiscovererConfig
from .errors import TrioSDError
from .secrets import Secret
from .targets import Labels, TargetGroup

__all__ = ["SavedProvider", "State", "StateError", "check_beginning", "decode", "encode", "fingerprint"]

T = TypeVar("T")

_FORMAT: Final = "trio-sd state"
_VERSION: Final = 1
_BEGINNING: Final = json.dumps({"format": _FORMAT})[:-1].encode()
_BATCH: Final = 100  # groups a line


class StateError(TrioSDError):
    """A state file that can't be used; the message says why."""


@dataclass(frozen=True, slots=True)
class SavedProvider:
    """What one provider showed.

    Attributes:
      mechanism: of its configuration.
      fingerprint: of its configuration; ``None`` if it has none, so that it will not be known again.
      known_good: Unix time when what it showed was last known to be right.
      groups: what it showed.
    """

    mechanism: str
    fingerprint: str | None
    known_good: float
    groups: Collection[TargetGroup]


@dataclass(frozen=True, slots=True)
class State:
    """What a manager showed at one moment.

    Attributes:
      manager: its name.
      saved: Unix time of that moment.
      sets: for each set, the positions in ``providers`` of those that made it up.
      providers: of all sets.
    """

    manager: str
    saved: float
    sets: Mapping[str, tuple[int, ...]]
    providers: tuple[SavedProvider, ...]


def fingerprint(config: DiscovererConfig) -> str | None:
    """Return a text that is the same for equal configurations in any process, or ``None`` if there is none.

    It is made of what equality compares, the fields of dataclasses, but secrets are left out: nothing that is written
    to a file is to be made of them. Values of other types than configurations usually have make it ``None``.
    """
    try:
        text = json.dumps(_plain(config))
    except TypeError:
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return [type(value).__name__, str(value)]
    if isinstance(value, Secret):
        return ["secret"]
    if isinstance(value, Enum):
        return [_name(value), value.name]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        compared = [field.name for field in dataclasses.fields(value) if field.compare]
        return [_name(value), [[name, _plain(getattr(value, name))] for name in compared]]
    if isinstance(value, Labels):
        return dict(value)  # in order, and of texts; there may be very many
    if isinstance(value, Mapping):
        return ["mapping", sorted([[_plain(key), _plain(item)] for key, item in value.items()], key=json.dumps)]
    if isinstance(value, tuple | list):
        return ["sequence", [_plain(item) for item in value]]
    if isinstance(value, set | frozenset):
        return ["set", sorted([_plain(item) for item in value], key=json.dumps)]
    raise TypeError(_name(value))


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def encode(state: State) -> Iterator[bytes]:
    """Return the content of the state file, piece by piece."""
    digest = hashlib.sha256()
    for piece in _pieces(state):
        digest.update(piece)
        yield piece
    yield _line({"sha256": digest.hexdigest()})


def _pieces(state: State) -> Iterator[bytes]:
    yield _line(
        {
            "format": _FORMAT,
            "version": _VERSION,
            "manager": state.manager,
            "saved": state.saved,
            "sets": state.sets,
        }
    )
    for provider in state.providers:
        yield _line(
            {
                "mechanism": provider.mechanism,
                "fingerprint": provider.fingerprint,
                "known_good": provider.known_good,
                "groups": len(provider.groups),
            }
        )
        groups = iter(provider.groups)
        while batch := [_group(group) for group in islice(groups, _BATCH)]:
            yield _line(batch)


def _group(group: TargetGroup) -> dict[str, object]:
    # By items(), which is quicker than dict() of a mapping that is no dict.
    targets = [dict(target.items()) for target in group.targets]
    return {"source": group.source, "targets": targets, "labels": dict(group.labels.items())}


def _line(value: object) -> bytes:
    # ASCII, because what was discovered may hold surrogates, which UTF-8 has no bytes for.
    return json.dumps(value).encode() + b"\n"


def check_beginning(content: bytes) -> None:
    """Check that a file that begins with ``content`` may be a state file.

    Raises:
      StateError: it is not one.
    """
    if not content.startswith(_BEGINNING):
        raise StateError("it is not a state file of trio-sd" if content else "it is empty")


def decode(file: BinaryIO, manager: str) -> State:
    """Return the state of ``manager`` that a file says.

    Raises:
      StateError: it is not a state file, or one of another manager or of a later version, or damaged.
    """
    first = file.read(len(_BEGINNING))
    check_beginning(first)
    try:
        return _decode(first + file.readline(), file, manager)
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise StateError(f"it is damaged: {type(error).__name__}: {error}") from error


def _decode(first: bytes, lines: Iterable[bytes], manager: str) -> State:
    if not first.endswith(b"\n"):
        raise StateError("it is cut off")
    header = json.loads(first)
    if header["version"] != _VERSION:
        raise StateError(f"it has version {header['version']!r} of the format; this trio-sd reads {_VERSION}")
    if header["manager"] != manager:
        raise StateError(f"it is of the manager {header['manager']!r}, not of {manager!r}")
    digest = hashlib.sha256(first)
    providers: list[SavedProvider] = []
    groups: list[TargetGroup] = []
    due = 0  # groups that must follow
    last = b""
    for line in lines:
        if not line.endswith(b"\n"):
            break
        content = json.loads(line)
        if "sha256" in content:
            last = line
            break
        digest.update(line)
        if due:
            groups += [TargetGroup(group["source"], group["targets"], group["labels"]) for group in content]
            due -= len(content)
        else:
            due, groups = _checked(content["groups"], int), []
            mechanism, known_good = _checked(content["mechanism"], str), _moment(content["known_good"])
            providers.append(SavedProvider(mechanism, _text_or_none(content["fingerprint"]), known_good, groups))
    if not last:
        raise StateError("it is cut off")
    if json.loads(last) != {"sha256": digest.hexdigest()} or due or next(iter(lines), None) is not None:
        raise StateError("it is damaged: its content and its digest differ")
    sets = {name: tuple(_checked(members, list)) for name, members in header["sets"].items()}
    for number in (number for members in sets.values() for number in members):
        if not 0 <= _checked(number, int) < len(providers):
            raise StateError(f"it is damaged: there is no provider {number}")
    return State(manager, _moment(header["saved"]), sets, tuple(providers))


def _checked(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _checked(value, str)


def _moment(value: object) -> float:
    """Return a Unix time."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise TypeError(f"{value!r} is no time")
    return float(value)
