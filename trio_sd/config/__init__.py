"""From text to typed, frozen, hashable configuration.

``nodes`` makes a tree of a YAML text, ``decode`` makes typed values of the tree, ``groups`` does so for target groups,
and ``prometheus`` knows the dialect. Nothing in here runs anything or knows a mechanism.
"""

from __future__ import annotations

from ..durations import Duration, format_duration
from .decode import IGNORED, Ignored, decode
from .frozen import FrozenMapping
from .groups import decode_target_group
from .nodes import MappingNode, Node, Scalar, SequenceNode, describe, is_null, parse_yaml
from .prometheus import (
    DISCOVERY_KEYS,
    AlertmanagerSection,
    Config,
    ScrapeJob,
    content_digest,
    load_config,
    parse_config,
)

__all__ = [
    "DISCOVERY_KEYS",
    "IGNORED",
    "AlertmanagerSection",
    "Config",
    "Duration",
    "FrozenMapping",
    "Ignored",
    "MappingNode",
    "Node",
    "Scalar",
    "ScrapeJob",
    "SequenceNode",
    "content_digest",
    "decode",
    "decode_target_group",
    "describe",
    "format_duration",
    "is_null",
    "load_config",
    "parse_config",
    "parse_yaml",
]
