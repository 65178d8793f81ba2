"""What is missing is told with the name of the extra that has it."""

from __future__ import annotations

import sys

import pytest

from trio_sd.errors import DiscoveryError
from trio_sd.extras import require


@pytest.mark.parametrize("module", ["trio", "trio.testing", "importlib.util"])
def test_what_is_installed_is_fine(module: str) -> None:
    require(module, "Everything", "none")


def test_it_is_looked_for_and_not_imported() -> None:
    assert "antigravity" not in sys.modules
    require("antigravity", "X", "x")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("module", ["no_such", "trio.no_such"])
def test_what_is_missing_is_told(module: str) -> None:
    with pytest.raises(DiscoveryError) as caught:
        require(module, "X", "x")
    assert str(caught.value) == f"X needs {module}, which is not installed; the extra trio-sd[x] has it"
    with pytest.raises(DiscoveryError, match=r"^DNS discovery needs dnspython, "):
        require(module, "DNS discovery", "dns", package="dnspython")
