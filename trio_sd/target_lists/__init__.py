"""Lists of target groups in JSON, as files and HTTP endpoints have them.

``decode`` makes groups of bytes, ``outline`` spares it what has not changed in a large list.
"""

from __future__ import annotations

from .decode import GroupMaker, Origin, parse_json, too_many
from .outline import Outline, Parsed

__all__ = ["GroupMaker", "Origin", "Outline", "Parsed", "parse_json", "too_many"]
