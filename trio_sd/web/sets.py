"""Answers to ``/sd`` and ``/sd/SET``.

Prometheus takes what http_sd answers for the whole truth, and keeps its old targets when there is no answer. So
nothing is answered of a set while something of it was never heard of, in this process or in the one that left a state
file: it would take targets away that are there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio
from starlette.exceptions import HTTPException

from ..manager import Manager
from ..snapshots import Snapshot
from .bodies import Basis, Bodies, Body

__all__ = ["ServedSets", "unavailable"]

_RETRY: Final = "5"  # seconds
_RELABELING: Final = 20.0  # seconds that an answer waits for it


def unavailable(reason: str) -> HTTPException:
    """Return the answer "ask again in a while"."""
    return HTTPException(503, reason, {"retry-after": _RETRY})


class ServedSets:
    """The sets of one manager.

    Args:
      manager: that one.
      nursery: where relabeling is kept going, once somebody has asked for it.
    """

    def __init__(self, manager: Manager, nursery: trio.Nursery) -> None:
        self._manager = manager
        self._nursery = nursery
        self._bodies = {False: Bodies(), True: Bodies()}
        self._relabeling = False

    async def body(self, name: str | None, *, relabel: bool, partial_: bool) -> Body:
        """Return what is answered.

        Args:
          name: of the set; ``None`` for all of them.
          relabel: whether targets are shown after relabeling.
          partial_: whether to answer though something was never heard of.

        Raises:
          HTTPException: there is no such set, or it is too early to answer.
        """
        base = self._manager.snapshot()
        if name is None and not self._manager.statistics().reloads:
            raise unavailable("no configuration was applied yet")
        if name is not None and name not in base:
            raise HTTPException(404, "there is no such set")
        unheard = _unheard(base, name, partial_)  # at once, and not after waiting for relabeling
        snapshot = base
        if relabel:
            snapshot = await self._relabeled()
            if name is not None and name not in snapshot:
                raise unavailable("this set is not relabeled yet")
            unheard = _unheard(snapshot, name, partial_)  # it may be of a later configuration
        names = list(snapshot) if name is None else [name]
        providers = snapshot.layout.providers
        parts = tuple([snapshot.groups_of(provider) for each in names for provider in providers[each]])
        bodies = self._bodies[relabel]
        bodies.keep_only({None, *snapshot})
        return await bodies.get(
            name,
            Basis(snapshot.revision, snapshot.layout, unheard, parts),
            # Any thread may read a snapshot.
            lambda encoder: encoder.encode({each: snapshot[each] for each in names}),
            work=sum(map(snapshot.target_count, names)),
        )

    async def _relabeled(self) -> Snapshot:
        """Return what relabeling makes of the state of this moment, or of a later one."""
        if not self._relabeling:
            self._relabeling = True
            self._nursery.start_soon(self._keep_relabeling)
        with trio.move_on_after(_RELABELING):
            try:
                async with self._manager.subscribe(relabel=True, name="http") as updates:
                    return (await updates.receive()).snapshot
            except (trio.ClosedResourceError, trio.EndOfChannel):
                raise unavailable("the manager is closed") from None
        raise unavailable("relabeling takes its time")

    async def _keep_relabeling(self) -> None:
        """Subscribe for as long as the application lasts, so that only what changes is relabeled for each request."""
        try:
            with suppress(trio.ClosedResourceError):  # the manager may be closed before the application is
                async with self._manager.subscribe(relabel=True, name="http relabeling") as updates:
                    async for _ in updates:
                        pass
        finally:
            self._relabeling = False


def _unheard(snapshot: Snapshot, name: str | None, partial_: bool) -> tuple[str, ...]:
    """Return the providers that are missing in what is asked for.

    Raises:
      HTTPException: there are such, and who asks did not say that this is all right.
    """
    names = snapshot if name is None else (name,)
    unheard = tuple([provider for each in names for provider in snapshot.unheard(each)])
    if unheard and not partial_:
        raise unavailable(f"nothing was heard yet of {', '.join(unheard[:20])}; ?partial=1 shows what there is")
    return unheard
