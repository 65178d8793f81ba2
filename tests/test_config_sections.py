"""Sections that nothing here uses are refused where Prometheus refuses them, at their place."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from trio_sd.config import Config, parse_config
from trio_sd.errors import ConfigError

ID = "00000000-0000-0000-0000-000000000000"
WRITE = "remote_write:\n- url: x\n  "
READ = "remote_read:\n- url: x\n  "
QUEUE = WRITE + "queue_config: "
AZURE = WRITE + "azuread: "
MUST = "must provide an Azure"
ONE_WAY = (
    "at most one of basic_auth, authorization, oauth2, sigv4, azuread or google_iam must be configured. "
    "Currently configured: "
)


def parse(text: str) -> Config:
    return parse_config(text.encode(), file="p.yml", registry={})


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.position is not None
    assert "hunter2" not in str(caught.value)
    return str(caught.value)


# What Prometheus 2.42 says as well

ACCEPTED_FOR_LONG = [
    "storage:\ntracing:\nremote_write:\nremote_read: []",
    WRITE + "remote_timeout: 5s\n  name: a\n  send_exemplars: true\n  send_native_histograms: true",
    WRITE + "headers: {X-A: b, X-Prometheus-Scrape-Timeout-Seconds: c}\n  basic_auth: {username: a}",
    WRITE + "write_relabel_configs: [{action: drop}]\n  proxy_url: http://p\n  sigv4:\n  bearer_token: t",
    WRITE + "metadata_config: {send: false, send_interval: 5m, max_samples_per_send: 5}\n  headers:",
    WRITE + "sigv4: {region: a, access_key: b, secret_key: c, profile: d, role_arn: e}",
    QUEUE + "{capacity: 1, max_shards: 5, min_shards: 2, max_samples_per_send: 5, batch_send_deadline: 5s}",
    QUEUE + "{min_backoff: 1s, max_backoff: 1s, retry_on_http_429: true}",
    READ + "read_recent: true\n  required_matchers: {a: b}\n  filter_external_labels: false",
    "remote_write: [{url: ''}, {url: x}, {url: x, name: a}]\nremote_read: [{url: x, name: a}]",
    "storage: {tsdb: {out_of_order_time_window: 5m}, exemplars: {max_exemplars: -5}}",
    "storage: {tsdb: ~, exemplars: ~}",
    "tracing: {endpoint: x, client_type: http, sampling_fraction: 0.5, insecure: true, timeout: 5s, headers: {a: b}}",
    "tracing: {endpoint: x, client_type: ~, compression: gzip, tls_config: {ca_file: a}}",
]

REFUSED_FOR_LONG = [
    ("remote_write: {url: x}", "1:15: remote_write: found a mapping, expected a list"),
    ("remote_write: [{url: x}, ~]", "1:26: remote_write[1]: empty or null remote write config section"),
    ("remote_read: [~]", "1:15: remote_read[0]: empty or null remote read config section"),
    ("remote_write: [{url: ~}]", "1:22: remote_write[0].url: url for remote_write is empty"),
    ("remote_read: [{name: a}]", "1:15: remote_read[0].url: url for remote_read is empty"),
    ("remote_write: [{url: 'http://u:hunter2/@h'}]", "1:22: remote_write[0].url: not a valid URL: invalid port"),
    (
        "remote_write: [{url: x, name: a}, {url: y, name: a}]",
        '1:35: remote_write[1]: found multiple remote write configs with job name "a"',
    ),
    (
        "remote_read: [{url: x, name: a}, {url: y, name: a}]",
        '1:34: remote_read[1]: found multiple remote read configs with job name "a"',
    ),
    (
        WRITE + "headers: {X-A: b, Host: hunter2}",
        "3:12: remote_write[0].headers: Host is a reserved header. It must not be changed",
    ),
    (
        READ + "headers: {authorization: hunter2}",
        "3:12: remote_read[0].headers: authorization header must be changed via the basic_auth, authorization,",
    ),
    (WRITE + "headers: [hunter2]", "3:12: remote_write[0].headers: found a list, expected a mapping"),
    (WRITE + "read_recent: true", "3:3: remote_write[0].read_recent: field read_recent not found in this section"),
    (WRITE + "remote_timeout: 5", '3:19: remote_write[0].remote_timeout: not a valid duration string: "5"'),
    (
        WRITE + "write_relabel_configs: [{action: drop}, ~]",
        "3:43: remote_write[0].write_relabel_configs[1]: empty or null relabeling rule in remote write config",
    ),
    (
        WRITE + "write_relabel_configs: [{action: hashmod, target_label: a}]",
        "3:27: remote_write[0].write_relabel_configs[0].modulus: relabel configuration for hashmod requires non-zero",
    ),
    (
        WRITE + "bearer_token: hunter2\n  bearer_token_file: f",
        "4:22: remote_write[0].bearer_token_file: at most one of bearer_token & bearer_token_file must be configured",
    ),
    (WRITE + "sigv4: {}\n  basic_auth: {}", f"3:10: remote_write[0].sigv4: {ONE_WAY}basic_auth, sigv4"),
    (WRITE + "sigv4: {}\n  bearer_token: hunter2", f"3:10: remote_write[0].sigv4: {ONE_WAY}authorization, sigv4"),
    (
        WRITE + "sigv4: {secret_key: hunter2}",
        "3:23: remote_write[0].sigv4.secret_key: must provide a AWS SigV4 Access key and Secret Key if credentials",
    ),
    (QUEUE + "{capacity: a}", '3:28: remote_write[0].queue_config.capacity: found "a", expected a whole number'),
    (READ + "required_matchers: [a]", "3:22: remote_read[0].required_matchers: found a list, expected a mapping of"),
    ("storage: {tsdb: {a: b}}", "1:18: storage.tsdb.a: field a not found in this section"),
    ("storage: {exemplars: {max_exemplars: a}}", '1:38: storage.exemplars.max_exemplars: found "a", expected a whole'),
    ("tracing: {}", "1:10: tracing.endpoint: tracing endpoint must be set"),
    ("tracing: {endpoint: x, client_type: a}", '1:37: tracing.client_type: found "a", expected one of: http, grpc'),
    ("tracing: {endpoint: x, client_type: ''}", '1:37: tracing.client_type: found "", expected one of: http, grpc'),
    (
        "tracing: {endpoint: x, compression: zip}",
        "1:37: tracing.compression: invalid compression type zip provided, valid options: gzip",
    ),
    (
        "tracing: {endpoint: x, headers: {Authorization: hunter2}}",
        "1:33: tracing.headers: custom authorization header configuration is not yet supported",
    ),
    (
        "tracing: {endpoint: x, headers: {user-agent: hunter2}}",
        "1:33: tracing.headers: user-agent is a reserved header. It must not be changed",
    ),
]


# What only later releases know

ACCEPTED = [
    "runtime: {gogc: -1}",
    "runtime:\notlp:",
    READ + "chunked_read_limit: 5\n  required_matchers: {a-b: c}",
    WRITE + "round_robin_dns: true\n  failed_request_logging: true\n  protobuf_message: io.prometheus.write.v2.Request",
    WRITE + "http_headers: {X-A: {values: [b]}}\n  google_iam: {credentials_file: f}\n  azuread: ~",
    WRITE + "sigv4: {role_arn: a, external_id: b, use_fips_sts_endpoint: true, service_name: c}",
    QUEUE + "{sample_age_limit: 5m}",
    AZURE + "{managed_identity: {}}",
    AZURE + f"{{cloud: AzureChina, managed_identity: {{client_id: {ID}}}}}",
    AZURE + f"{{oauth: {{client_id: '{{{ID}}}', client_secret: s, tenant_id: a b}}, scope: 'https://a.b/.default'}}",
    AZURE + f"{{workload_identity: {{client_id: 'urn:uuid:{ID}', tenant_id: '{'0' * 32}', token_file_path: f}}}}",
    AZURE + "{sdk: {tenant_id: a}, cloud: ''}",
    AZURE + f"{{certificate: {{client_id: {ID}, tenant_id: a, certificate_path: b, certificate_password: c}}}}",
    "storage: {tsdb: {retention: {time: 1d, size: 1GB2MB, percentage: 0.5}, chunk_encoding: {floats: xor2}}}",
    "storage: {tsdb: {retention: ~, chunk_encoding: ~, stale_series_compaction_threshold: 0.5}}",
    "otlp: {promote_resource_attributes: [a, b], translation_strategy: NoTranslation}",
    "otlp: {promote_all_resource_attributes: true, ignore_resource_attributes: [a], translation_strategy: ''}",
    "{global: {metric_name_validation_scheme: legacy}, otlp: {translation_strategy: UnderscoreEscapingWithSuffixes}}",
]

REFUSED = [
    ("runtime: {gogc: a}", '1:17: runtime.gogc: found "a", expected a whole number'),
    (READ + "chunked_read_limit: -5", '3:23: remote_read[0].chunked_read_limit: found "-5", expected a whole number'),
    (
        WRITE + "protobuf_message:",
        (
            "3:20: remote_write[0].protobuf_message: invalid protobuf_message value: unknown type for remote write "
            'protobuf message "", supported: prometheus.WriteRequest, io.prometheus.write.v2.Request'
        ),
    ),
    (WRITE + "http_headers: {host: {values: [b]}}", '3:17: remote_write[0].http_headers: setting header "Host" is not'),
    (QUEUE, "3:16: remote_write[0].queue_config: remote write queue max_shards must be positive"),
    *(
        (
            QUEUE + f"{{{name}: {value}}}",
            f"3:{20 + len(name)}: remote_write[0].queue_config.{name}: remote write queue {name} must be positive",
        )
        for name in ("max_shards", "min_shards", "max_samples_per_send", "capacity")
        for value in ("0", "-1", "~")
    ),
    (
        QUEUE + "{min_shards: 51}",
        "3:30: remote_write[0].queue_config.min_shards: remote write queue min_shards must not be greater than max",
    ),
    (
        QUEUE + "{max_backoff: 29ms}",
        "3:31: remote_write[0].queue_config.max_backoff: remote write queue max_backoff must not be less than min",
    ),
    (
        WRITE + "sigv4: {external_id: a}",
        "3:24: remote_write[0].sigv4.external_id: external_id can only be used with role_arn",
    ),
    (WRITE + "google_iam: {}\n  azuread: {sdk: {}}", f"3:15: remote_write[0].google_iam: {ONE_WAY}azuread, google_iam"),
    (AZURE + "{}", f"3:12: remote_write[0].azuread: {MUST} Managed Identity, Azure Workload Identity, Azure OAuth,"),
    (AZURE + "{sdk: {}, managed_identity: {}}", "3:12: remote_write[0].azuread: cannot provide multiple"),
    (AZURE + "{sdk: {}, cloud: a}", "3:29: remote_write[0].azuread.cloud: must provide a cloud in the Azure AD config"),
    (AZURE + "{sdk: {}, scope: 'a<'}", "3:29: remote_write[0].azuread.scope: the provided scope contains invalid char"),
    (AZURE + "{managed_identity: {client_id: a}}", "3:43: remote_write[0].azuread.managed_identity.client_id: the"),
    (AZURE + "{oauth: {}}", f"3:20: remote_write[0].azuread.oauth.client_id: {MUST} OAuth client_id in the Azure AD"),
    (
        AZURE + f"{{oauth: {{client_id: {ID}, tenant_id: a}}}}",
        f"3:20: remote_write[0].azuread.oauth.client_secret: {MUST} OAuth client_secret in the Azure AD config",
    ),
    (
        AZURE + f"{{workload_identity: {{client_id: {ID}, tenant_id: a}}}}",
        (
            "3:93: remote_write[0].azuread.workload_identity.tenant_id: the provided Azure Workload Identity "
            "tenant_id is invalid"
        ),
    ),
    (
        AZURE + f"{{certificate: {{client_id: {ID}, tenant_id: a}}}}",
        f"3:26: remote_write[0].azuread.certificate.certificate_path: {MUST} Certificate certificate_path in the",
    ),
    ("storage: {tsdb: {retention: {time: 1}}}", "1:36: storage.tsdb.retention.time: not a valid duration string"),
    (
        "storage: {tsdb: {retention: {size: -1GB}}}",
        (
            "1:36: storage.tsdb.retention.size: 'storage.tsdb.retention.size' must be greater than or equal to 0, "
            "got -1073741824 bytes"
        ),
    ),
    (
        "storage: {tsdb: {retention: {percentage: 101}}}",
        (
            "1:42: storage.tsdb.retention.percentage: 'storage.tsdb.retention.percentage' must be in the range "
            "[0, 100], got 101"
        ),
    ),
    (
        "storage: {tsdb: {chunk_encoding: {floats: XOR}}}",
        "1:43: storage.tsdb.chunk_encoding.floats: 'storage.tsdb.chunk_encoding.floats' must be 'xor' or 'xor2'",
    ),
    (READ + "tls_config: {cert_file: a}", "3:15: remote_read[0].tls_config: exactly one of key or key_file must be"),
    ("tracing: {endpoint: x, tls_config: {cert_file: a}}", "1:36: tracing.tls_config: exactly one of key or key_file"),
    (
        "otlp: {promote_all_resource_attributes: true, promote_resource_attributes: [a]}",
        (
            "1:76: otlp.promote_resource_attributes: 'promote_all_resource_attributes' and "
            "'promote_resource_attributes' cannot be configured simultaneously"
        ),
    ),
    (
        "otlp: {ignore_resource_attributes: [a]}",
        (
            "1:36: otlp.ignore_resource_attributes: 'ignore_resource_attributes' cannot be configured unless "
            "'promote_all_resource_attributes' is true"
        ),
    ),
    (
        "otlp: {promote_resource_attributes: [a, ' a ']}",
        (
            "1:41: otlp.promote_resource_attributes[1]: invalid 'promote_resource_attributes': "
            'duplicated promoted OTel resource attribute "a"'
        ),
    ),
    (
        "otlp: {promote_all_resource_attributes: true, ignore_resource_attributes: [' ']}",
        (
            "1:76: otlp.ignore_resource_attributes[0]: invalid 'ignore_resource_attributes': "
            "empty ignored OTel resource attribute"
        ),
    ),
    ("otlp: {translation_strategy: a}", '1:30: otlp.translation_strategy: unsupported OTLP translation strategy "a"'),
    (
        "{global: {metric_name_validation_scheme: legacy}, otlp: {translation_strategy: NoTranslation}}",
        '1:80: otlp.translation_strategy: OTLP translation strategy "NoTranslation" is not allowed when UTF8 is disab',
    ),
    (
        "global: {metric_name_validation_scheme: legacy}\n" + WRITE + "write_relabel_configs: [{target_label: a-b}]",
        '4:42: remote_write[0].write_relabel_configs[0].target_label: "a-b" is invalid',
    ),
]


@pytest.mark.parametrize("text", ACCEPTED_FOR_LONG + ACCEPTED)
def test_what_is_accepted(text: str) -> None:
    parse(text)


@pytest.mark.parametrize(("text", "message"), REFUSED_FOR_LONG + REFUSED)
def test_what_is_refused_and_where(text: str, message: str) -> None:
    assert refused(text).startswith(f"p.yml:{message}")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: nothing to compare with")
def test_prometheus_accepts_and_refuses_the_same(tmp_path: Path) -> None:
    texts = ACCEPTED_FOR_LONG + [text for text, _ in REFUSED_FOR_LONG]
    files = [tmp_path / f"{number}.yml" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    command = ["promtool", "check", "config", "--syntax-only", *map(str, files)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    accepted = [text for file, text in zip(files, texts, strict=True) if f"SUCCESS: {file} is valid" in said]
    assert accepted == ACCEPTED_FOR_LONG


@pytest.mark.parametrize(
    "text",
    [
        "remote_write: [{url: u, queue_config: {min_shards: 50, max_shards: 50}}]",
        "storage: {tsdb: {retention: {percentage: 100}}}",
        "storage: {tsdb: {retention: {percentage: 0}}}",
    ],
)
def test_bounds_are_allowed(text: str) -> None:
    parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("remote_write: [{url: u, queue_config: {batch_send_deadline: x}}]", "batch_send_deadline"),
        ("otlp: {promote_resource_attributes: [' a', a]}", 'duplicated promoted OTel resource attribute "a"'),
    ],
)
def test_these_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)
