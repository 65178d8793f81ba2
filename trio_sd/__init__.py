"""Service discovery for Trio programs, in the dialect of Prometheus.

Load a configuration with :func:`load_config`, run it with :func:`open_manager`, and take updates from
:meth:`Manager.subscribe`.
"""

from __future__ import annotations

from .config import Config, Duration
from .discoverer import (
    Discoverer,
    DiscovererConfig,
    DiscovererOptions,
    DiscovererStatistics,
    Mechanism,
    Registry,
    ReportsStatistics,
)
from .discovery import default_registry, load_config
from .discovery.file import FileSDConfig
from .discovery.static import StaticConfig
from .errors import ConfigError, DiscoveryError, FieldError, Position, TrioSDError
from .limits import Limits
from .manager import Manager, ManagerStatistics, SetStatistics, open_manager
from .provider import Backoff, Provider, ProviderStatistics
from .reload import Reloader, ReloadStatistics, reload_on_sighup
from .resources import Resources
from .store import Changes, SetChanges, Snapshot, TargetStore, Update
from .subscription import Subscription, SubscriptionStatistics, Throttle
from .targets import Labels, TargetGroup, join_host_port

__all__ = [
    "Backoff",
    "Changes",
    "Config",
    "ConfigError",
    "Discoverer",
    "DiscovererConfig",
    "DiscovererOptions",
    "DiscovererStatistics",
    "DiscoveryError",
    "Duration",
    "FieldError",
    "FileSDConfig",
    "Labels",
    "Limits",
    "Manager",
    "ManagerStatistics",
    "Mechanism",
    "Position",
    "Provider",
    "ProviderStatistics",
    "Registry",
    "ReloadStatistics",
    "Reloader",
    "ReportsStatistics",
    "Resources",
    "SetChanges",
    "SetStatistics",
    "Snapshot",
    "StaticConfig",
    "Subscription",
    "SubscriptionStatistics",
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
]

__version__ = "0.1.0"
