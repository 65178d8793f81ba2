"""Bodies of responses that are made once for each change, however many clients ask for them."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

import trio

from ..snapshots import Layout
from .http_sd import SetsEncoder

__all__ = ["Basis", "Bodies", "Body"]

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


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """What a body is made of.

    Attributes:
      revision: of the state; a later one has a higher one.
      layout: which providers make up which set.
      unheard: the providers of which nothing was ever heard, so that nothing of them is in the body.
      parts: immutable objects that the body is made of, and nothing else.
    """

    revision: int
    layout: Layout
    unheard: tuple[str, ...]
    parts: tuple[object, ...]

    def tells_as_much_as(self, other: Basis) -> bool:
        """Return whether one body may stand for the other, though what it tells is older or newer.

        A body in which a provider is missing never stands for one that has it: whoever asks would drop its targets.
        Nor does one from before a reload stand for one after it.
        """
        return self.layout is other.layout and self.unheard == other.unheard

    def says_the_same_as(self, other: Basis) -> bool:
        """Return whether both make the same body."""
        return len(self.parts) == len(other.parts) and all(a is b for a, b in zip(self.parts, other.parts, strict=True))


@dataclass(slots=True)
class _Kept:
    """The newest body of one kind, and what it was made of."""

    turn: trio.Lock
    encoder: SetsEncoder
    basis: Basis | None = None
    body: Body | None = None
    fresh_until: float = -inf

    def body_for(self, basis: Basis) -> Body | None:
        """Return the body that is kept, if it will do."""
        if self.basis is None or not self.basis.tells_as_much_as(basis):
            return None
        newer = self.basis.revision >= basis.revision
        if newer or trio.current_time() < self.fresh_until or self.basis.says_the_same_as(basis):
            return self.body
        return None


class Bodies:
    """Keeps the newest body of each set, for as long as what it is made of stays the very same objects."""

    def __init__(self) -> None:
        self._kept: dict[str | None, _Kept] = {}
        self._limiter = trio.CapacityLimiter(_THREADS)  # not the application's threads

    async def get(self, name: str | None, basis: Basis, encode: Callable[[SetsEncoder], bytes], *, work: int) -> Body:
        """Return the body of a set, made anew if ``basis`` has changed. Those who ask meanwhile wait for it.

        While it changes all the time, it is made anew for a tenth of the time at the most: one that took 10 ms is good
        for another 100 ms. That holds only for as long as no provider was heard of for the first time, and no
        configuration was applied.

        Args:
          name: of the set; ``None`` for all.
          basis: what the body is made of.
          encode: makes the content of them, with the encoder that made the last one; called in a thread if that is
            much ``work``.
          work: the number of targets.

        Cancelled, it waits until the thread is done, because the encoder is for one thread at a time.
        """
        kept = self._kept.setdefault(name, _Kept(trio.Lock(), SetsEncoder(tell_set=name is None)))
        async with kept.turn:
            if (body := kept.body_for(basis)) is not None:
                return body
            make, fresh_until = partial(_made, encode, kept.encoder), -inf
            if work < _WORTH_A_THREAD:
                body = make()
            else:
                began = trio.current_time()
                body = await self._in_thread(make)
                fresh_until = began + (trio.current_time() - began) * _SHARE
            # Who waited for its turn may come with an older state: what was made of a newer one is kept.
            if kept.basis is None or kept.basis.revision <= basis.revision:
                kept.basis, kept.body, kept.fresh_until = basis, body, fresh_until
            return body

    async def _in_thread(self, make: Callable[[], Body]) -> Body:
        return await trio.to_thread.run_sync(make, limiter=self._limiter)

    def keep_only(self, names: Collection[str | None]) -> None:
        """Forget the bodies of all other sets."""
        for name in self._kept.keys() - set(names):
            if not self._kept[name].turn.locked():
                del self._kept[name]


def _made(encode: Callable[[SetsEncoder], bytes], encoder: SetsEncoder) -> Body:
    return Body.of(encode(encoder))
