"""Asks an HTTP endpoint for its target groups, again and again.

An answer that says that nothing has changed costs next to nothing: by the status 304, where the server has given the
one before a tag or a date, or by being what it was. Of one that differs in part, what differs is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from ...errors import ConfigError, DiscoveryError
from ...extras import require
from ...http_config import HTTPClientConfig, without_password
from ...limits import Limits
from ...messages import quote
from ...polling import Polling
from ...target_lists import Origin, Parsed, parse_json
from ...targets import META_LABEL_PREFIX, TargetGroup

if TYPE_CHECKING:
    from ...http_client import HTTPClient

__all__ = ["URL_LABEL", "HTTPDiscovery"]

URL_LABEL: Final = META_LABEL_PREFIX + "url"

_CONTENT_TYPE: Final = re.compile(r'application/json(;\s*charset=("utf-8"|utf-8))?', re.IGNORECASE | re.ASCII)


class HTTPDiscovery:
    """Asks one endpoint.

    Args:
      url: where to ask.
      interval: seconds from one request to the next; the endpoint is told. An answer may take as long.
      config: how to ask.
    """

    def __init__(self, url: str, interval: float, config: HTTPClientConfig) -> None:
        self._url = url
        self._shown = without_password(url)
        self._interval = interval
        self._config = config
        self._headers = (
            ("Accept", "application/json"),
            ("X-Prometheus-Refresh-Interval-Seconds", f"{interval:.3f}".rstrip("0").rstrip(".")),
        )
        self._validators: Sequence[tuple[str, str]] = ()  # what is sent back, for an answer to say "as it was"
        self._last = _Decoded(b"", Parsed(()))

    async def poll(self, polling: Polling) -> None:
        """Ask until cancelled. Cancellation leaves no connection that others do not use."""
        require("httpcore2", "HTTP discovery", "http")
        from ...http_client import shared_http_client

        polling.add(self._shown)
        async with shared_http_client(polling.options.resources, self._config) as client:
            look = partial(self._look, polling, client)
            # The client gives up by itself after the interval, and knows why; the loop makes sure.
            await polling.poll(self._shown, look, interval=self._interval, deadline=self._interval + 1)

    async def _look(self, polling: Polling, client: HTTPClient) -> Sequence[TargetGroup] | None:
        limits = polling.options.limits
        answer = await client.get(
            self._url,
            headers=(*self._headers, *self._validators),
            deadline=self._interval,
            max_bytes=limits.http_body_bytes,
        )
        if answer.status == 304 and self._validators:
            polling.counters["not_modified"] += 1
            return None
        if answer.status != 200:
            raise answer.unexpected()
        content_type = answer.header("content-type").strip()
        if not _CONTENT_TYPE.fullmatch(content_type):
            raise DiscoveryError(f"unsupported content type {quote(content_type)}, expected application/json")
        decoded = await answer.decoded(partial(_decode, url=self._shown, limits=limits, before=self._last))
        self._validators = tuple(
            (name, value)
            for name, value in (
                ("If-None-Match", answer.header("etag")),
                ("If-Modified-Since", answer.header("last-modified")),
            )
            if value
        )
        same, self._last = decoded is self._last, decoded
        return None if same else decoded.parsed.groups


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What an answer has said."""

    digest: bytes
    parsed: Parsed


def _decode(body: bytes, *, url: str, limits: Limits, before: _Decoded) -> _Decoded:
    """Return what ``body`` says: ``before`` itself, if it says the same.

    Raises:
      DiscoveryError: it is no list of target groups.
    """
    digest = sha256(body).digest()
    if digest == before.digest:
        return before
    try:
        return _Decoded(digest, parse_json(body, Origin(url, URL_LABEL), limits, before.parsed))
    except ConfigError as error:
        at = error.position
        where = f"line {at.line}, column {at.column}: " if at else ""
        place = f"{error.path}: " if error.path else ""
        raise DiscoveryError(f"{where}{place}{error.message}") from None
