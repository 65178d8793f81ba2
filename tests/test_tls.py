"""What a ``tls_config`` says is what a connection does, in real handshakes with real certificates."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from trio_sd.config import decode, parse_yaml
from trio_sd.errors import ConfigError, TrioSDError
from trio_sd.limits import Limits
from trio_sd.secrets import Secret
from trio_sd.tls import TLSConfig, TLSError


@dataclass(frozen=True)
class Certificates:
    """Files of one authority and what it vouches for; ``<name>.crt`` and ``<name>.key``."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def text(self, name: str) -> str:
        return (self.directory / name).read_text()

    def make(self, name: str, extensions: str, *, authority: str = "") -> None:
        self.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
        (self.directory / "extensions").write_text(extensions)
        self.openssl("req", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-out", "request")
        signer = ["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial"]
        signer = signer if authority else ["-signkey", f"{name}.key"]
        self.openssl(
            *("x509", "-req", "-in", "request", "-days", "2", "-extfile", "extensions", "-out", f"{name}.crt"), *signer
        )

    def openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)

    def server(self, *, asks_for_a_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path("server.crt"), self.path("server.key"))
        if asks_for_a_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.path("authority.crt"))
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl (apt install openssl)")
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    authority = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n"
    made.make("authority", authority)
    made.make("other", authority)
    made.make("server", "subjectAltName=DNS:zk.example,IP:127.0.0.1\n", authority="authority")
    made.make("client", "extendedKeyUsage=clientAuth\n", authority="authority")
    made.make("stranger", "extendedKeyUsage=clientAuth\n", authority="other")
    made.openssl("ec", "-in", "client.key", "-aes128", "-passout", "pass:hunter2", "-out", "locked.key")
    made.openssl("pkcs8", "-topk8", "-in", "client.key", "-passout", "pass:hunter2", "-out", "locked8.key")
    return made


def talk(config: TLSConfig, server: ssl.SSLContext, name: str = "zk.example") -> str | None:
    """Connect as ``config`` says to ``server``, which speaks first, and return the version that both speak.

    Raises:
      ssl.SSLError: either refuses the other.
    """

    def serve() -> None:
        with suppress(OSError), server.wrap_socket(right, server_side=True) as connection:
            connection.sendall(b"welcome")

    left, right = socket.socketpair()
    with left, right, ThreadPoolExecutor(1) as pool:
        left.settimeout(10)
        right.settimeout(10)
        pool.submit(serve)
        with config.context().wrap_socket(left, server_hostname=config.server_name or name) as connection:
            # With TLS 1.3, a server tells only after the handshake that it does not take a client's certificate.
            assert connection.recv(100) == b"welcome"
            return connection.version()


def refused(config: TLSConfig) -> str:
    """Return why a context can't be made of ``config``."""
    with pytest.raises(TLSError) as caught:
        config.context()
    assert isinstance(caught.value, (TrioSDError, ValueError))
    assert caught.value.__suppress_context__
    assert "PRIVATE" not in str(caught.value)
    return str(caught.value)


# Whom to trust


def test_a_server_of_the_authority_is_trusted(certificates: Certificates) -> None:
    config = TLSConfig(ca_file=certificates.path("authority.crt"))
    assert talk(config, certificates.server()) == "TLSv1.3"
    assert talk(config, certificates.server(), "127.0.0.1") == "TLSv1.3"


def test_an_authority_may_stand_in_the_configuration(certificates: Certificates) -> None:
    text = f"# two of them, says Zoë\n{certificates.text('other.crt')}# and\n{certificates.text('authority.crt')}"
    assert talk(TLSConfig(ca=text), certificates.server())


def test_a_server_of_another_authority_is_refused(certificates: Certificates) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        talk(TLSConfig(ca_file=certificates.path("other.crt")), certificates.server())


