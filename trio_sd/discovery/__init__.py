"""The mechanisms, one room each, and the registry that knows them all.

To add a mechanism: write a module here with a frozen dataclass that derives from
:class:`~trio_sd.discoverer.DiscovererConfig`, and the discoverer that it makes; then add it to
:func:`default_registry` under its key in the configuration. A mechanism of your own needs no module here: pass
``{**default_registry(), "mine_sd_configs": MyConfig}`` where a registry is taken.

Mechanisms never import each other. One with dependencies that only it needs imports them when its discoverer runs.
"""

from __future__ import annotations

import os
from types import MappingProxyType

from .. import config
from ..discoverer import Registry
from ..limits import Limits

__all__ = ["default_registry", "load_config"]


def default_registry() -> Registry:
    """Return the mechanisms of this package by their keys; an immutable mapping, made anew for each caller."""
    from .consul import ConsulSDConfig
    from .dns import DNSSDConfig
    from .file import FileSDConfig
    from .http import HTTPSDConfig
    from .static import StaticConfig
    from .zookeeper import NerveSDConfig, ServersetSDConfig

    return MappingProxyType(
        {
            "static_configs": StaticConfig,
            "consul_sd_configs": ConsulSDConfig,
            "dns_sd_configs": DNSSDConfig,
            "file_sd_configs": FileSDConfig,
            "http_sd_configs": HTTPSDConfig,
            "nerve_sd_configs": NerveSDConfig,
            "serverset_sd_configs": ServersetSDConfig,
        }
    )


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
      registry: the mechanisms to know; all that trio_sd has if ``None``.
      limits: bounds on what is read.

    Raises:
      ConfigError: a file can't be read, or what it says can't be used.
    """
    return config.load_config(path, registry=default_registry() if registry is None else registry, limits=limits)
