"""What the configuration says about discovery from HTTP endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final
from urllib.parse import urlsplit

from ...discoverer import DiscovererConfig, DiscovererOptions
from ...durations import Duration
from ...errors import FieldError
from ...http_config import HTTPClientConfig, check_url, without_password
from ...polling import PollingDiscoverer
from .discoverer import HTTPDiscovery

__all__ = ["HTTPSDConfig"]

_REFRESH_INTERVAL: Final = Duration.of("60s")


@dataclass(frozen=True, kw_only=True)
class HTTPSDConfig(HTTPClientConfig, DiscovererConfig):
    """One item of ``http_sd_configs``.

    Attributes: those of :class:`~trio_sd.http_config.HTTPClientConfig`, and
      url: where to ask. Its text is the label ``__meta_url``.
      refresh_interval: how often to ask, and how long an answer may take.
    """

    mechanism: ClassVar[str] = "http"

    url: str = ""
    refresh_interval: Duration = _REFRESH_INTERVAL

    def validate(self) -> None:
        """Check the URL, the interval, and how to ask.

        Raises:
          FieldError: there is no URL of HTTP, the interval is zero, or the keys of the client can't be used.
        """
        if not self.url:
            raise FieldError("url", "URL is missing")
        try:
            check_url(self.url)
            url = urlsplit(self.url)
        except ValueError as error:
            raise FieldError("url", str(error)) from None
        if url.scheme not in ("http", "https"):
            raise FieldError("url", "URL scheme must be 'http' or 'https'")
        if not url.hostname:
            raise FieldError("url", "host is missing in URL")
        if not self.refresh_interval.seconds > 0:
            raise FieldError("refresh_interval", "the refresh interval must be greater than zero")
        super().validate()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(url={without_password(self.url)!r}, refresh_interval={self.refresh_interval})"

    def discoverer(self, options: DiscovererOptions) -> PollingDiscoverer:
        """Return a new discoverer that asks. Opens nothing."""
        discovery = HTTPDiscovery(self.url, self.refresh_interval.seconds, self)
        return PollingDiscoverer(options, discovery.poll)
