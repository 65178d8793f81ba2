"""How much input is too much.

Input that reaches a limit is refused with a message that names the limit; nothing is cut short in silence.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is read. The defaults are far above what is sensible, and far below what hurts.

    Attributes:
      file_bytes: size of one configuration or target file.
      http_body_bytes: size of one answer of an HTTP server.
      groups: target groups in one target file or answer.
      labels: labels of one target group.
      depth: nesting of collections in a YAML document.
      nodes: nodes of one YAML document, each alias counted with everything that it repeats.
    """

    file_bytes: int = 64 * 1024 * 1024
    http_body_bytes: int = 64 * 1024 * 1024
    groups: int = 1_000_000
    labels: int = 1_000
    depth: int = 100
    nodes: int = 2_000_000
