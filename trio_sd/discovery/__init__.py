"""The mechanisms, one room each, and the registry that knows them all.

To add a mechanism: write a frozen dataclass that derives from :class:`~trio_sd.discoverer.DiscovererConfig`, and the
discoverer that it makes. Then make it known in one of three ways:

- In a distribution of your own, by an entry point of the group ``trio_sd.discoverers``: ``racks =
  "my_package:RacksConfig"`` gives ``racks_sd_configs`` to every configuration read where the distribution is installed.
- In a program, by handing it to :func:`default_registry`: ``default_registry(racks_sd_configs=RacksConfig)``.
- In this package, as a room here and a line in :func:`default_registry`.

Mechanisms never import each other. One with dependencies that only it needs imports them when its discoverer runs.
:mod:`trio_sd.testing` runs a mechanism through the contract.
"""

from __future__ import annotations

import os

from .. import config
from ..discoverer import DiscovererConfig, Registry
from ..limits import Limits
from .entry_points import Mechanisms, declared_entry_points

__all__ = ["default_registry", "load_config"]


def default_registry(**more: type[DiscovererConfig]) -> Registry:
    """Return the mechanisms of this package and of installed distributions, by their keys; made anew for each caller.

    A distribution that declares the entry point ``racks`` in the group ``trio_sd.discoverers`` provides
    ``racks_sd_configs``. It is imported when that key is looked up, and not before. Looking it up raises
    :class:`~trio_sd.errors.ConfigError` if it can't be imported or does not name a configuration of a mechanism, or if
    another distribution declares the same name. One that names a mechanism which is there without it is not used, and
    the log tells so when that key is looked up.

    Args:
      more: mechanisms by their keys, such as ``racks_sd_configs``; they come before all others.
    """
    from .consul import ConsulSDConfig
    from .dns import DNSSDConfig
    from .file import FileSDConfig
    from .http import HTTPSDConfig
    from .static import StaticConfig
    from .zookeeper import NerveSDConfig, ServersetSDConfig

    own: dict[str, type[DiscovererConfig]] = {
        "static_configs": StaticConfig,
        "consul_sd_configs": ConsulSDConfig,
        "dns_sd_configs": DNSSDConfig,
        "file_sd_configs": FileSDConfig,
        "http_sd_configs": HTTPSDConfig,
        "nerve_sd_configs": NerveSDConfig,
        "serverset_sd_configs": ServersetSDConfig,
    }
    return Mechanisms({**own, **more}, declared_entry_points())


def load_config(
    path: str | os.PathLike[str],
    *,
    registry: Registry | None = None,
    limits: Limits = Limits(),
) -> config.Config:
    """Read the configuration file at ``path`` and the files that it includes.

    Blocks for as long as reading takes; :func:`trio_sd.reload.load` does it in a thread.

    Args:
      path: the main file. Relative paths in a file are taken from the directory of that file.
      registry: the mechanisms to know; :func:`default_registry` if ``None``.
      limits: bounds on what is read.

    Raises:
      ConfigError: a file can't be read, or what it says can't be used.
    """
    return config.load_config(path, registry=default_registry() if registry is None else registry, limits=limits)
