"""What a section says about HTTP is read whole or refused at its place, and shows no secret to anybody."""

from __future__ import annotations

import pprint
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from rich.pretty import pretty_repr

from trio_sd.config import FrozenMapping, decode, parse_yaml
from trio_sd.errors import ConfigError
from trio_sd.http_config import (
    RESERVED_HEADERS,
    Authorization,
    BasicAuth,
    Claims,
    HTTPClientConfig,
    HTTPHeader,
    OAuth2,
    check_url,
)
from trio_sd.limits import Limits
from trio_sd.secrets import Secret, SecretError
from trio_sd.tls import TLSConfig

TOKEN_AT = "client_id: i, token_url: u"


def read(text: str) -> HTTPClientConfig:
    node = parse_yaml(text.encode(), file="f.yml", limits=Limits())
    assert node is not None
    return decode(node, HTTPClientConfig)


def revealed(text: str) -> list[tuple[str, str]]:
    """Return names and values of the headers that a section asks for."""
    return [(name, value.reveal()) for name, value in read(text).request_headers()]


def unreadable(text: str) -> str:
    """Return why the headers that a section asks for can't be had."""
    config = read(text)
    with pytest.raises(SecretError) as caught:
        config.request_headers()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


# What a section says

EVERYTHING = """
    basic_auth: {username: u, password: hunter2}
    tls_config: {ca_file: ca.crt, key: hunter2, cert: c}
    follow_redirects: false
    enable_http2: false
    http_headers:
      X-Tenant: {values: [a, b], secrets: [hunter2], files: [tenant]}
      X-Nothing:
    proxy_url: http://u:hunter2@proxy:3128
    no_proxy: 10.0.0.0/8,localhost
    proxy_from_environment: no
    proxy_connect_header: {X-Key: [hunter2]}
"""


def test_a_section() -> None:
    assert read(EVERYTHING) == HTTPClientConfig(
        basic_auth=BasicAuth(username="u", password=Secret("hunter2")),
        tls_config=TLSConfig(ca_file="ca.crt", key=Secret("hunter2"), cert="c"),
        follow_redirects=False,
        enable_http2=False,
        http_headers={
            "X-Tenant": HTTPHeader(values=("a", "b"), secrets=(Secret("hunter2"),), files=("tenant",)),
            "X-Nothing": None,
        },
        proxy_url=Secret("http://u:hunter2@proxy:3128"),
        no_proxy="10.0.0.0/8,localhost",
        proxy_connect_header={"X-Key": (Secret("hunter2"),)},
    )


def test_a_section_for_oauth2() -> None:
    section = read(
        """
        oauth2:
          client_id: i
          client_certificate_key_id: k
          client_certificate_key: hunter2
          grant_type: urn:ietf:params:oauth:grant-type:jwt-bearer
          signature_algorithm: RS512
          iss: me
          audience: you
          claims: {b: [yes, {d: 010, c: ~}], a: "1"}
          scopes: [r, w]
          token_url: https://login
          endpoint_params: {password: hunter2}
          tls_config: {server_name: s}
          proxy_url: http://proxy
        """
    ).oauth2
    assert section is not None
    assert section.claims
    assert section.claims.values() == {"a": "1", "b": [True, {"c": None, "d": 8}]}
    assert section == OAuth2(
        client_id="i",
        client_certificate_key_id="k",
        client_certificate_key=Secret("hunter2"),
        grant_type="urn:ietf:params:oauth:grant-type:jwt-bearer",
        signature_algorithm="RS512",
        iss="me",
        audience="you",
        claims=Claims.of({"b": [True, {"d": 8, "c": None}], "a": "1"}),
        scopes=("r", "w"),
        token_url="https://login",
        endpoint_params={"password": Secret("hunter2")},
        tls_config=TLSConfig(server_name="s"),
        proxy_url=Secret("http://proxy"),
    )


def test_what_a_section_leaves_open() -> None:
    config = read("{}")
    assert config == HTTPClientConfig()
    assert (config.follow_redirects, config.enable_http2, config.authentication) == (True, True, ())
    assert config.request_headers() == ()


def test_null_is_what_it_is_in_go() -> None:
    nothing = read("".join(f"{field.name}:\n" for field in fields(HTTPClientConfig)))
    assert nothing == HTTPClientConfig(follow_redirects=False, enable_http2=False)


