"""What is discovered, over HTTP: a bridge for Prometheus, metrics, health, and updates as they happen.

:func:`open_application` makes the ASGI application, to embed in a server of one's own; :func:`serve` runs it in a
nursery of one's own. Both need the extra ``serve``. Nothing else of the package imports this one before it is used.
"""

from __future__ import annotations

from .application import open_application
from .guard import Guarding
from .listening import WebOptions, run_web
from .metrics import StatisticsCollector
from .server import ListenAddress, ServeError, serve
from .web_config import WebConfig, load_web_config

__all__ = [
    "Guarding",
    "ListenAddress",
    "ServeError",
    "StatisticsCollector",
    "WebConfig",
    "WebOptions",
    "load_web_config",
    "open_application",
    "run_web",
    "serve",
]
