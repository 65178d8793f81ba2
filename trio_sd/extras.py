"""What only some need to have installed."""

from __future__ import annotations

import importlib.util

from .errors import DiscoveryError

__all__ = ["require"]


def require(module: str, what: str, extra: str, *, package: str = "") -> None:
    """Check that ``module`` is installed.

    Args:
      module: the name by which it is imported.
      what: what needs it, at the beginning of a sentence.
      extra: the extra of trio-sd that has it.
      package: what has the module, if that is not called so.

    Raises:
      DiscoveryError: it is not.
    """
    if importlib.util.find_spec(module) is None:
        needed = package or module
        raise DiscoveryError(f"{what} needs {needed}, which is not installed; the extra trio-sd[{extra}] has it")
