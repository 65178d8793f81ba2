"""Service discovery for Trio programs, in the dialect of Prometheus.

Load a configuration with :func:`load_config`, run it with :func:`open_manager`, and take updates from
:meth:`Manager.subscribe`.

The engine is imported at once; what reads configurations, and the mechanisms, when they are first asked for, because
that is half of the time and not everybody has a configuration file.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from .discoverer import (
    Discoverer,
    DiscovererConfig,
    DiscovererOptions,
    DiscovererStatistics,
    Registry,
    ReportsStatistics,
)
from .durations import Duration
from .errors import ConfigError, DiscoveryError, FieldError, Position, TrioSDError
from .limits import Limits
from .manager import Manager, ManagerStatistics, SetStatistics, open_manager
from .provider import Backoff, Provider, ProviderStatistics
from .relabeled import RelabelStatistics
from .resources import Resources
from .set_configs import Labeling, SetConfigs
from .snapshots import Changes, SetChanges, Snapshot, Update
from .state_file import StateFileStatistics
from .store import TargetStore
from .subscription import Subscription, SubscriptionStatistics, Throttle
from .targets import Labels, TargetGroup, join_host_port

if TYPE_CHECKING:
    from .config import AlertmanagerSection, Config, ScrapeJob
    from .discovery import default_registry, load_config
    from .discovery.consul import ConsulSDConfig
    from .discovery.dns import DNSSDConfig
    from .discovery.file import FileSDConfig
    from .discovery.http import HTTPSDConfig
    from .discovery.static import StaticConfig
    from .discovery.zookeeper import NerveSDConfig, ServersetSDConfig
    from .http_client import HTTPClient, HTTPError, shared_http_client
    from .http_config import HTTPClientConfig
    from .outputs.file_sd import TargetFiles, TargetFilesStatistics
    from .polling import Polling, PollingDiscoverer
    from .reload import Reloader, ReloadStatistics, reload_on_sighup

__all__ = [
    "AlertmanagerSection",
    "Backoff",
    "Changes",
    "Config",
    "ConfigError",
    "ConsulSDConfig",
    "DNSSDConfig",
    "Discoverer",
    "DiscovererConfig",
    "DiscovererOptions",
    "DiscovererStatistics",
    "DiscoveryError",
    "Duration",
    "FieldError",
    "FileSDConfig",
    "HTTPClient",
    "HTTPClientConfig",
    "HTTPError",
    "HTTPSDConfig",
    "Labeling",
    "Labels",
    "Limits",
    "Manager",
    "ManagerStatistics",
    "NerveSDConfig",
    "Polling",
    "PollingDiscoverer",
    "Position",
    "Provider",
    "ProviderStatistics",
    "Registry",
    "RelabelStatistics",
    "ReloadStatistics",
    "Reloader",
    "ReportsStatistics",
    "Resources",
    "ScrapeJob",
    "ServersetSDConfig",
    "SetChanges",
    "SetConfigs",
    "SetStatistics",
    "Snapshot",
    "StateFileStatistics",
    "StaticConfig",
    "Subscription",
    "SubscriptionStatistics",
    "TargetFiles",
    "TargetFilesStatistics",
    "TargetGroup",
    "TargetStore",
    "Throttle",
    "TrioSDError",
    "Update",
    "default_registry",
    "join_host_port",
    "load_config",
    "open_manager",
    "reload_on_sighup",
    "shared_http_client",
]

__version__ = "0.1.0"

_LATER: Final = MappingProxyType(
    {
        "AlertmanagerSection": ".config",
        "Config": ".config",
        "ScrapeJob": ".config",
        "ConsulSDConfig": ".discovery.consul",
        "DNSSDConfig": ".discovery.dns",
        "FileSDConfig": ".discovery.file",
        "HTTPClient": ".http_client",
        "HTTPClientConfig": ".http_config",
        "HTTPError": ".http_client",
        "HTTPSDConfig": ".discovery.http",
        "NerveSDConfig": ".discovery.zookeeper",
        "Polling": ".polling",
        "PollingDiscoverer": ".polling",
        "ReloadStatistics": ".reload",
        "Reloader": ".reload",
        "ServersetSDConfig": ".discovery.zookeeper",
        "StaticConfig": ".discovery.static",
        "TargetFiles": ".outputs.file_sd",
        "TargetFilesStatistics": ".outputs.file_sd",
        "default_registry": ".discovery",
        "load_config": ".discovery",
        "reload_on_sighup": ".reload",
        "shared_http_client": ".http_client",
    }
)
"""Where each name that is imported late comes from."""


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
