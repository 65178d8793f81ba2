"""What ``/etc/resolv.conf`` says. Pure: no file is opened here.

As in Prometheus, of its options only ``ndots`` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["ResolvConf"]

_NDOTS: Final = "ndots:"
_MOST_NDOTS: Final = 15  # as in the C library


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """Which servers to ask, and for what.

    Attributes:
      servers: addresses.
      search: domains that a name may lie in.
      ndots: a name with so many dots is first looked up as it is.
    """

    servers: tuple[str, ...] = ("127.0.0.1",)
    search: tuple[str, ...] = ()
    ndots: int = 1

    @classmethod
    def parse(cls, text: str) -> ResolvConf:
        """Return what the file says; what nobody knows in it is passed over, as everybody does.

        Without a server it is the one on this machine, see ``resolv.conf(5)``.
        """
        servers: list[str] = []
        search: tuple[str, ...] = ()
        ndots = 1
        for line in text.splitlines():
            if line.startswith((";", "#")):
                continue
            keyword, *values = line.split() or [""]
            if keyword == "nameserver" and values:
                servers.append(values[0])
            elif keyword == "domain" and values:
                search = (values[0],)
            elif keyword == "search":  # whichever of the two is last counts
                search = tuple(values)
            elif keyword == "options":
                # The last one counts, in a line as of lines.
                ndots = next((_ndots(value) for value in reversed(values) if value.startswith(_NDOTS)), ndots)
        return cls(tuple(servers) or cls().servers, search, ndots)

    def candidates(self, name: str) -> Sequence[str]:
        """Return the names to look up for ``name``, one after the other, each with a dot at its end."""
        if name.endswith("."):
            return (name,)
        rooted = f"{name}."
        found = [rooted + domain.strip(".") + "." for domain in self.search if domain.strip(".")]
        return [rooted, *found] if name.count(".") >= self.ndots else [*found, rooted]


def _ndots(option: str) -> int:
    number = option.removeprefix(_NDOTS)
    return min(int(number[:4]), _MOST_NDOTS) if number.isascii() and number.isdigit() else 1
