"""Targets from Consul: the instances of services, with what is known of their health.

``config`` is what the configuration says, ``query`` how Consul is asked and what its index means, ``services`` makes
target groups of answers, and ``discoverer`` watches. Start there.
"""

from __future__ import annotations

from .config import ConsulSDConfig
from .discoverer import ConsulDiscovery

__all__ = ["ConsulDiscovery", "ConsulSDConfig"]
