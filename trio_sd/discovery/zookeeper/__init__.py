"""Targets from ZooKeeper: the members of Twitter's serversets and of Airbnb's Nerve, as they come and go.

The two mechanisms differ in how a member is written, and share everything else. ``config`` is what the configuration
says, ``ensemble`` which servers it means, ``discoverer`` the loop that ties everything together. Start there. Below it,
``session`` is a session as Trio sees it, ``link`` the one room that knows kazoo's inside, ``protocol`` requests and
answers as bytes; ``walk`` reads znodes into the ``tree`` that decides what is shown, with ``members`` for the labels.
What speaks to ZooKeeper needs ``pip install 'trio-sd[zookeeper]'``, and is imported when a discoverer runs.
"""

from __future__ import annotations

from .config import NerveSDConfig, ServersetSDConfig
from .ensemble import DigestAuth

__all__ = ["DigestAuth", "NerveSDConfig", "ServersetSDConfig"]
