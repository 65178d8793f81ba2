"""A request goes through the proxy that a section or the environment names, or past it, as it does in Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sd.errors import DiscoveryError
from trio_sd.http_config import ProxyConfig
from trio_sd.proxies import Proxy, choose_proxy
from trio_sd.secrets import Secret

PROXY = Proxy("http", "proxy", 3128)


def at(url: str, *, no_proxy: str = "") -> ProxyConfig:
    return ProxyConfig(proxy_url=Secret(url), no_proxy=no_proxy)


def goes_directly(url: str, no_proxy: str) -> bool:
    """Tell whether a list excepts a URL; the environment has to say the same."""
    chosen = choose_proxy(at("http://proxy:3128", no_proxy=no_proxy), url, {})
    environ = {"HTTP_PROXY": "proxy:3128", "HTTPS_PROXY": "proxy:3128", "NO_PROXY": no_proxy}
    assert choose_proxy(ProxyConfig(proxy_from_environment=True), url, environ) == chosen
    assert chosen in (None, PROXY)
    return chosen is None


def refusal(config: ProxyConfig, url: str = "http://host/", environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(DiscoveryError) as caught:
        choose_proxy(config, url, environ or {})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


# What a URL of a proxy says


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy", Proxy("http", "proxy", 80)),
        ("http://proxy:", Proxy("http", "proxy", 80)),
        ("https://proxy", Proxy("https", "proxy", 443)),
        ("socks5://proxy", Proxy("socks5", "proxy", 1080)),
        ("socks5h://proxy", Proxy("socks5h", "proxy", 1080)),
        ("HTTPS://Proxy.Example:8443/path?query#fragment", Proxy("https", "proxy.example", 8443)),
        ("http://proxy?query", Proxy("http", "proxy", 80)),
        ("http://[2001:DB8::1]:3128", Proxy("http", "2001:db8::1", 3128)),
        ("http://[fe80::1%25eth0]", Proxy("http", "fe80::1%eth0", 80)),
        ("http://bücher.example", Proxy("http", "xn--bcher-kva.example", 80)),
        ("http://b%C3%BCcher.example", Proxy("http", "xn--bcher-kva.example", 80)),
        ("proxy", Proxy("http", "proxy", 80)),
        ("proxy:3128", PROXY),
        ("proxy:3128/path", PROXY),
        ("//proxy:3128", PROXY),
        ("127.0.0.1:3128", Proxy("http", "127.0.0.1", 3128)),
        ("[::1]:3128", Proxy("http", "::1", 3128)),
        ("u:p@proxy:3128", Proxy("http", "proxy", 3128, (Secret("u"), Secret("p")))),
        ("http://u:p@proxy", Proxy("http", "proxy", 80, (Secret("u"), Secret("p")))),
        ("http://u@proxy", Proxy("http", "proxy", 80, (Secret("u"), Secret()))),
        ("http://@proxy", Proxy("http", "proxy", 80, (Secret(), Secret()))),
        ("http://a@b:c:d@proxy", Proxy("http", "proxy", 80, (Secret("a@b"), Secret("c:d")))),
        ("socks5://%C3%BC%3A:%2F+%40@proxy", Proxy("socks5", "proxy", 1080, (Secret("ü:"), Secret("/+@")))),
    ],
)
def test_what_a_url_of_a_proxy_says(url: str, proxy: Proxy) -> None:
    assert choose_proxy(at(url), "http://host/", {}) == proxy


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://proxy:hunter2@x", "expected a URL with one of the schemes http, https, socks5, socks5h"),
        ("hunter2://x", "expected a URL with one of the schemes"),
        ("http://u:hunter2/x@proxy", "not a valid URL: invalid port after its host"),
        ("u:hunter2", "not a valid URL: invalid port after its host"),
        ("http://u:%hunter2@proxy", "not a valid URL: invalid URL escape"),
        ("http://hunter2\n", "not a valid URL: found a control character"),
        (" http://hunter2", "not a valid URL"),
        ("http://u:hunter2%ff@proxy", "the user or the password in the URL is not UTF-8"),
        ("http://hunter2%ff:p@proxy", "the user or the password in the URL is not UTF-8"),
        ("http://", "expected a URL with the name or the address of a host"),
        ("http://u:hunter2@", "expected a URL with the name or the address of a host"),
        (":3128", "expected a URL with the name or the address of a host"),
        ("http://hunter2%ff", "expected a URL with the name or the address of a host"),
        ("http://ü..x", "expected a URL with the name or the address of a host"),
        ("http://a:hunter2:80", "expected a URL such as http://host:80"),
        ("http://proxy:0", "expected one from 1 to 65535"),
        ("http://proxy:65536", "expected one from 1 to 65535"),
        ("http://proxy:" + "1" * 5000, "expected one from 1 to 65535"),
    ],
)
def test_a_proxy_that_can_not_be_used_is_told_and_not_shown(url: str, reason: str) -> None:
    assert (said := refusal(at(url))).startswith("can't use the proxy of proxy_url: ")
    assert reason in said
    environ = {"http_proxy": url}
    assert refusal(ProxyConfig(proxy_from_environment=True), environ=environ).startswith(
        "can't use the proxy of the variable http_proxy: "
    )


def test_a_proxy_is_a_value_that_shows_no_password() -> None:
    first, second = (choose_proxy(at("http://hunter2:hunter2@proxy"), "http://host/", {}) for _ in range(2))
    assert hash(first) == hash(second)
    assert first == second
    assert "hunter2" not in repr(first)
    assert first != choose_proxy(at("http://hunter2:hunter3@proxy"), "http://host/", {})


# Which URLs are excepted


def test_a_url_alone_is_for_all_requests() -> None:
    for url in "http://host/", "https://host/", "http://localhost/", "http://127.0.0.1:80/", "https://[::1]/":
        assert choose_proxy(at("proxy:3128"), url, {"NO_PROXY": "*"}) == PROXY


@pytest.mark.parametrize("config", [ProxyConfig(), at(""), at("", no_proxy="x")])
def test_without_a_url_there_is_no_proxy(config: ProxyConfig) -> None:
    assert choose_proxy(config, "http://host/", {"HTTP_PROXY": "proxy"}) is None


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        # always
        *[("x", f"http://{host}:8080/") for host in ("localhost", "LocalHost", "127.0.0.1", "127.9.9.9", "[::1]")],
        ("x", "https://u:p@[::ffff:127.0.0.1]/"),
        # everything
        ("*", "http://host/"),
        ("a, * ,b", "https://10.0.0.1:8443/"),
        # domains
        ("a.example", "http://a.example/"),
        ("a.example", "http://b.a.example/"),
        ("A.Example", "http://a.eXample/"),
        (" x,\ta.example ,", "http://a.example"),
        (".a.example", "http://b.a.example/"),
        ("*.a.example", "http://c.b.a.example/"),
        ("example", "http://a.example?x"),
        ("bücher.example", "http://bücher.example/"),
        ("bücher.example", "http://xn--bcher-kva.example/"),
        (".xn--bcher-kva.example", "http://a.b%C3%BCcher.example/"),
        ("a.example.", "http://a.example./"),
        # ports
        ("a.example:80", "http://a.example/"),
        ("a.example:443", "https://b.a.example/"),
        (".a.example:8080", "http://b.a.example:8080/"),
        ("a.example:", "http://a.example:1/"),
        ("10.0.0.1:80", "http://10.0.0.1"),
        ("[2001:db8::1]:80", "http://[2001:db8::1]/"),
        # addresses
        ("10.0.0.1", "http://10.0.0.1:8080/"),
        ("2001:db8::1", "http://[2001:0DB8:0::1]:8080/"),
        ("fe80::1", "http://[fe80::1%25eth0]/"),
        ("::ffff:10.0.0.1", "http://10.0.0.1/"),
        ("10.0.0.1", "http://[::ffff:10.0.0.1]/"),
        # networks
        ("10.0.0.0/8", "http://10.255.255.255/"),
        ("10.1.2.3/8", "http://10.4.5.6:8080/"),
        ("0.0.0.0/0", "http://10.0.0.1/"),
        ("2001:DB8::/32", "http://[2001:db8::1]/"),
        ("::ffff:10.0.0.0/104", "http://10.255.0.1/"),
        ("10.0.0.0/8", "http://[::ffff:10.0.0.1]/"),
    ],
)
def test_what_is_excepted(no_proxy: str, url: str) -> None:
    assert goes_directly(url, no_proxy)


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        (",", "http://host./"),
        # domains
        ("a.example", "http://ba.example/"),
        ("a.example", "http://example/"),
        ("a.example", "http://a.example.b/"),
        ("a.example", "http://a.example./"),
        (".a.example", "http://a.example/"),
        ("*.a.example", "http://a.example/"),
        ("*a.example", "http://a.example/"),
        ("a.*", "http://a.example/"),
        ("http://a.example", "http://a.example/"),
        ("localhost", "http://localhost.example/"),
        ("*..a.example", "http://b.a.example/"),
        # ports
        ("a.example:8080", "http://a.example/"),
        ("a.example:80", "https://a.example/"),
        ("a.example:http", "http://a.example/"),
        (":80", "http://host./"),
        ("*:80", "http://host/"),
        ("10.0.0.1:8080", "http://10.0.0.1"),
        ("10.0.0.0/8:80", "http://10.0.0.1/"),
        # addresses
        ("10.0.0.1", "http://10.0.0.10/"),
        ("0.0.1", "http://10.0.0.1/"),
        ("1", "http://10.0.0.1/"),
        ("10.0.0.1", "http://10.0.0.1.example/"),
        ("[2001:db8::1]", "http://[2001:db8::1]/"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]/"),
        # networks
        ("10.0.0.0/8", "http://11.0.0.1/"),
        ("10.0.0.0/8", "http://[2001:db8::1]/"),
        ("::/0", "http://10.0.0.1/"),
        ("10.0.0.0/33", "http://10.0.0.1/"),
        ("10.0.0.0/255.0.0.0", "http://10.0.0.1/"),
        ("10.0.0.0/8", "http://ten.example/"),
    ],
)
def test_what_is_not_excepted(no_proxy: str, url: str) -> None:
    assert not goes_directly(url, no_proxy)


@given(address=st.ip_addresses(v=4), bits=st.integers(0, 32), network=st.ip_addresses(v=4))
def test_a_network_excepts_the_addresses_in_it(address: IPv4Address, bits: int, network: IPv4Address) -> None:
    inside = address in IPv4Network((network, bits), strict=False)
    assert goes_directly(f"http://{address}/", f"{network}/{bits}") == (inside or address.is_loopback)


LABELS = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=3)


@given(host=LABELS, domain=LABELS)
def test_a_domain_excepts_whole_labels(host: list[str], domain: list[str]) -> None:
    is_end = host[-len(domain) :] == domain
    url, name = f"http://{'.'.join(host)}/", ".".join(domain)
    assert goes_directly(url, name) == is_end
    assert goes_directly(url, f".{name}") == goes_directly(url, f"*.{name}") == (is_end and host != domain)


@given(no_proxy=st.text(), url=st.sampled_from(["http://host/", "http://10.0.0.1/", "http://[2001:db8::1]/"]))
def test_no_list_is_an_error(no_proxy: str, url: str) -> None:
    if no_proxy:
        goes_directly(url, no_proxy)


@given(text=st.text())
def test_any_text_is_a_proxy_or_refused(text: str) -> None:
    try:
        proxy = choose_proxy(at(text), "http://host/", {})
    except DiscoveryError:
        return
    assert proxy is None or (proxy.host.isascii() and proxy.host and 0 < proxy.port < 65536)


# The environment

FROM_ENVIRONMENT = ProxyConfig(proxy_from_environment=True)


@pytest.mark.parametrize(
    ("environ", "for_http", "for_https"),
    [
        ({}, "", ""),
        ({"HTTP_PROXY": "a"}, "a", ""),
        ({"HTTPS_PROXY": "a"}, "", "a"),
        ({"http_proxy": "a", "https_proxy": "b"}, "a", "b"),
        ({"http_proxy": "a", "HTTP_PROXY": "b"}, "b", ""),
        ({"http_proxy": "a", "HTTP_PROXY": ""}, "a", ""),
        ({"https_proxy": "a", "HTTPS_PROXY": "b"}, "", "b"),
        ({"ALL_PROXY": "a", "all_proxy": "a"}, "", ""),
        ({"HTTPS_PROXY": "a", "no_proxy": "host"}, "", ""),
        ({"HTTPS_PROXY": "a", "no_proxy": "host", "NO_PROXY": "other"}, "", "a"),
        ({"HTTPS_PROXY": "a", "no_proxy": "host", "NO_PROXY": ""}, "", ""),
        ({"HTTPS_PROXY": "a", "REQUEST_METHOD": "GET"}, "", "a"),
        ({"HTTP_PROXY": "a", "REQUEST_METHOD": ""}, "a", ""),
    ],
)
def test_the_environment(environ: Mapping[str, str], for_http: str, for_https: str) -> None:
    chosen = [choose_proxy(FROM_ENVIRONMENT, f"{scheme}://host/", environ) for scheme in ("http", "HTTPS")]
    assert [proxy.host if proxy else "" for proxy in chosen] == [for_http, for_https]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_a_cgi_program_does_not_use_what_a_request_may_have_set(name: str) -> None:
    environ = {name: "http://hunter2", "REQUEST_METHOD": "GET", "NO_PROXY": "*"}
    message = f"can't use the proxy of the variable {name}: REQUEST_METHOD is set, as for a CGI program"
    assert refusal(FROM_ENVIRONMENT, "http://host/", environ) == message


def test_a_bad_proxy_that_is_not_needed_is_not_looked_at() -> None:
    assert choose_proxy(FROM_ENVIRONMENT, "http://host/", {"HTTP_PROXY": "ftp://x", "NO_PROXY": "host"}) is None


@pytest.mark.parametrize("url", ["/path", "host", "mailto:x", "ftp://host/", "http://hunter2:x/", "http://a:b:80/"])
def test_what_is_asked_for_has_to_be_a_url_with_a_host(url: str) -> None:
    assert refusal(at("proxy", no_proxy="x"), url).startswith("can't choose a proxy: ")
    assert refusal(FROM_ENVIRONMENT, url, {"HTTP_PROXY": "x"}).startswith("can't choose a proxy: ")
