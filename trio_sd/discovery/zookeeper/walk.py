"""Reading znodes into a :class:`~.tree.Tree`, level by level: the data of many at once, then the names below them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from .protocol import NO_NODE, Answer, Data, Exists, Read, Refusal
from .tree import Tree

__all__ = ["Walk"]


class _Reader(Protocol):
    async def read(
        self, reads: Sequence[tuple[Read, str]], take: Callable[[Read, str, Answer], None], *, watch: bool
    ) -> None: ...


class Walk:
    """Reads some znodes and what is below them.

    Args:
      session: reads.
      tree: takes what was read.
      roots: where an absent znode is waited for.
      watch: whether each read sets a one-shot watch.
      full: whether to go on below znodes that the tree has read already. If not, what is below them is watched.
    """

    def __init__(self, session: _Reader, tree: Tree, roots: Collection[str], *, watch: bool, full: bool) -> None:
        self._session = session
        self._tree = tree
        self._roots = roots
        self._watch = watch
        self._full = full
        self._next: list[tuple[Read, str]] = []
        self.count = 0
        """How many answers there were."""

    async def run(self, reads: Sequence[tuple[Read, str]]) -> None:
        """Read, and read on below, until there is nothing more.

        When this is cancelled or fails, the tree has taken what was read until then.

        Raises:
          LostError: the connection was lost.
          LateError: an answer did not come in time.
          ProtocolError: an answer can't be understood.
        """
        self._next = list(reads)
        while self._next:
            reads, self._next = self._next, []
            await self._session.read(reads, self._take, watch=self._watch)

    def _take(self, what: Read, path: str, answer: Answer) -> None:
        self.count += 1
        if isinstance(answer, Data):  # nearly all are, and `match` takes twice as long
            if self._may_have_children(answer) and (self._full or not self._tree.has_read(path)):
                self._next.append((Read.CHILDREN, path))
            self._tree.put(path, answer)
            return
        match answer:
            case Exists():  # it was created a moment ago
                self._next.append((Read.DATA, path))
            case Refusal(code) if code != NO_NODE:
                self._tree.refuse(path, answer)
            case Refusal():
                self._tree.remove(path)
                if self._watch and what is not Read.EXISTS and path in self._roots:
                    self._next.append((Read.EXISTS, path))  # the only read that watches what is not there
            case names:
                self._tree.keep_children(path, names)
                below = (f"/{name}" if path == "/" else f"{path}/{name}" for name in names)
                self._next += [(Read.DATA, child) for child in below if self._full or not self._tree.has_read(child)]

    def _may_have_children(self, data: Data) -> bool:
        """Tell whether the names below a znode have to be read, and with ``watch``, watched."""
        return not data.ephemeral if self._watch else data.children > 0
