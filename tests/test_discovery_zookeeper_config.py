"""What a configuration says about ZooKeeper is read whole, means one thing, or is refused where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from trio_sd.config import Duration, parse_config
from trio_sd.discoverer import DiscovererConfig, DiscovererOptions
from trio_sd.discovery import default_registry
from trio_sd.discovery.zookeeper import NerveSDConfig, ServersetSDConfig, config
from trio_sd.discovery.zookeeper.ensemble import DigestAuth, Ensemble, normal_path, parse_servers
from trio_sd.discovery.zookeeper.members import parse_nerve_member, parse_serverset_member
from trio_sd.errors import ConfigError, FieldError
from trio_sd.resources import Resources
from trio_sd.secrets import Secret, SecretError
from trio_sd.tls import TLSConfig

PATH = "scrape_configs[0].serverset_sd_configs[0]"
GOOD = "servers: [zk1], paths: [/a]"


def parse(section: str, key: str = "serverset_sd_configs") -> DiscovererConfig:
    """Return what ``{section}`` says, as the one item under ``key``."""
    text = f"scrape_configs:\n- job_name: a\n  {key}:\n{line_of(section)}"
    (found,) = parse_config(text.encode(), file="dir/p.yml", registry=default_registry()).scrape["a"]
    return found


def line_of(section: str) -> str:
    return f"  - {{{section}}}"


def refused(section: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(section)
    return str(caught.value)


# The sections


@pytest.mark.parametrize(
    ("key", "of", "mechanism"),
    [("serverset_sd_configs", ServersetSDConfig, "serverset"), ("nerve_sd_configs", NerveSDConfig, "nerve")],
)
def test_a_section_with_defaults(key: str, of: type[ServersetSDConfig], mechanism: str) -> None:
    found = parse(GOOD, key)
    assert found == of(servers=("zk1",), paths=("/a",), timeout=Duration(10_000), refresh_interval=Duration(300_000))
    assert (type(found), found.mechanism) == (of, mechanism)


def test_a_section_with_everything() -> None:
    found = parse(
        "servers: ['zk1:2181,zk2:2181/c'], paths: [/b/, /a], timeout: 1m, refresh_interval: 1h, "
        "digest_auth: {username: me, password_file: p}, tls_config: {ca_file: ca.crt, cert_file: /c.crt, key_file: k}"
    )
    assert found == ServersetSDConfig(
        servers=("zk1:2181,zk2:2181/c",),
        paths=("/b/", "/a"),
        timeout=Duration(60_000),
        refresh_interval=Duration(3_600_000),
        digest_auth=DigestAuth(username="me", password_file="dir/p"),
        tls_config=TLSConfig(ca_file="dir/ca.crt", cert_file="/c.crt", key_file="dir/k"),
    )


def test_equal_sections_are_equal_and_the_mechanisms_are_not() -> None:
    found = parse(f"{GOOD}, digest_auth: {{username: me, password: a}}")
    assert found == parse(f"{GOOD}, digest_auth: {{username: me, password: a}}")
    assert found != parse(f"{GOOD}, digest_auth: {{username: me, password: b}}")
    assert parse(GOOD) != parse(GOOD, "nerve_sd_configs")
    assert isinstance(hash(found), int)


def test_a_section_without_encryption_is_not_one_without_particulars() -> None:
    assert parse(f"{GOOD}, tls_config: ~, digest_auth: ~") == parse(GOOD)
    assert parse(f"{GOOD}, tls_config: {{}}") == replace(ServersetSDConfig(("zk1",), ("/a",)), tls_config=TLSConfig())


@pytest.mark.parametrize(
    ("section", "at", "message"),
    [
        ("paths: [/a]", "{", ".servers: serverset SD config must contain at least one Zookeeper server"),
        ("servers: ~, paths: [/a]", "~", ".servers: serverset SD config must contain at least one Zookeeper server"),
        ("servers: [a]", "{", ".paths: serverset SD config must contain at least one path"),
        ("servers: [a], paths: [/, b/c]", "b/c", ".paths[1]: serverset SD config paths must begin with '/': b/c"),
        ("servers: [a], paths: ['']", "''", ".paths[0]: serverset SD config paths must begin with '/': \"\""),
        ("servers: [a], paths: /a", "/a", '.paths: found "/a", expected a list'),
        (
            *("servers: [a], paths: [/a, /b//c]", "/b"),
            '.paths[1]: found "" in the path "/b//c", expected a name between slashes',
        ),
        ("servers: [a], paths: [/a/../b]", "/a", '.paths[0]: found ".." in the path "/a/../b", expected a name'),
        ("servers: [a], paths: [/.]", "/.", '.paths[0]: found "." in the path "/.", expected a name'),
        (
            *('servers: [a], paths: ["/a\\0"]', '"/a'),
            '.paths[0]: found the character U+0000 in the path "/a\\u0000", which ZooKeeper refuses',
        ),
        (
            *("servers: [a, 'b:0'], paths: [/a]", "'b:0'"),
            '.servers[1]: "b:0" is not valid: found "b:0", expected host, host:port or [IPv6 address]:port, with a',
        ),
        (f"{GOOD}, timeout: 0s", "0s", ".timeout: the timeout must be greater than zero"),
        (f"{GOOD}, timeout: 10", "10", '.timeout: not a valid duration string: "10"'),
        (f"{GOOD}, refresh_interval: 0", "0", ".refresh_interval: the refresh interval must be greater than zero"),
        (
            *(f"{GOOD}, tls_config: {{cert: c}}", "{cert"),
            ".tls_config: exactly one of key or key_file must be configured when a client certificate is configured",
        ),
        (f"{GOOD}, path: /b", "path:", ".path: field path not found in this section; did you mean paths?"),
        (f"{GOOD}, digest_auth: {{}}", "{}", ".digest_auth.username: digest_auth needs a username, and found none"),
        (
            *(f"{GOOD}, digest_auth: {{username: me}}", "{username"),
            ".digest_auth: exactly one of digest_auth password & password_file must be configured, found none",
        ),
        (
            *(f"{GOOD}, digest_auth: {{username: me, password: hunter2, password_file: file}}", "file}"),
            ".digest_auth.password_file: exactly one of digest_auth password & password_file must be configured, found",
        ),
        (
            *(f"{GOOD}, digest_auth: {{username: 'me:hunter2', password: x}}", "'me"),
            '.digest_auth.username: found a ":" in the username, expected none: the password has its own field',
        ),
        (f"{GOOD}, digest_auth: 'me:hunter2'", "'me", ".digest_auth: found a string, expected a mapping"),
        (
            *("servers: ['me:hunter2@zk1:2181'], paths: [/a]", "'me"),
            '.servers[0]: found a "@", expected host:port; who to be is said by digest_auth',
        ),
    ],
)
def test_what_is_refused_and_where(section: str, at: str, message: str) -> None:
    found = refused(section)
    assert found.startswith(f"dir/p.yml:4:{line_of(section).index(at) + 1}: {PATH}{message}")
    assert "hunter2" not in found


# Paths


@pytest.mark.parametrize(
    ("paths", "roots"),
    [
        (["/a"], ["/a"]),
        (["/a/", "/b//"], ["/a", "/b"]),
        (["/"], ["/"]),
        (["//"], ["/"]),
        (["/b", "/a", "/b/"], ["/b", "/a"]),
        (["/a/b", "/a", "/a/c/d"], ["/a"]),
        (["/ab", "/a", "/a.b"], ["/ab", "/a", "/a.b"]),
        (["/a/b/c", "/a/b", "/c"], ["/a/b", "/c"]),
        (["/b", "/", "/a"], ["/"]),
    ],
)
def test_roots_are_told_once(paths: Sequence[str], roots: Sequence[str]) -> None:
    assert ServersetSDConfig(servers=("a",), paths=tuple(paths)).roots() == tuple(roots)


@pytest.mark.parametrize("path", ["/", "/a", "/a b/c", "/...", "/a..", "/.a", "/Zoë/動物園", "/\uffef", "/\u00a0"])
def test_paths_that_zookeeper_takes(path: str) -> None:
    assert normal_path(path) == normal_path(f"{path}/") == path


@pytest.mark.parametrize(
    "path",
    [
        *("", "a", "a/b", "./a", "//a", "/a//b", "/a/./b", "/a/.", "/..", "/../"),
        *("/\0", "/a\x1f", "/\x7f", "/\x9f", "/\ud800", "/\uf8ff", "/\ufff0", "/\uffff", "/\U0001f600"),
    ],
)
def test_paths_that_zookeeper_refuses(path: str) -> None:
    with pytest.raises(ValueError, match=r"expected|refuses"):
        normal_path(path)


# Servers


@pytest.mark.parametrize(
    ("servers", "hosts", "chroot"),
    [
        (["zk1"], [("zk1", 2181)], ""),
        (["zk2", "zk1:1"], [("zk1", 1), ("zk2", 2181)], ""),
        (["zk1", "ZK1:2181", "zk1:2182"], [("zk1", 2181), ("zk1", 2182)], ""),
        (["10.0.0.1:65535"], [("10.0.0.1", 65535)], ""),
        (["[::1]", "[0:0::1]:2181", "[FE80::1]:1"], [("::1", 2181), ("fe80::1", 1)], ""),
        (["zk2:2,zk1:1"], [("zk1", 1), ("zk2", 2)], ""),
        ([" zk2:2 , zk1:1 "], [("zk1", 1), ("zk2", 2)], ""),
        (["zk1/a"], [("zk1", 2181)], "/a"),
        (["zk1:1/a/b/"], [("zk1", 1)], "/a/b"),
        (["[::1]/a"], [("::1", 2181)], "/a"),
        (["zk1/"], [("zk1", 2181)], ""),
        (["zk1/me@here"], [("zk1", 2181)], "/me@here"),
        (["zk1:1,zk2:2/a"], [("zk1", 1), ("zk2", 2)], "/a"),
        (["zk1:1/a,zk2:2/a/"], [("zk1", 1), ("zk2", 2)], "/a"),
        (["zk1", "zk2/a"], [("zk1", 2181), ("zk2", 2181)], "/a"),
        (["zk1/a", "zk2/a"], [("zk1", 2181), ("zk2", 2181)], "/a"),
        (["zk1,zk2/a", "zk3,zk4/a"], [("zk1", 2181), ("zk2", 2181), ("zk3", 2181), ("zk4", 2181)], "/a"),
        (["zk1/", "zk2"], [("zk1", 2181), ("zk2", 2181)], ""),
        ([], [], ""),
    ],
)
def test_servers(servers: Sequence[str], hosts: Sequence[tuple[str, int]], chroot: str) -> None:
    assert parse_servers(servers) == (tuple(hosts), chroot)


NO_SERVER = "expected host, host:port or [IPv6 address]:port, with a port from 1 to 65535"
EXPECTED = "expected one after the last server only, or the same after each"


@pytest.mark.parametrize(
    ("servers", "index", "message"),
    [
        ([""], 0, f'"" is not valid: found "", {NO_SERVER}'),
        (["zk1", "zk2,"], 1, f'"zk2," is not valid: found "", {NO_SERVER}'),
        (["/a"], 0, f'"/a" is not valid: found "", {NO_SERVER}'),
        (["zk1:"], 0, f'"zk1:" is not valid: found "zk1:", {NO_SERVER}'),
        (["zk1:x"], 0, f'"zk1:x" is not valid: found "zk1:x", {NO_SERVER}'),
        (["zk1:65536"], 0, f'"zk1:65536" is not valid: found "zk1:65536", {NO_SERVER}'),
        (["zk1:-1"], 0, f'"zk1:-1" is not valid: found "zk1:-1", {NO_SERVER}'),
        (["zk1:१"], 0, f'"zk1:१" is not valid: found "zk1:१", {NO_SERVER}'),
        ([":2181"], 0, f'":2181" is not valid: found ":2181", {NO_SERVER}'),
        (["zk1 zk2"], 0, f'"zk1 zk2" is not valid: found "zk1 zk2", {NO_SERVER}'),
        (["a\0"], 0, f'"a\\u0000" is not valid: found "a\\u0000", {NO_SERVER}'),
        (["zk://zk1:2181/a"], 0, f'"zk://zk1:2181/a" is not valid: found "zk:", {NO_SERVER}'),
        (["::1"], 0, f'"::1" is not valid: found "::1", {NO_SERVER}'),
        (["[::1]2181"], 0, f'"[::1]2181" is not valid: found "[::1]2181", {NO_SERVER}'),
        (["[zk1]"], 0, f'"[zk1]" is not valid: found "[zk1]", {NO_SERVER}'),
        (["[]:1"], 0, f'"[]:1" is not valid: found "[]:1", {NO_SERVER}'),
        (["zk1/a//b"], 0, '"zk1/a//b" is not valid: found "" in the path "/a//b", expected a name between slashes'),
        (
            ["zk1", "zk1:1/a,zk2:2/b"],
            1,
            (
                '"zk1:1/a,zk2:2/b" is not valid: found the chroot "/a" here, and the chroot "/b" after the last '
                f"server; {EXPECTED}"
            ),
        ),
        (
            ["zk1/a,zk2"],
            0,
            f'"zk1/a,zk2" is not valid: found the chroot "/a" here, and no chroot after the last server; {EXPECTED}',
        ),
        (
            ["zk1/a", "zk2/b"],
            0,
            (
                '"zk1/a" is not valid: found the chroot "/a" here, and the chroot "/b" after the last server; '
                f"{EXPECTED}"
            ),
        ),
        (
            ["zk1/a", "zk2"],
            0,
            f'"zk1/a" is not valid: found the chroot "/a" here, and no chroot after the last server; {EXPECTED}',
        ),
        (
            ["zk1", "zk2/b", "zk3/a"],
            1,
            (
                '"zk2/b" is not valid: found the chroot "/b" here, and the chroot "/a" after the last server; '
                f"{EXPECTED}"
            ),
        ),
        (
            ["zk1/a", "zk2", "zk3/a"],
            1,
            f'"zk2" is not valid: found no chroot here, and the chroot "/a" after the last server; {EXPECTED}',
        ),
    ],
)
def test_servers_that_are_refused(servers: Sequence[str], index: int, message: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse_servers(servers)
    assert (caught.value.field, caught.value.message) == (("servers", index), message)


# Ensembles


def test_an_ensemble_names_itself_and_no_secret() -> None:
    servers, _ = parse_servers(["zk2", "zk1:1", "[::1]"])
    plain = Ensemble(servers, 10)
    assert str(plain) == "zookeeper [::1]:2181,zk1:1,zk2:2181"
    mine = replace(plain, digest_auth=DigestAuth(username="me", password=Secret("hunter2")))
    assert str(mine) == f"{plain} as me"
    assert str(replace(plain, tls_config=TLSConfig())) == f"{plain} over TLS"
    whole = replace(mine, tls_config=TLSConfig(cert="c", key=Secret("hunter2")))
    assert str(whole) == f"{plain} as me over TLS"
    assert "hunter2" not in repr(whole)
    assert str(replace(plain, digest_auth=DigestAuth(username="a b\n"))) == f'{plain} as "a b\\n"'


def test_ensembles_are_values() -> None:
    servers, _ = parse_servers(["zk1", "zk2"])
    mine = Ensemble(servers, 10, DigestAuth(username="me", password=Secret("a")))
    assert mine == Ensemble(parse_servers(["zk2,ZK1"])[0], 10.0, DigestAuth(username="me", password=Secret("a")))
    others = [replace(mine, timeout=11), replace(mine, digest_auth=None), replace(mine, tls_config=TLSConfig())]
    others.append(replace(mine, digest_auth=DigestAuth(username="me", password=Secret("b"))))
    assert len({mine, *others}) == 5


def test_a_credential_is_what_the_file_holds_now(tmp_path: Path) -> None:
    file = tmp_path / "p"
    auth = DigestAuth(username="me", password_file="p").with_directory(str(tmp_path))
    with pytest.raises(SecretError, match="No such file or directory"):
        auth.credential()
    for password in "hunter2", "hunter3":
        file.write_text(f"{password}\n")
        assert auth.credential() == Secret(f"me:{password}")
    assert DigestAuth(username="me", password=Secret(" x ")).credential() == Secret("me: x ")


# From a configuration to what runs


@pytest.mark.parametrize(
    ("key", "parser"),
    [("serverset_sd_configs", parse_serverset_member), ("nerve_sd_configs", parse_nerve_member)],
)
async def test_a_discoverer_is_told_everything(
    key: str, parser: object, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(config, "ZooKeeperDiscoverer", lambda *args, **kwargs: told.append((args, kwargs)))
    found = parse(
        "servers: ['zk2,zk1/c'], paths: [/a/, /a/b, /], timeout: 7s, refresh_interval: 9s, "
        "digest_auth: {username: me, password: hunter2}, tls_config: {server_name: s}",
        key,
    )
    options = DiscovererOptions(resources=Resources(nursery))
    found.discoverer(options)
    ensemble = Ensemble(
        (("zk1", 2181), ("zk2", 2181)),
        7.0,
        DigestAuth(username="me", password=Secret("hunter2")),
        TLSConfig(server_name="s"),
    )
    arguments = {"chroot": "/c", "parse": parser, "refresh_interval": 9.0, "options": options}
    assert told == [((ensemble, ("/",)), arguments)]


async def test_making_a_discoverer_opens_nothing(nursery: trio.Nursery) -> None:
    options = DiscovererOptions(resources=Resources(nursery))
    for key in "serverset_sd_configs", "nerve_sd_configs":
        found = parse(GOOD, key)
        assert found.discoverer(options) is not found.discoverer(options)
    assert not nursery.child_tasks
