"""What ends an answer that goes on by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio
    from starlette.types import Receive

__all__ = ["cancel_when_gone", "cancel_when_set"]


async def cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """Cancel ``scope`` when the client has gone, of which ``receive`` tells."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def cancel_when_set(event: trio.Event, scope: trio.CancelScope) -> None:
    """Cancel ``scope`` when the event is set."""
    await event.wait()
    scope.cancel()
