"""``trio-sd check`` beside the real ``promtool check service-discovery``, on one name server and one HTTP server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from .http_servers import (
    Certificates,
    Response,
    Route,
    TargetList,
    json_response,
    open_http_server,
    redirect,
    requires_basic,
)
from .processes import ENVIRONMENT, run_command
from .test_promtool import PROMTOOL

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: nothing to compare with"
)


def found(document: Any) -> list[str]:  # Any: JSON
    """Return what was found, in an order of its own: neither promises one."""
    return sorted(json.dumps([entry["discoveredLabels"], entry["labels"]], sort_keys=True) for entry in document)


# --- DNS: promtool asks the servers of /etc/resolv.conf at port 53, so both run in namespaces of their own ---


def _no_namespaces() -> str | None:
    """Return why there can be none here, or ``None``."""
    if shutil.which("dnsmasq") is None:
        return "dnsmasq is not installed"
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, text=True, check=False)
    return f"needs root with namespaces: {tried.stderr.strip()}" if tried.returncode else None


RESOLV_CONF = """
search svc.test other.test
nameserver 127.0.0.1
options ndots:2
"""

DNSMASQ = """
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
local=/test/
host-record=web.svc.test,10.0.0.1
host-record=web.svc.test,10.0.0.2,fd00::2
host-record=only.other.test,10.0.0.3
cname=alias.svc.test,web.svc.test
srv-host=_http._tcp.svc.test,web.svc.test,8080,1,2
srv-host=_http._tcp.svc.test,db.svc.test,8081,3,4
mx-host=svc.test,mail.svc.test,10
mx-host=svc.test,backup.svc.test,20
"""

# Without NS, which 2.42 does not know.
DNS_JOBS: Mapping[str, list[dict[str, object]]] = {
    "addresses": [
        {"names": ["web.svc.test", "web.svc.test.", "web", "alias", "only", "none.svc.test"], "type": "A", "port": 80},
        {"names": ["web.svc.test", "only"], "type": "aaaa", "port": 9100},
    ],
    "others": [
        {"names": ["_http._tcp.svc.test", "_http._tcp", "_none._tcp.svc.test", "web.svc.test"]},
        {"names": ["svc.test.", "web.svc.test"], "type": "MX", "port": 25},
    ],
}


@pytest.mark.skipif(_no_namespaces() is not None, reason=_no_namespaces() or "they can")
def test_both_find_the_same_by_dns(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(RESOLV_CONF)
    (tmp_path / "dnsmasq.conf").write_text(DNSMASQ)
    jobs = [{"job_name": name, "dns_sd_configs": configs} for name, configs in DNS_JOBS.items()]
    (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": jobs}))
    done = subprocess.run(
        ["unshare", "--mount", "--net", sys.executable, "-m", "tests.dns_namespace", str(tmp_path)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for name, least in (("addresses", 10), ("others", 4)):
        promtool, ours = answers[name]
        assert not isinstance(promtool, str), promtool
        assert not isinstance(ours, str), ours
        assert len(promtool) >= least
        assert found(ours) == found(promtool)


# --- HTTP ---

GROUPS = [
    {"targets": ["a:1", "b:2"], "labels": {"zone": "eu", "empty": "", "__meta_x": "y"}},
    {"targets": []},
    {"targets": ["[::1]:9100"], "labels": None},
    {"Targets": ["upper:1"], "LABELS": {"k": "1"}},
]


async def test_both_find_the_same_by_http(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    routes: dict[str, Route] = {
        "/sd": TargetList(GROUPS),
        "/secret": requires_basic("me", "secret", TargetList([{"targets": ["secret:1"]}])),
        "/moved": redirect("/sd?moved"),
        "/empty": json_response([]),
        "/null": json_response(None),
        "/charset": Response(200, (("Content-Type", 'Application/JSON; charset="UTF-8"'),), b'[{"targets":["c:1"]}]'),
        # What neither takes:
        "/html": Response(200, (("Content-Type", "text/html"),), b"[]"),
        "/500": Response(500, (), b"[]"),
        "/204": Response(204),
        "/half": Response(200, (("Content-Type", "application/json"),), b'[{"targets":["half:1"]}'),
        "/unknown": json_response([{"targets": ["d:1"], "port": 1}]),
        "/label": json_response([{"targets": ["e:1"], "labels": {"a": 1}}]),
    }
    async with open_http_server(routes) as plain, open_http_server(routes, tls=certificates.server()) as tls:
        paths = ["/sd", "/secret", "/moved", "/empty", "/null", "/charset", "/html", "/500", "/204", "/half"]
        configs: list[dict[str, object]] = [{"url": plain.url(path)} for path in (*paths, "/unknown", "/label")]
        configs += [
            {"url": plain.url("/secret?me"), "basic_auth": {"username": "me", "password": "secret"}},
            {"url": plain.url("/secret?wrong"), "basic_auth": {"username": "me", "password": "wrong"}},
            {"url": plain.url("/moved?stay"), "follow_redirects": False},
            {"url": tls.url("/sd?trusted"), "tls_config": {"ca_file": certificates.path("authority.crt")}},
            {"url": tls.url("/sd?unknown")},
            {"url": tls.url("/sd?any"), "tls_config": {"insecure_skip_verify": True}},
        ]
        config = tmp_path / "prometheus.yml"
        config.write_text(json.dumps({"scrape_configs": [{"job_name": "job", "http_sd_configs": configs}]}))
        promtool = await trio.run_process([*PROMTOOL, str(config), "job"], capture_stdout=True, check=False)
        ours = await trio.to_thread.run_sync(run_command, "check", config, "job", "--timeout", "3s")
    assert ours.returncode == 2  # because not all of them have reported
    assert "had not reported" in ours.stderr
    expected = found(json.loads(promtool.stdout))
    assert len(expected) > 15
    assert found(json.loads(ours.stdout)) == expected