def test_sections_are_values_that_show_no_secret() -> None:
    config = read(EVERYTHING)
    assert hash(config) == hash(read(EVERYTHING))
    assert config != read(EVERYTHING.replace("hunter2", "hunter3"))
    for shown in repr(config), str(asdict(config)), pprint.pformat(config), pretty_repr(config):
        assert "hunter2" not in shown


@pytest.mark.parametrize("text", ["", "  ", "bearer"])
def test_a_type_is_written_without_white_space_and_bearer_if_there_is_none(text: str) -> None:
    assert read(f"authorization: {{type: '{text}'}}").authorization == Authorization(type=text.strip() or "Bearer")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("basic_auth: {}", ("basic_auth",)),
        ("authorization: {}", ("authorization",)),
        (f"oauth2: {{{TOKEN_AT}}}", ("oauth2",)),
        ("bearer_token: t", ("authorization",)),
        ("bearer_token_file: t", ("authorization",)),
        ("bearer_token: ''", ()),
        ("basic_auth: ~", ()),
    ],
)
def test_the_ways_to_say_who_to_be(text: str, names: tuple[str, ...]) -> None:
    assert read(text).authentication == names


def test_relative_paths_are_those_of_the_file() -> None:
    config = read(
        """
        authorization: {credentials_file: token}
        tls_config: {ca_file: ca.crt}
        http_headers: {X-A: {files: [a, /b]}, X-B: }
        """
    ).with_directory("/dir")
    assert config == HTTPClientConfig(
        authorization=Authorization(credentials_file="/dir/token"),
        tls_config=TLSConfig(ca_file="/dir/ca.crt"),
        http_headers={"X-A": HTTPHeader(files=("/dir/a", "/b")), "X-B": None},
    )
    assert isinstance(hash(config), int)
    assert read("bearer_token_file: t").with_directory("/dir").bearer_token_file == "/dir/t"
    basic = read("basic_auth: {username_file: u, password_file: p}").with_directory("/dir").basic_auth
    assert basic == BasicAuth(username_file="/dir/u", password_file="/dir/p")
    oauth2 = read(f"oauth2: {{{TOKEN_AT}, client_secret_file: s, tls_config: {{ca_file: c}}}}").with_directory("/dir")
    assert oauth2.oauth2 == OAuth2(
        client_id="i", token_url="u", client_secret_file="/dir/s", tls_config=TLSConfig(ca_file="/dir/c")
    )
    assert HTTPClientConfig().with_directory("/dir") == HTTPClientConfig()


def claims(text: str) -> Claims | None:
    section = read(f"oauth2: {{{TOKEN_AT}, claims: {text}}}").oauth2
    assert section is not None
    return section.claims


def test_claims_are_values() -> None:
    assert claims("{a: 1, b: {d: x, c: y}}") == claims("{b: {c: y, d: x}, a: 0b1}") == claims("{b: {c: y, d: x}, a: 1}")
    assert hash(claims("{a: [1]}")) == hash(claims("{a: [1]}"))
    assert len({claims("{a: 1}"), claims("{a: true}"), claims("{a: '1'}"), claims("{}"), claims("~")}) == 5
    assert claims("{}") == Claims() == Claims.of({})
    assert claims("~") is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_claims_are_what_json_has(value: float) -> None:
    with pytest.raises(ValueError):
        Claims.of({"a": [value]})


# What is refused, and where

