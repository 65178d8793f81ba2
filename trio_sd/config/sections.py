"""The sections of a configuration that are not about discovery: read to refuse what Prometheus refuses, and not kept.

A mistake in any of them keeps Prometheus from loading the file. It must keep the engine from it as well, or the two run
different configurations. The rules are those of ``config/config.go`` in Prometheus, and of the packages
``azuread``, ``googleiam`` and ``sigv4``. ``SigV4`` is also part of a section about Alertmanagers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final, Literal, Self, TypeAlias

from ..durations import Duration
from ..errors import FieldError
from ..http_config import RESERVED_HEADERS, HTTPClientConfig, check_url
from ..messages import printable, quote
from ..relabel import NameScheme
from ..secrets import Secret
from ..tls import TLSConfig
from .decode import IGNORED, Ignored, decode
from .groups import decode_labels
from .nodes import MappingNode, Node
from .shared import Count, Size, relabel_rules, sections_of, value_of

__all__ = ["SigV4", "check_other_sections"]

_Headers: TypeAlias = Mapping[str, Secret]  # no secrets to Prometheus, but tokens are written there

_NULL_IS_EMPTY: Final = MappingProxyType({"null": "empty"})  # as in Go: `max_shards:` without a value is zero
_NO_SECRET: Final = Secret()
_NO_TIME: Final = Duration()
_NO_COUNT: Final = Count()
_NO_SIZE: Final = Size()
_NO_TLS: Final = TLSConfig()
_MIN_BACKOFF: Final = Duration.of("30ms")
_MAX_BACKOFF: Final = Duration.of("5s")

_RESERVED_FOR_REMOTE: Final = RESERVED_HEADERS - {"authorization", "x-prometheus-scrape-timeout-seconds"}
_MESSAGES: Final = ("prometheus.WriteRequest", "io.prometheus.write.v2.Request")
_CHUNK_ENCODINGS: Final = ("xor", "xor2")
_COMPRESSION: Final = "gzip"
_TRANSLATION: Final = ("UnderscoreEscapingWithSuffixes", "UnderscoreEscapingWithoutSuffixes")
_UTF8_TRANSLATION: Final = ("NoTranslation", "NoUTF8EscapingWithSuffixes")
_CLOUDS: Final = ("AzureChina", "AzureGovernment", "AzurePublic")
_SCOPE: Final = re.compile(r"[\w\s:/.-]+", re.ASCII)
_HEX: Final = "[0-9a-fA-F]"
_UUID: Final = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_ANY_UUID: Final = re.compile(rf"(?:[uU][rR][nN]:[uU][uU][iI][dD]:)?{_UUID}|\{{{_UUID}\}}|{_HEX}{{32}}")


def check_other_sections(root: Node, scheme: NameScheme) -> None:
    """Check every section of a file that is not about discovery.

    Args:
      root: the whole file.
      scheme: which names of labels are valid, as ``global`` says.

    Raises:
      ConfigError: Prometheus refuses one of them.
    """
    if type(root) is not MappingNode:
        return
    found = decode(root, _OtherSections, elsewhere={key.text for key, _ in root.entries})
    for path, node in sections_of(root.get("remote_write"), "remote_write"):
        if type(node) is MappingNode:
            relabel_rules(node, path, "write_relabel_configs", "relabeling rule in remote write config", scheme)
    if scheme == "legacy" and found.otlp is not None and found.otlp.translation_strategy in _UTF8_TRANSLATION:
        place = value_of(root.get("otlp"), "translation_strategy") or root
        strategy = quote(found.otlp.translation_strategy)
        message = f"OTLP translation strategy {strategy} is not allowed when UTF8 is disabled"
        raise place.error(message, "otlp.translation_strategy")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigV4:
    """A section ``sigv4``: how to sign requests for AWS.

    Attributes:
      region: the region; what the environment says if empty.
      access_key: the key's name.
      secret_key: the key.
      profile: which of the profiles in AWS's own files to use.
      role_arn: the role to take on.
      external_id: what to show when taking it on.
      use_fips_sts_endpoint: whether to take it on at an endpoint by FIPS.
      service_name: the service to sign for.
    """

    region: str = ""
    access_key: str = ""
    secret_key: Secret = _NO_SECRET
    profile: str = ""
    role_arn: str = ""
    external_id: str = ""
    use_fips_sts_endpoint: bool = False
    service_name: str = ""

    def validate(self) -> None:
        """Check that the keys go together.

        Raises:
          FieldError: they do not.
        """
        if bool(self.access_key) != bool(self.secret_key):
            message = (
                "must provide a AWS SigV4 Access key and Secret Key if credentials are specified in the SigV4 config"
            )
            raise FieldError("access_key" if self.access_key else "secret_key", message)
        if self.external_id and not self.role_arn:
            raise FieldError("external_id", "external_id can only be used with role_arn")


@dataclass(frozen=True, kw_only=True)
class _Remote(HTTPClientConfig):
    """What ``remote_write`` and ``remote_read`` both have."""

    kind: ClassVar[str]

    url: Secret | None = None  # which may hold a password
    remote_timeout: Duration = _NO_TIME
    headers: _Headers | None = None
    name: str = ""

    def validate(self) -> None:
        if self.url is None:
            raise FieldError("url", f"url for {self.kind} is empty")
        try:
            check_url(self.url.reveal())
        except ValueError as error:
            raise FieldError("url", str(error)) from None
        _check_headers(
            self.headers,
            "authorization header must be changed via the basic_auth, authorization, oauth2, sigv4, azuread or "
            "google_iam parameter",
        )
        super().validate()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queue:
    capacity: int = field(default=10_000, metadata=_NULL_IS_EMPTY)
    max_shards: int = field(default=50, metadata=_NULL_IS_EMPTY)
    min_shards: int = field(default=1, metadata=_NULL_IS_EMPTY)
    max_samples_per_send: int = field(default=2000, metadata=_NULL_IS_EMPTY)
    batch_send_deadline: Duration = _NO_TIME
    min_backoff: Duration = field(default=_MIN_BACKOFF, metadata=_NULL_IS_EMPTY)
    max_backoff: Duration = field(default=_MAX_BACKOFF, metadata=_NULL_IS_EMPTY)
    retry_on_http_429: bool = False
    sample_age_limit: Duration = _NO_TIME

    def validate(self) -> None:
        for name in "max_shards", "min_shards", "max_samples_per_send", "capacity":
            if getattr(self, name) <= 0:
                raise FieldError(name, f"remote write queue {name} must be positive")
        if self.min_shards > self.max_shards:
            raise FieldError("min_shards", "remote write queue min_shards must not be greater than max_shards")
        if self.max_backoff < self.min_backoff:
            raise FieldError("max_backoff", "remote write queue max_backoff must not be less than min_backoff")


_DEFAULT_QUEUE: Final = _Queue()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metadata:
    send: bool = True
    send_interval: Duration = _NO_TIME
    max_samples_per_send: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _ManagedIdentity:
    client_id: str = ""

    def validate(self) -> None:
        _check_azure(self, "Managed Identity", uuids=("client_id",))


@dataclass(frozen=True, slots=True, kw_only=True)
class _WorkloadIdentity:
    client_id: str = ""
    tenant_id: str = ""
    token_file_path: str = ""

    def validate(self) -> None:
        ids = "client_id", "tenant_id"
        _check_azure(self, "Workload Identity", required=ids, uuids=ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class _AzureOAuth:
    client_id: str = ""
    client_secret: Secret = _NO_SECRET
    tenant_id: str = ""

    def validate(self) -> None:
        _check_azure(self, "OAuth", required=("client_id", "client_secret", "tenant_id"), uuids=("client_id",))


@dataclass(frozen=True, slots=True, kw_only=True)
class _AzureSDK:
    tenant_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _AzureCertificate:
    client_id: str = ""
    tenant_id: str = ""
    certificate_path: str = ""
    certificate_key_path: str = ""
    certificate_password: Secret = _NO_SECRET
    send_certificate_chain: bool = False

    def validate(self) -> None:
        required = "client_id", "tenant_id", "certificate_path"
        _check_azure(self, "Certificate", required=required, uuids=("client_id",))


@dataclass(frozen=True, slots=True, kw_only=True)
class _AzureAD:
    managed_identity: _ManagedIdentity | None = None
    workload_identity: _WorkloadIdentity | None = None
    oauth: _AzureOAuth | None = None
    sdk: _AzureSDK | None = None
    certificate: _AzureCertificate | None = None
    cloud: str = ""
    scope: str = ""

    def validate(self) -> None:
        if self.cloud and self.cloud not in _CLOUDS:
            message = f"must provide a cloud in the Azure AD config, found {quote(self.cloud)}"
            raise FieldError("cloud", f"{message}, expected one of: {', '.join(_CLOUDS)}")
        methods = self.managed_identity, self.workload_identity, self.oauth, self.sdk, self.certificate
        given = sum(method is not None for method in methods)
        if not given:
            raise FieldError(
                None,
                "must provide an Azure Managed Identity, Azure Workload Identity, Azure OAuth, Azure Certificate or "
                "Azure SDK in the Azure AD config",
            )
        if given > 1:
            raise FieldError(None, "cannot provide multiple authentication methods in the Azure AD config")
        if self.scope and not _SCOPE.fullmatch(self.scope):
            raise FieldError("scope", "the provided scope contains invalid characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class _GoogleIAM:
    credentials_file: str = ""


@dataclass(frozen=True, kw_only=True)
class _RemoteWrite(_Remote):
    kind: ClassVar[str] = "remote_write"

    write_relabel_configs: Ignored = IGNORED  # read where the scheme of label names is known
    send_exemplars: bool = False
    send_native_histograms: bool = False
    round_robin_dns: bool = False
    protobuf_message: str = field(default=_MESSAGES[0], metadata=_NULL_IS_EMPTY)
    failed_request_logging: bool = False
    queue_config: _Queue | None = field(default=_DEFAULT_QUEUE, metadata=_NULL_IS_EMPTY)
    metadata_config: _Metadata | None = None
    sigv4: SigV4 | None = None
    azuread: _AzureAD | None = None
    google_iam: _GoogleIAM | None = None

    def validate(self) -> None:
        super().validate()
        if self.protobuf_message not in _MESSAGES:
            raise FieldError(
                "protobuf_message",
                "invalid protobuf_message value: unknown type for remote write protobuf message "
                f"{printable(self.protobuf_message)}, supported: {', '.join(_MESSAGES)}",
            )
        if self.queue_config is None:  # `queue_config:` without a value makes all of it zero
            raise FieldError("queue_config", "remote write queue max_shards must be positive, found null")
        others = {"sigv4": self.sigv4, "azuread": self.azuread, "google_iam": self.google_iam}
        given = [*self.authentication, *(name for name, section in others.items() if section is not None)]
        if len(given) > 1:
            raise FieldError(
                given[-1],
                "at most one of basic_auth, authorization, oauth2, sigv4, azuread or google_iam must be configured. "
                f"Currently configured: {', '.join(given)}",
            )


class _Matchers:
    """Label names and values; only checked."""

    @classmethod
    def decode(cls, node: Node, path: str) -> Self:
        decode_labels(node, path, any_name=True)
        return cls()


@dataclass(frozen=True, kw_only=True)
class _RemoteRead(_Remote):
    kind: ClassVar[str] = "remote_read"

    chunked_read_limit: Count = _NO_COUNT
    read_recent: bool = False
    required_matchers: _Matchers | None = None
    filter_external_labels: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Retention:
    time: Duration = _NO_TIME
    size: Size = _NO_SIZE
    percentage: float = 0

    def validate(self) -> None:
        if self.size < 0:
            message = f"'storage.tsdb.retention.size' must be greater than or equal to 0, got {self.size} bytes"
            raise FieldError("size", message)
        if self.percentage < 0 or self.percentage > 100:
            message = f"'storage.tsdb.retention.percentage' must be in the range [0, 100], got {self.percentage:g}"
            raise FieldError("percentage", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ChunkEncoding:
    floats: str = ""

    def validate(self) -> None:
        if self.floats and self.floats not in _CHUNK_ENCODINGS:
            message = (
                "'storage.tsdb.chunk_encoding.floats' must be 'xor' or 'xor2', or the field must be omitted entirely, "
                f"got {quote(self.floats)}"
            )
            raise FieldError("floats", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class _TSDB:
    out_of_order_time_window: Duration = _NO_TIME
    stale_series_compaction_threshold: float = 0
    chunk_encoding: _ChunkEncoding | None = None
    retention: _Retention | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exemplars:
    max_exemplars: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Storage:
    tsdb: _TSDB | None = None
    exemplars: _Exemplars | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tracing:
    client_type: Literal["http", "grpc"] = "grpc"
    endpoint: str = ""
    sampling_fraction: float = 0
    insecure: bool = False
    tls_config: TLSConfig = _NO_TLS
    headers: _Headers | None = None
    compression: str = ""
    timeout: Duration = _NO_TIME

    def validate(self) -> None:
        _check_headers(self.headers, "custom authorization header configuration is not yet supported")
        if not self.endpoint:
            raise FieldError("endpoint", "tracing endpoint must be set")
        if self.compression and self.compression != _COMPRESSION:
            message = f"invalid compression type {printable(self.compression)} provided, valid options: {_COMPRESSION}"
            raise FieldError("compression", message)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runtime:
    gogc: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _OTLP:
    promote_all_resource_attributes: bool = False
    promote_resource_attributes: tuple[str, ...] = ()
    ignore_resource_attributes: tuple[str, ...] = ()
    translation_strategy: str = ""
    keep_identifying_resource_attributes: bool = False
    convert_histograms_to_nhcb: bool = False
    promote_scope_metadata: bool = False
    label_name_underscore_sanitization: bool = True
    label_name_preserve_multiple_underscores: bool = True

    def validate(self) -> None:
        if self.promote_all_resource_attributes and self.promote_resource_attributes:
            raise FieldError(
                "promote_resource_attributes",
                "'promote_all_resource_attributes' and 'promote_resource_attributes' cannot be configured "
                "simultaneously",
            )
        if self.ignore_resource_attributes and not self.promote_all_resource_attributes:
            raise FieldError(
                "ignore_resource_attributes",
                "'ignore_resource_attributes' cannot be configured unless 'promote_all_resource_attributes' is true",
            )
        _check_attributes("promote_resource_attributes", self.promote_resource_attributes, "promoted")
        _check_attributes("ignore_resource_attributes", self.ignore_resource_attributes, "ignored")
        strategy = self.translation_strategy
        if strategy and strategy not in (*_TRANSLATION, *_UTF8_TRANSLATION):
            message = f"unsupported OTLP translation strategy {quote(strategy)}; expected one of: "
            raise FieldError("translation_strategy", message + ", ".join((*_TRANSLATION, *_UTF8_TRANSLATION)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _OtherSections:
    runtime: _Runtime | None = None
    storage: _Storage | None = None
    tracing: _Tracing | None = None
    otlp: _OTLP | None = None
    remote_write: tuple[_RemoteWrite | None, ...] = ()
    remote_read: tuple[_RemoteRead | None, ...] = ()

    def validate(self) -> None:
        _check_names("remote_write", self.remote_write)
        _check_names("remote_read", self.remote_read)


def _check_names(key: str, remotes: Sequence[_Remote | None]) -> None:
    """Refuse null for a section, and a name that another section has; many may be without one."""
    kind = key.replace("_", " ")
    names = set()
    for index, remote in enumerate(remotes):
        if remote is None:
            raise FieldError((key, index), f"empty or null {kind} config section")
        if remote.name in names:
            raise FieldError((key, index), f"found multiple {kind} configs with job name {quote(remote.name)}")
        if remote.name:
            names.add(remote.name)


def _check_headers(headers: _Headers | None, authorization: str) -> None:
    """Refuse headers that are not the user's; ``authorization`` is the message for the one of that name."""
    for name in headers or ():
        if name.lower() == "authorization":
            raise FieldError("headers", authorization)
        if name.lower() in _RESERVED_FOR_REMOTE:
            raise FieldError("headers", f"{name} is a reserved header. It must not be changed")


def _check_azure(section: object, kind: str, *, required: Sequence[str] = (), uuids: Sequence[str] = ()) -> None:
    """Refuse a section of ``azuread`` that lacks a field, or has one that should be a UUID and is not."""
    for name in required:
        if not getattr(section, name):
            raise FieldError(name, f"must provide an Azure {kind} {name} in the Azure AD config")
    for name in uuids:
        value = getattr(section, name)
        if value and not _ANY_UUID.fullmatch(value):
            raise FieldError(name, f"the provided Azure {kind} {name} is invalid, expected a UUID")


def _check_attributes(key: str, attributes: Sequence[str], adjective: str) -> None:
    """Refuse an attribute that is empty, or there twice; white space around it does not count."""
    names = set()
    for index, attribute in enumerate(attributes):
        name = attribute.strip()
        if not name:
            raise FieldError((key, index), f"invalid {key!r}: empty {adjective} OTel resource attribute")
        if name in names:
            message = f"invalid {key!r}: duplicated {adjective} OTel resource attribute {quote(name)}"
            raise FieldError((key, index), message)
        names.add(name)
