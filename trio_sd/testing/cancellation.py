"""Cancelling something at every step that it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio
import trio.testing

__all__ = ["CancelAfter", "cancel_everywhere", "living_tasks"]


class CancelAfter(trio.abc.Instrument):
    """Cancels ``scope`` once the task that made this has taken ``steps`` steps; use it in a ``with`` block.

    Run something with 1 step, 2 steps and so on until it is no longer cancelled, and every await of it was cancelled.
    """

    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope
        self._task = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one step."""
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()

    def __enter__(self) -> CancelAfter:
        trio.lowlevel.add_instrument(self)
        return self

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self)


async def cancel_everywhere(
    scenario: Callable[[], Awaitable[None]], check: Callable[[bool], None] = lambda completed: None
) -> int:
    """Run ``scenario`` again and again, cancelled one step later each time, until it completes; return how often.

    So every await of it is cancelled once. After each run no task may live that did not before the first, by the names
    of tasks, and ``check`` is called.

    Args:
      scenario: what to run. It must not swallow its cancellation.
      check: looks at what the run has left behind; told whether it completed.

    Raises:
      AssertionError: a task outlived its run.
    """
    steps = 0
    completed = False
    before = living_tasks()
    while not completed:
        steps += 1
        with trio.CancelScope() as scope, CancelAfter(steps, scope):
            await scenario()
        completed = not scope.cancelled_caught
        await trio.testing.wait_all_tasks_blocked()
        if left := living_tasks() - before:
            raise AssertionError(f"cancelled after {steps} steps, it left behind: {', '.join(left.elements())}")
        check(completed)
    return steps


def living_tasks() -> Counter[str]:
    """Return how many tasks of each name live in this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found: Counter[str] = Counter()
    ahead = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
    while ahead:
        task = ahead.pop()
        found[task.name] += 1
        ahead += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found
