"""Profiles for hypothesis: the same examples every time, or very many of them."""

from __future__ import annotations

from hypothesis import settings

# Tests are deterministic; what only chance finds is for the campaign (bash .ci/campaign).
settings.register_profile("default", deadline=None, derandomize=True, database=None)
settings.register_profile("campaign", deadline=None, max_examples=5_000)
settings.load_profile("default")
