"""Targets from HTTP endpoints that answer with a JSON list of target groups.

``config`` is what the configuration says, ``discoverer`` asks. What is shared with other mechanisms is elsewhere:
:mod:`trio_sd.polling`, :mod:`trio_sd.http_client` and :mod:`trio_sd.target_lists`.
"""

from __future__ import annotations

from .config import HTTPSDConfig
from .discoverer import HTTPDiscovery

__all__ = ["HTTPDiscovery", "HTTPSDConfig"]
