"""A world of its own, where the name server is one that a test configures: ``python -m tests.dns_namespace DIRECTORY``.

It is run by ``unshare --mount --net`` as root, because Prometheus asks the name servers of ``/etc/resolv.conf`` at port
53 only. ``DIRECTORY`` has ``resolv.conf``, ``dnsmasq.conf`` and ``prometheus.yml``; it prints what promtool and trio-sd
find in each job of that.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from .processes import COMMAND, ENVIRONMENT

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def main() -> None:
    """Start the name server, ask both, and print their answers by job."""
    directory = Path(sys.argv[1])
    _turn_on_loopback()
    subprocess.run(["mount", "--bind", directory / "resolv.conf", "/etc/resolv.conf"], check=True)
    config = directory / "prometheus.yml"
    jobs = [job["job_name"] for job in yaml.safe_load(config.read_text())["scrape_configs"]]
    server = subprocess.Popen(
        ["dnsmasq", "--no-daemon", f"--conf-file={directory / 'dnsmasq.conf'}", "--log-facility=-"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:  # which it writes when it is listening
            if "started" in line:
                break
        found = {job: (_promtool(config, job), _ours(config, job)) for job in jobs}
    finally:
        server.kill()
        server.wait()
    print(json.dumps(found))


def _turn_on_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _promtool(config: Path, job: str) -> object:
    return _json(["promtool", "check", "service-discovery", "--timeout=2s", str(config), job])


def _ours(config: Path, job: str) -> object:
    return _json([*COMMAND, "check", str(config), job])


def _json(command: Sequence[str]) -> object:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return f"{done.stdout}{done.stderr}"


if __name__ == "__main__":
    main()
