"""Fakes and checks for those who test with trio_sd, and for trio_sd's own tests.

:mod:`.fakes` stands in for discoverers, :mod:`.cancellation` cancels something at every step, and :mod:`.contract` runs
any discoverer through the contract with the engine.
"""

from __future__ import annotations

from .cancellation import CancelAfter, cancel_everywhere
from .contract import (
    Capability,
    ContractRule,
    ContractSource,
    OpenSource,
    RuleSkipped,
    check_contract,
    check_discoverer,
    contract_rules,
)
from .fakes import FakeConfig, FakeDiscoverer, group
from .observed import ContractError

__all__ = [
    "CancelAfter",
    "Capability",
    "ContractError",
    "ContractRule",
    "ContractSource",
    "FakeConfig",
    "FakeDiscoverer",
    "OpenSource",
    "RuleSkipped",
    "cancel_everywhere",
    "check_contract",
    "check_discoverer",
    "contract_rules",
    "group",
]
