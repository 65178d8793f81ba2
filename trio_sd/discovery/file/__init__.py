"""Targets from files: JSON and YAML lists of target groups, read again whenever they change.

Each module has one job: ``config`` is what the configuration says, ``patterns`` is Go's glob language, ``parse`` makes
groups of bytes, ``scan`` goes through the file system in a worker thread, ``result`` is what a scan found and what to
send because of it, ``workers`` runs those threads, ``watcher`` is inotify, shared by all discoverers, and
``discoverer`` is the loop that ties them together. Start there.
"""

from __future__ import annotations

from .config import FileSDConfig
from .discoverer import FileDiscoverer

__all__ = ["FileDiscoverer", "FileSDConfig"]
