"""What must hold for any input, however bad: it is taken, or refused at a place in the text, in bounded time and space.

The tests hand in what they can think of, and the fuzzer (``python -m tests.fuzz``) what nobody can.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar
from unittest import mock

from trio_sd.config import Config, MappingNode, Node, Scalar, SequenceNode, parse_config, parse_yaml
from trio_sd.discovery import default_registry
from trio_sd.discovery.file.parse import parse
from trio_sd.errors import ConfigError
from trio_sd.limits import Limits
from trio_sd.targets import TargetGroup
from trio_sd.web.web_config import WebConfig, parse_web_config

SECONDS: Final = 3.0  # of this process, for an input of a few kilobytes
MEGABYTES: Final = 200
LONGEST_MESSAGE: Final = 10_000  # escapes may take ten characters each

FILE: Final = "/nowhere/prometheus.yml"
WEB_FILE: Final = "/nowhere/web.yml"
REGISTRY: Final = default_registry()
LIMITS: Final = Limits()

T = TypeVar("T")

_YAML_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_JSON_BREAK: Final = re.compile("\n")
_LABELS: Final = {"__address__": "example.org:80", "zone": "ü", "__meta_x": "a" * 100}
_SECRETS: Final = {
    "basic_auth": {"password"},
    "digest_auth": {"password"},
    "authorization": {"credentials"},
    "oauth2": {"client_secret", "client_certificate_key"},
    "tls_config": {"key"},
    "sigv4": {"secret_key"},
}
"""Where secrets stand: the keys of each section."""
_OF_SECRETS: Final = frozenset({"basic_auth_users", "bearer_tokens"})
"""Sections in which everything is one."""


def check(content: bytes) -> None:
    """Check that ``content`` does no harm, whatever it is taken for."""
    check_config(content)
    check_targets(content, "/nowhere/targets.yml")
    check_targets(content, "/nowhere/targets.json")
    check_web_config(content)


def check_config(content: bytes) -> Config | ConfigError:
    """Check that ``content`` does no harm as a configuration; return what became of it."""
    with mock.patch("trio_sd.config.prometheus._matches", _no_files):
        found = _bounded(partial(parse_config, content, file=FILE, registry=REGISTRY), content)
        if isinstance(found, ConfigError):
            _check_error(found, content, FILE, _YAML_BREAK)
            return found
        again = parse_config(content, file=FILE, registry=REGISTRY)
    assert found == again
    assert found.scrape == again.scrape
    hash((*found.scrape.values(), *found.notify.values(), *found.jobs.values(), *found.alertmanagers.values()))
    _bounded(partial(_relabel, found), content)
    return found


def check_targets(content: bytes, path: str) -> tuple[TargetGroup, ...] | ConfigError:
    """Check that ``content`` does no harm as a target file; return what became of it."""
    found = _bounded(partial(parse, content, path, LIMITS), content)
    if isinstance(found, ConfigError):
        _check_error(found, content, path, _JSON_BREAK if path.endswith(".json") else _YAML_BREAK)
    else:
        assert found == parse(content, path, LIMITS)
        hash(found)
    return found


def check_web_config(content: bytes) -> WebConfig | ConfigError:
    """Check that ``content`` does no harm as a web configuration; return what became of it."""
    found = _bounded(partial(parse_web_config, content, file=WEB_FILE), content)
    if isinstance(found, ConfigError):
        _check_error(found, content, WEB_FILE, _YAML_BREAK)
        return found
    assert found == parse_web_config(content, file=WEB_FILE)
    assert all(len(hashed) == 60 for hashed in found.users().values())
    assert all(len(token) == 32 for token in found.tokens())
    if found.tls_server_config is not None:
        assert all(os.path.isabs(os.fsencode(file)) for file in found.tls_server_config.files())
    for value in found.http_server_config.headers.values():
        value.encode("ascii")
    text = repr(found)
    assert not any(secret in text for secret in secrets_of(content) if content.count(secret.encode()) == 1)
    return found


def _no_files(pattern: str) -> list[str]:
    """Stand in for the file system, which is no business of what was made up."""
    return []


def _relabel(config: Config) -> None:
    for labeler in (
        *(job.labeler() for job in config.jobs.values()),
        *(section.labeler() for section in config.alertmanagers.values()),
    ):
        labeler.target_labels(labeler.discovered_labels(_LABELS, {}))


def _bounded(run: Callable[[], T], content: bytes) -> T | ConfigError:
    """Return what ``run`` returns, or the ConfigError that it raises; nothing else, and not too late."""
    space = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    try:
        found: T | ConfigError = run()
    except ConfigError as error:
        found = error
    taken = time.process_time() - start
    assert taken < SECONDS + len(content) / 50_000, f"took {taken:.1f} s"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - space) / 1024
    assert grown < MEGABYTES, f"took {grown:.0f} MB"
    return found


def _check_error(error: ConfigError, content: bytes, file: str, line_break: re.Pattern[str]) -> None:
    message = str(error)
    assert message.isprintable()
    assert len(message) < LONGEST_MESSAGE
    assert error.message
    assert error.position is not None
    assert error.position.file == file
    lines = line_break.split(content.decode(errors="replace").removeprefix("\ufeff"))
    assert 1 <= error.position.line <= len(lines)
    assert 1 <= error.position.column <= len(lines[error.position.line - 1]) + 1
    text = content.decode(errors="replace")
    for secret in secrets_of(content):
        # What is written twice may be no secret at the other place.
        assert text.count(secret) > 1 or secret not in message, f"the message shows {secret}"


def secrets_of(content: bytes) -> Iterator[str]:
    """Yield the secrets of a configuration, if it is YAML; short ones may be part of anything."""
    try:
        root = parse_yaml(content, file=FILE, limits=Limits(nodes=10_000))
    except ConfigError:
        return
    open_nodes: list[tuple[str, Node | None]] = [("", root)]
    while open_nodes:
        section, node = open_nodes.pop()
        if isinstance(node, SequenceNode):
            open_nodes.extend((section, item) for item in node.items)
        elif isinstance(node, MappingNode):
            for key, value in node.entries:
                if key.text not in _SECRETS.get(section, ()) and section not in _OF_SECRETS:
                    open_nodes.append((key.text, value))
                elif isinstance(value, Scalar) and len(value.text) >= 8:
                    yield value.text
