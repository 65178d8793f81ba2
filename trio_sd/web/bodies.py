"""Bodies of responses that are made once for each change, however many clients ask for them."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

import trio

from .http_sd import SetsEncoder

__all__ = ["Bodies", "Body"]

_THREADS: Final = 2
_WORTH_A_THREAD: Final = 200  # targets; they take about a millisecond
_SHARE: Final = 10
_WORTH_PACKING: Final = 1_000  # bytes; less fits a packet anyway


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent.

    Attributes:
      content: the bytes.
      packed: the same after gzip; ``None`` if that is not worth the while.
      etag: tells whether a client has it already. Equal content has an equal one, also after a restart.
    """

    content: bytes
    packed: bytes | None
    etag: str

    @classmethod
    def of(cls, content: bytes) -> Body:
        """Return the body with this content."""
        packed = gzip.compress(content, 5, mtime=0) if len(content) >= _WORTH_PACKING else None
        # Weak, because it stands for both forms.
        return cls(content, packed, f'W/"{hashlib.sha256(content).hexdigest()[:32]}"')


@dataclass(slots=True)
class _Kept:
    """The newest body of one kind, and what it was made of."""

    turn: trio.Lock
    encoder: SetsEncoder
    basis: tuple[object, ...] = ()
    body: Body | None = None
    fresh_until: float = -inf


class Bodies:
    """Keeps the newest body of each set, for as long as what it is made of stays the very same objects."""

    def __init__(self) -> None:
        self._kept: dict[str | None, _Kept] = {}
        self._limiter = trio.CapacityLimiter(_THREADS)  # not the application's threads

    async def get(
        self, name: str | None, basis: Sequence[object], encode: Callable[[SetsEncoder], bytes], *, work: int
    ) -> Body:
        """Return the body of a set, made anew if ``basis`` has changed. Those who ask meanwhile wait for it.

        While it changes all the time, it is made anew for a tenth of the time at the most: one that took 10 ms is good
        for another 100 ms.

        Args:
          name: of the set; ``None`` for all.
          basis: immutable objects that the body is made of, and nothing else.
          encode: makes the content of them, with the encoder that made the last one; called in a thread if that is
            much ``work``.
          work: the number of targets.

        Cancelled, it waits until the thread is done, because the encoder is for one thread at a time.
        """
        kept = self._kept.setdefault(name, _Kept(trio.Lock(), SetsEncoder(tell_set=name is None)))
        async with kept.turn:
            began = trio.current_time()
            if kept.body is None or (began >= kept.fresh_until and not _same(kept.basis, basis)):
                make = partial(_made, encode, kept.encoder)
                if work < _WORTH_A_THREAD:
                    kept.body = make()
                else:
                    kept.body = await self._in_thread(make)
                    took = trio.current_time() - began
                    kept.fresh_until = began + took * _SHARE
                kept.basis = tuple(basis)
            return kept.body

    async def _in_thread(self, make: Callable[[], Body]) -> Body:
        return await trio.to_thread.run_sync(make, limiter=self._limiter)

    def keep_only(self, names: Collection[str | None]) -> None:
        """Forget the bodies of all other sets."""
        for name in self._kept.keys() - set(names):
            if not self._kept[name].turn.locked():
                del self._kept[name]


def _made(encode: Callable[[SetsEncoder], bytes], encoder: SetsEncoder) -> Body:
    return Body.of(encode(encoder))


def _same(one: Sequence[object], other: Sequence[object]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
