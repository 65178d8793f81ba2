"""Profiles for hypothesis: the same examples every time, or very many of them. A ZooKeeper server for many tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import trio
from hypothesis import settings

from .zookeeper import ZooKeeperServer

# Tests are deterministic; what only chance finds is for the campaign (bash .ci/campaign).
settings.register_profile("default", deadline=None, derandomize=True, database=None)
settings.register_profile("campaign", deadline=None, max_examples=5_000)
settings.load_profile("default")


@pytest.fixture(scope="session")
def shared_zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    """A server for all tests that leave it running; they are marked `needs_zookeeper`, and use `zookeeper_root`."""
    server = ZooKeeperServer(tmp_path_factory.mktemp("zookeeper"))
    try:
        trio.run(server.start)
        yield server
    finally:
        server.kill()


@pytest.fixture
def zookeeper_root() -> str:
    """A path that no other test uses; it is not yet there."""
    return f"/test-{uuid.uuid4().hex}"