ONE_BEARER = "at most one of bearer_token & bearer_token_file must be configured"
ONE_OF_FOUR = "at most one of basic_auth, oauth2, bearer_token & bearer_token_file must be configured"
ONE_OF_THREE = "at most one of basic_auth, oauth2 & authorization must be configured"
NOT_WITH_BEARER = "authorization is not compatible with bearer_token & bearer_token_file"
NOT_BASIC = 'authorization type cannot be set to "basic", use "basic_auth" instead'
JWT = "grant_type: 'urn:ietf:params:oauth:grant-type:jwt-bearer'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{bearer_token: hunter2, bearer_token_file: f}", f"1:44: bearer_token_file: {ONE_BEARER}"),
        ("{bearer_token: hunter2, basic_auth: {}}", f"1:16: bearer_token: {ONE_OF_FOUR}"),
        (f"{{bearer_token_file: f, oauth2: {{{TOKEN_AT}}}}}", f"1:21: bearer_token_file: {ONE_OF_FOUR}"),
        ("{bearer_token: hunter2, authorization: {}}", f"1:16: bearer_token: {NOT_WITH_BEARER}"),
        ("{basic_auth: {}, authorization: {}}", f"1:33: authorization: {ONE_OF_THREE}"),
        (f"{{oauth2: {{{TOKEN_AT}}}, authorization: {{}}}}", f"1:10: oauth2: {ONE_OF_THREE}"),
        (f"{{basic_auth: {{}}, oauth2: {{{TOKEN_AT}}}}}", f"1:26: oauth2: {ONE_OF_THREE}"),
        (
            "basic_auth: {username: u, username_ref: r}",
            "1:41: basic_auth.username_ref: at most one of basic_auth username, username_file & username_ref must be",
        ),
        (
            "basic_auth: {password: hunter2, password_file: f}",
            "1:48: basic_auth.password_file: at most one of basic_auth password, password_file & password_ref must be",
        ),
        (
            "authorization: {credentials: hunter2, credentials_file: f}",
            "1:57: authorization.credentials_file: at most one of authorization credentials & credentials_file must be",
        ),
        ("authorization: {type: ' bAsic '}", f"1:23: authorization.type: {NOT_BASIC}"),
        ("oauth2: {token_url: u}", "1:9: oauth2.client_id: oauth2 client_id must be configured"),
        ("oauth2: {client_id: i}", "1:9: oauth2.token_url: oauth2 token_url must be configured"),
        (
            f"oauth2: {{{TOKEN_AT}, client_secret: hunter2, client_secret_file: f}}",
            (
                "1:82: oauth2.client_secret_file: at most one of oauth2 client_secret, client_secret_file & "
                "client_secret_ref must be configured using grant-type=client_credentials"
            ),
        ),
        (
            f"oauth2: {{{TOKEN_AT}, {JWT}, client_certificate_key: hunter2, client_certificate_key_file: f}}",
            (
                "1:159: oauth2.client_certificate_key_file: at most one of oauth2 client_certificate_key, "
                "client_certificate_key_file & client_certificate_key_ref must be configured using "
                "grant-type=urn:ietf:params:oauth:grant-type:jwt-bearer"
            ),
        ),
        (
            f"oauth2: {{{TOKEN_AT}, {JWT}, signature_algorithm: HS256}}",
            "1:118: oauth2.signature_algorithm: valid signature algorithms are RS256, RS384 and RS512",
        ),
        (f"oauth2: {{{TOKEN_AT}, claims: [a]}}", "1:46: oauth2.claims: found a list, expected a mapping"),
        (
            f"oauth2: {{{TOKEN_AT}, claims: {{a: [.nan]}}}}",
            '1:51: oauth2.claims.a[0]: found ".nan", expected a number from -2^63 to 2^64, or quotes around it',
        ),
        (
            f"oauth2: {{{TOKEN_AT}, no_proxy: x}}",
            "1:48: oauth2.no_proxy: if no_proxy is configured, proxy_url must also be configured",
        ),
        (
            "{proxy_connect_header: {a: [hunter2]}, proxy_url: ''}",
            (
                "1:24: proxy_connect_header: if proxy_connect_header is configured, proxy_url or "
                "proxy_from_environment must also be configured"
            ),
        ),
        (
            "{proxy_from_environment: true, proxy_url: http://x}",
            "1:43: proxy_url: if proxy_from_environment is configured, proxy_url must not be configured",
        ),
        (
            "{proxy_from_environment: true, no_proxy: x}",
            "1:42: no_proxy: if proxy_from_environment is configured, no_proxy must not be configured",
        ),
        ("{no_proxy: x}", "1:12: no_proxy: if no_proxy is configured, proxy_url must also be configured"),
        ("proxy_url: 'http://u:hunter2/@x'", "1:12: proxy_url: not a valid URL: invalid port"),
        ("http_headers: {user-agent: {values: [x]}}", '1:15: http_headers: setting header "User-Agent" is not allowed'),
        ("http_headers: {a: {value: x}}", "1:20: http_headers.a.value: field value not found in this section"),
        ("tls_config: {key: hunter2}", "1:13: tls_config: exactly one of cert or cert_file must be configured"),
        ("{bearer_token:hunter2}", "1:2: found a key without a value that is not known here"),
        ("basic_auth: hunter2", "1:13: basic_auth: found a string, expected a mapping"),
        ("bearer_token: [hunter2]", "1:15: bearer_token: found a list, expected a string"),
    ],
)
def test_what_is_refused_and_where(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(f"f.yml:{message}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{no_proxy: x, proxy_url: ''}",
        "{proxy_connect_header: {a: [b]}, proxy_from_environment: true}",
        "{proxy_connect_header: {}}",
        "{basic_auth: ~, bearer_token: t}",
        f"oauth2: {{{TOKEN_AT}, signature_algorithm: HS256, grant_type: anything}}",
        "http_headers: {'Host ': {values: [x]}}",
    ],
)
def test_what_looks_wrong_and_is_accepted(text: str) -> None:
    read(text)


