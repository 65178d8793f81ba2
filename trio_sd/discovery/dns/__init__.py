"""Targets from DNS: records of a type, of names that are looked up again and again.

``config`` is what the configuration says, ``resolv_conf`` which servers to ask and for what, ``lookup`` asks,
``records`` makes targets of answers, and ``discoverer`` ties them together.
"""

from __future__ import annotations

from .config import DNSSDConfig
from .discoverer import DNSDiscovery

__all__ = ["DNSDiscovery", "DNSSDConfig"]
