"""Mechanisms of other distributions, which these declare as entry points of the group ``trio_sd.discoverers``."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from ..config.decode import decode
from ..config.nodes import parse_yaml
from ..discoverer import DiscovererConfig, Registry
from ..errors import ConfigError
from ..limits import Limits
from ..messages import printable, quote

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["Mechanisms", "declared_entry_points"]

logger = logging.getLogger(__name__)

_GROUP: Final = "trio_sd.discoverers"
_SUFFIX: Final = "_sd_configs"
_SEPARATORS: Final = re.compile("[-_.]+")  # all the same in the name of a distribution


class Mechanisms(Mapping[str, type[DiscovererConfig]]):
    """Mechanisms that are there, and entry points that are loaded when they are looked up.

    Args:
      loaded: those that are there.
      declared: entry points by the keys that they provide.
    """

    def __init__(self, loaded: Registry, declared: Mapping[str, tuple[EntryPoint, ...]]) -> None:
        self._loaded = dict(loaded)
        self._declared = declared
        self._unused = {key: declared[key] for key in declared if key in loaded}  # the log has yet to tell of them

    def __getitem__(self, key: str) -> type[DiscovererConfig]:
        if key not in self._loaded:
            self._loaded[key] = _load(self._declared[key])
        found = self._loaded[key]
        for entry in self._unused.pop(key, ()):
            logger.warning("%s is not used: %s is %s.%s", _told(entry), key, found.__module__, found.__qualname__)
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._loaded or key in self._declared

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._loaded, *self._declared]))

    def __len__(self) -> int:
        return len(self._loaded.keys() | self._declared.keys())


def declared_entry_points() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of all installed distributions by the keys that they provide, in alphabetical order.

    Only metadata that mention the group are parsed. So what has nothing to do with this costs little, and does no harm
    if it is broken.
    """
    from importlib.metadata import distributions  # costs 8 ms

    found: dict[str, list[EntryPoint]] = {}
    seen: set[str] = set()
    for distribution in distributions():
        name = "a distribution"
        try:
            if _GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name = distribution.name
            entries = distribution.entry_points.select(group=_GROUP)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # what parsing them may stumble over
            place = distribution.locate_file("")
            logger.warning("the entry points of %s in %s are not used: can't parse them: %s", name, place, error)
            continue
        normal = _SEPARATORS.sub("-", name).lower()
        if normal in seen:  # as with modules, the first one on the path hides the others
            continue
        seen.add(normal)
        for entry in entries:
            found.setdefault(f"{entry.name}{_SUFFIX}", []).append(entry)
    return {key: tuple(found[key]) for key in sorted(found)}


def _load(entries: tuple[EntryPoint, ...]) -> type[DiscovererConfig]:
    """Return what the only one of ``entries`` names.

    Raises:
      ConfigError: there are several, or it can't be used.
    """
    entry = entries[0]
    if len(entries) > 1:
        raise ConfigError(f"more than one distribution provides this: {', '.join(map(_told, entries))}")
    try:
        loaded = entry.load()
        reason = _unfit(loaded)
    except (Exception, SystemExit) as error:  # importing a module runs whatever stands in it
        raise ConfigError(f"{_told(entry)} can't be loaded: {type(error).__name__}: {error}") from error
    if reason:
        raise ConfigError(f"{_told(entry)} can't be used: {reason}")
    return cast("type[DiscovererConfig]", loaded)


def _told(entry: EntryPoint) -> str:
    assert entry.dist is not None  # it was found in one
    return f"entry point {printable(entry.name)} = {quote(entry.value)} of {entry.dist.name} {entry.dist.version}"


def _unfit(cls: object) -> str | None:
    """Return why ``cls`` is no configuration of a mechanism, or ``None`` if it is one.

    Raises:
      Exception: a field has a type that can't be decoded.
    """
    if not (isinstance(cls, type) and issubclass(cls, DiscovererConfig)):
        return "it is no class that derives from trio_sd.DiscovererConfig"
    mechanism: object = getattr(cls, "mechanism", None)
    if not (isinstance(mechanism, str) and mechanism):
        return f"{cls.__name__} has no mechanism; expected a class attribute with its name"
    if inspect.isabstract(cls):
        return f"{cls.__name__} lacks {', '.join(sorted(cls.__abstractmethods__))}"
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is None:
        return f"{cls.__name__} is no dataclass"
    if not parameters.frozen:
        return f"{cls.__name__} is no frozen dataclass"
    if cls.__hash__ in (None, object.__hash__):
        return f"{cls.__name__} is not compared and hashed by its fields"
    if not isinstance(inspect.getattr_static(cls, "decode", None), classmethod):
        nothing = parse_yaml(b"{}", file="", limits=Limits())
        assert nothing is not None
        with suppress(ConfigError):  # a field that is required
            decode(nothing, cls, check=lambda _: None)
    return None
