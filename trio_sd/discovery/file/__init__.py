"""Targets from files: JSON and YAML lists of target groups, read again whenever they change.

One responsibility a room: ``config`` (what the configuration says), ``patterns`` (Go's glob language), ``parse``
(bytes to groups), ``findings`` (what a look found, and what to send about it), ``scan`` (the file system, in a worker
thread), ``workers`` (those threads), ``watcher`` (inotify, shared by all), ``discoverer`` (the run loop; start there).
"""

from __future__ import annotations

from typing import Final

from ...discoverer import Mechanism
from .config import FileSDConfig
from .discoverer import FileDiscoverer
from .findings import Findings
from .scan import Request, scan

__all__ = ["MECHANISM", "FileDiscoverer", "FileSDConfig", "Findings", "Request", "scan"]

MECHANISM: Final = Mechanism("file_sd_configs", FileSDConfig)
