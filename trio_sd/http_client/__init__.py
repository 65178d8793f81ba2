"""The HTTP client of all mechanisms that ask servers. Start in ``client``.

``network`` opens connections, ``connections`` keeps them for the next request, ``client`` asks.
"""

from __future__ import annotations

from .client import Answer, HTTPClient, HTTPError, open_http_client, shared_http_client

__all__ = ["Answer", "HTTPClient", "HTTPError", "open_http_client", "shared_http_client"]