# URLs


@pytest.mark.parametrize(
    "url",
    [
        *("", "*", "h", "/a:b", "a/b:c", "?:x", "#:x", "a b", "//h:1/x", "///h:x/", "http:///x", "mailto:x%zz"),
        *("http://h", "http://h:", "http://a:b:80/", "http://h?x:%zz", "http+a.b-1://h", "http://u:p@h:80/x?y#z"),
        *("http://[::1]:80/", "http://[::1%25eth0]", "http://hé/", "http://h%C3%A9/", "http://h</", "http://a@b@c/"),
    ],
)
def test_urls(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://h/\x01", "a control character"),
        (":hunter2", "no scheme before the first colon"),
        ("1h:hunter2", "the first path segment in a URL without a scheme cannot contain a colon"),
        ("http://u:hunter2/x@h", "invalid port after its host"),
        ("//h:hunter2", "invalid port after its host"),
        ("http://u:hunter 2@h", "its user or password"),
        ("http://u:%hunter2@h", "invalid URL escape"),
        ("http://h/%hunter2", "invalid URL escape"),
        ("mailto:x#%hunter2", "invalid URL escape"),
        ("http://hunter2 h/", "a character in its host"),
        ("http://hunter2%41/", "a character in its host"),
        ("http://[::1", "in the brackets of its host"),
        ("http://[hunter2]/", "in the brackets of its host"),
        ("http://[::1]:hunter2", "in the brackets of its host"),
        ("http://x[::1]/", "in the brackets of its host"),
    ],
)
def test_urls_that_are_none_are_refused_and_not_shown(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        check_url(url)
    assert "hunter2" not in str(caught.value)


# The headers to send


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("basic_auth: {username: Aladdin, password: 'open sesame'}", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ("basic_auth: {username: ü}", "Basic w7w6"),
        ("basic_auth: {}", "Basic Og=="),
        ("authorization: {credentials: c}", "Bearer c"),
        ("authorization: {type: Token, credentials: ' c '}", "Token  c"),
        ("authorization: {}", "Bearer"),
        ("bearer_token: c", "Bearer c"),
    ],
)
def test_who_to_be_is_told_in_a_header(text: str, value: str) -> None:
    assert revealed(text) == [("Authorization", value)]


def test_the_header_of_oauth2_is_not_known_here() -> None:
    assert revealed(f"oauth2: {{{TOKEN_AT}}}") == []


def test_a_header_is_there_once_for_each_value() -> None:
    text = "{bearer_token: t, http_headers: {X-B: {secrets: [c], values: [a, b]}, X-A: {values: ['']}, X-C: }}"
    assert revealed(text) == [
        ("Authorization", "Bearer t"),
        ("X-B", "a"),
        ("X-B", "b"),
        ("X-B", "c"),
        ("X-A", ""),
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("basic_auth: {{username_file: {file}, password: p}}", "Basic c2VjcmV0OnA="),
        ("basic_auth: {{username: u, password_file: {file}}}", "Basic dTpzZWNyZXQ="),
        ("authorization: {{credentials_file: {file}}}", "Bearer secret"),
        ("bearer_token_file: {file}", "Bearer secret"),
        ("http_headers: {{A: {{files: [{file}]}}}}", "secret"),
    ],
)
def test_files_are_read_anew_each_time_without_the_white_space_around(tmp_path: Path, text: str, value: str) -> None:
    file = tmp_path / "file"
    config = read(text.format(file=file))
    file.write_text("other")
    before = config.request_headers()
    file.write_text(" \tsecret\r\n\n")
    [(_, now)] = config.request_headers()
    assert now.reveal() == value
    assert [now] != [old for _, old in before]
    file.unlink()
    with pytest.raises(SecretError) as caught:
        config.request_headers()
    assert str(caught.value) == f'can\'t read "{file}": No such file or directory'