def test_without_an_authority_the_system_is_asked(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(TLSConfig(), certificates.server())
    monkeypatch.setenv("SSL_CERT_FILE", certificates.path("authority.crt"))
    assert talk(TLSConfig(), certificates.server())


def test_a_server_of_another_name_is_refused(certificates: Certificates) -> None:
    config = TLSConfig(ca_file=certificates.path("authority.crt"))
    for name in "zk.example.com", "127.0.0.2":
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            talk(config, certificates.server(), name)
    assert talk(replace(config, server_name="zk.example"), certificates.server(), "127.0.0.2")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        talk(replace(config, server_name="other"), certificates.server())


def test_any_server_is_trusted_where_that_is_asked_for(certificates: Certificates) -> None:
    config = TLSConfig(ca_file=certificates.path("other.crt"), insecure_skip_verify=True)
    assert talk(config, certificates.server(), "anything")


def test_by_default_everything_is_checked() -> None:
    context = TLSConfig().context()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


# Whom to be


def client(certificates: Certificates, name: str = "client") -> TLSConfig:
    return TLSConfig(
        ca_file=certificates.path("authority.crt"),
        cert_file=certificates.path(f"{name}.crt"),
        key_file=certificates.path(f"{name}.key"),
    )


def test_a_certificate_is_shown_to_a_server_that_asks_for_one(certificates: Certificates) -> None:
    asking = certificates.server(asks_for_a_certificate=True)
    assert talk(client(certificates), asking)
    for nobody in client(certificates, "stranger"), TLSConfig(ca_file=certificates.path("authority.crt")):
        with pytest.raises(ssl.SSLError, match="alert"):
            talk(nobody, asking)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_certificate_and_key_may_stand_in_the_configuration(
    certificates: Certificates, platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TLSConfig(
        ca=certificates.text("authority.crt"),
        cert=certificates.text("client.crt"),
        key=Secret(certificates.text("client.key")),
    )
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(os.listdir("/proc/self/fd"))
    assert talk(config, certificates.server(asks_for_a_certificate=True))
    assert list(tmp_path.iterdir()) == []
    assert set(os.listdir("/proc/self/fd")) <= before


def test_certificate_and_key_may_share_a_file(certificates: Certificates, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(certificates.text("client.key") + certificates.text("client.crt"))
    config = replace(client(certificates), cert_file=str(both), key_file=str(both))
    assert talk(config, certificates.server(asks_for_a_certificate=True))


def test_files_are_read_anew_for_each_context(certificates: Certificates, tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text(certificates.text("other.crt"))
    config = TLSConfig(ca_file=str(authority))
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(config, certificates.server())
    authority.write_text(certificates.text("authority.crt"))
    assert talk(config, certificates.server())


# Which versions


def test_versions_are_bounded(certificates: Certificates) -> None:
    config = TLSConfig(ca_file=certificates.path("authority.crt"))
    assert talk(replace(config, max_version="TLS12"), certificates.server()) == "TLSv1.2"
    assert talk(replace(config, min_version="TLS12", max_version="TLS12"), certificates.server()) == "TLSv1.2"
    assert talk(replace(config, min_version="TLS13"), certificates.server()) == "TLSv1.3"
    old = certificates.server()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert talk(config, old) == "TLSv1.2"
    with pytest.raises(ssl.SSLError, match="alert protocol version"):
        talk(replace(config, min_version="TLS13"), old)


def test_old_versions_are_python_s_to_warn_of() -> None:
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context = TLSConfig(min_version="TLS11").context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_1


# What can't be used


def test_files_that_can_not_be_read_are_named(certificates: Certificates) -> None:
    config = client(certificates)
    missing = "No such file or directory"
    assert refused(replace(config, ca_file="/none")) == f'can\'t read the CA certificate "/none": {missing}'
    assert refused(replace(config, cert_file="/none")) == f'can\'t read the client certificate "/none": {missing}'
    assert refused(replace(config, key_file="/none")) == f'can\'t read the client key "/none": {missing}'
    assert refused(replace(config, key_file="/")) == 'can\'t read the client key "/": Is a directory'
    assert refused(replace(config, ca_file="a\0b")) == 'can\'t read the CA certificate "a\\u0000b": embedded null byte'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "junk",
        "é",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMII",
    ],
)
def test_an_authority_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "ca.crt"
    file.write_text(content)
    assert refused(TLSConfig(ca_file=str(file))) == (
        f'can\'t use the CA certificate "{file}": expected one certificate or more as PEM'
    )
    if content:
        assert refused(TLSConfig(ca=content)).startswith("can't use the CA certificate of the field ca: ")


def test_the_key_of_another_certificate_is_refused(certificates: Certificates) -> None:
    config = replace(client(certificates), key_file=certificates.path("stranger.key"))
    names = f'"{config.cert_file}" with the key "{config.key_file}"'
    assert refused(config) == f"can't use the client certificate {names}: the key belongs to another certificate"


def test_what_is_no_certificate_and_no_key_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text(certificates.text("client.key")[:100])
    config = client(certificates)
    expected = ": expected a certificate as PEM, and a private key as PEM without a passphrase"
    assert refused(replace(config, key_file=str(junk))).endswith(f'with the key "{junk}"{expected}')
    assert refused(replace(config, cert_file=str(junk))).endswith(expected)
    inline = replace(config, cert_file="", key_file="", cert="junk", key=Secret(junk.read_text()))
    names = "the client certificate of the field cert with the key of the field key"
    assert refused(inline) == f"can't use {names}{expected}"


@pytest.mark.parametrize("name", ["locked.key", "locked8.key"])
def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(certificates: Certificates, name: str) -> None:
    config = replace(client(certificates), key_file=certificates.path(name))
    assert refused(config).endswith("a private key as PEM without a passphrase")


def test_a_key_that_can_not_be_handed_over_is_refused_with_the_reason(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert refused(client(certificates)).endswith(": No such file or directory")


# What the section says


def read(text: str) -> TLSConfig:
    node = parse_yaml(text.encode(), file="f.yml", limits=Limits())
    assert node is not None
    return decode(node, TLSConfig)


def test_a_section() -> None:
    assert read("{}") == TLSConfig()
    config = read(
        """
        {ca_file: ca.crt, cert: c, key: hunter2, server_name: s, insecure_skip_verify: yes, min_version: TLS10,
         max_version: TLS13}
        """
    )
    assert config == TLSConfig(
        ca_file="ca.crt",
        cert="c",
        key=Secret("hunter2"),
        server_name="s",
        insecure_skip_verify=True,
        min_version="TLS10",
        max_version="TLS13",
    )
    assert isinstance(hash(config), int)
    assert config != replace(config, key=Secret("other"))
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("config", "name"),
    [(TLSConfig(ca_ref="r"), "ca_ref"), (TLSConfig(cert_ref="r"), "cert_ref"), (TLSConfig(key_ref="r"), "key_ref")],
)
def test_there_is_no_secret_manager_to_ask(config: TLSConfig, name: str) -> None:
    with pytest.raises(TLSError) as caught:
        config.context()
    assert str(caught.value) == f'can\'t use {name} "r": there is no secret manager to ask'


def test_relative_paths_are_those_of_the_configuration() -> None:
    config = TLSConfig(ca_file="ca.crt", cert_file="/c.crt", key_file="sub/c.key", server_name="s")
    assert config.with_directory("/dir") == replace(config, ca_file="/dir/ca.crt", key_file="/dir/sub/c.key")
    assert config.with_directory("") == config
    assert TLSConfig(ca="x").with_directory("/dir") == TLSConfig(ca="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{ca: a, ca_file: b}", "1:18: ca_file: at most one of ca, ca_file & ca_ref must be configured"),
        ("{cert: a, cert_file: b, key: k}", "1:22: cert_file: at most one of cert, cert_file & cert_ref must be"),
        ("{cert: a, key: k, key_ref: b}", "1:28: key_ref: at most one of key, key_file & key_ref must be configured"),
        (
            "{cert_file: a}",
            "1:1: exactly one of key or key_file must be configured when a client certificate is configured",
        ),
        ("{key: k}", "1:1: exactly one of cert or cert_file must be configured when a client key is configured"),
        ("{min_version: TLS9}", '1:15: min_version: found "TLS9", expected one of: TLS10, TLS11, TLS12, TLS13'),
        (
            "{min_version: TLS13, max_version: TLS12}",
            (
                "1:35: max_version: max_version must be greater than or equal to min_version if both are specified, "
                "found TLS12 and TLS13"
            ),
        ),
        ("{insecure_skip_verify: 2}", '1:24: insecure_skip_verify: found "2", expected true or false'),
        ("{key: [hunter2]}", "1:7: key: found a list, expected a string"),
        ("{key:hunter2}", "1:2: found a key without a value that is not known here"),
        ("{cafile: a}", "1:2: cafile: field cafile not found in this section; did you mean ca_file?"),
    ],
)
def test_sections_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert str(caught.value).startswith(f"f.yml:{message}")
    assert "hunter2" not in str(caught.value)


def test_the_keys_are_those_of_prometheus() -> None:
    assert {field.name for field in fields(TLSConfig)} == {
        *("ca", "ca_file", "ca_ref", "cert", "cert_file", "cert_ref", "key", "key_file", "key_ref"),
        *("server_name", "insecure_skip_verify", "min_version", "max_version"),
    }
