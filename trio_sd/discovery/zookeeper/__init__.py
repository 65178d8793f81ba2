"""Targets from ZooKeeper: the members of Twitter's serversets and of Airbnb's Nerve, as they come and go.

The two mechanisms differ in how a member is written, and share everything else. ``config`` is what the configuration
says, ``ensemble`` which servers it means, ``members`` makes labels of a znode, and ``discoverer`` is the loop that
ties everything together. Start there. What speaks to ZooKeeper needs ``pip install 'trio-sd[zookeeper]'``, and is
imported when a discoverer runs.
"""

from __future__ import annotations

from .config import NerveSDConfig, ServersetSDConfig

__all__ = ["NerveSDConfig", "ServersetSDConfig"]