def test_a_file_that_holds_nothing_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("\n")
    assert unreadable(f"bearer_token_file: {tmp_path}/file").endswith("is empty, expected a secret in it")


@pytest.mark.parametrize("text", ["bearer_token_file: {file}", "http_headers: {{A: {{files: [{file}]}}}}"])
def test_what_would_end_a_header_is_not_sent(tmp_path: Path, text: str) -> None:
    file = tmp_path / "file"
    file.write_text("hunter2\nX-Admin: yes")
    assert unreadable(text.format(file=file)).startswith(f'found a control character in "{file}"')


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ('bearer_token: "hunter2\\r"', "the field credentials"),
        ('http_headers: {A: {values: ["hunter2\\n"]}}', "the field values"),
        ('http_headers: {A: {secrets: ["hunter2\\0"]}}', "the field secrets"),
    ],
)
def test_what_would_end_a_header_is_named_by_its_field(text: str, source: str) -> None:
    assert unreadable(text).startswith(f"found a control character in {source}, expected what the header A")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("basic_auth: {username_ref: r}", "username"),
        ("basic_auth: {username: u, password_ref: r}", "password"),
        ("authorization: {credentials_ref: r}", "credentials"),
    ],
)
def test_there_is_no_secret_manager_to_ask(text: str, name: str) -> None:
    assert unreadable(text) == f'can\'t use {name}_ref "r": there is no secret manager to ask'


def test_headers_show_no_secret() -> None:
    config = HTTPClientConfig(
        bearer_token=Secret("hunter2"), http_headers=FrozenMapping({"A": HTTPHeader(values=("hunter2",))})
    )
    assert "hunter2" not in repr(config.request_headers())


# Not read from RESERVED_HEADERS, so that none gets lost there; from Prometheus' common/config/headers.go.
RESERVED = [
    "Authorization", "Host", "Content-Encoding", "Content-Length", "Content-Type",
    "X-Prometheus-Remote-Write-Version", "X-Prometheus-Remote-Read-Version", "X-Prometheus-Scrape-Timeout-Seconds",
    "X-Amz-Date", "X-Amz-Security-Token", "X-Amz-Content-Sha256", "User-Agent", "Connection", "Keep-Alive",
    "Proxy-Authenticate", "Proxy-Authorization", "Www-Authenticate", "Accept-Encoding",
]  # fmt: skip


def test_these_headers_are_reserved() -> None:
    assert {name.lower() for name in RESERVED} == RESERVED_HEADERS


@pytest.mark.parametrize("name", [*RESERVED, "USER-AGENT", "user-agent"])
def test_a_reserved_header_is_refused_however_it_is_written(name: str) -> None:
    node = parse_yaml(f"http_headers: {{{name}: {{values: [x]}}}}".encode(), file="p.yml", limits=Limits())
    assert node is not None
    with pytest.raises(ConfigError, match=f'setting header "{name.title()}" is not allowed'):
        decode(node, HTTPClientConfig)


@pytest.mark.parametrize("url", ["http://x/#a\x01b", "///[x", "///a:b"])
def test_these_are_urls(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize("url", ["http://x/\x01#", "//[x", "//a:b"])
def test_these_are_no_urls(url: str) -> None:
    with pytest.raises(ValueError, match="not a valid URL"):
        check_url(url)


def test_all_files_of_oauth2_are_taken_from_the_directory() -> None:
    found = OAuth2(
        client_id="c", token_url="t", client_secret_file="s", client_certificate_key_file="k"
    ).with_directory("/d")
    assert (found.client_secret_file, found.client_certificate_key_file) == ("/d/s", "/d/k")
