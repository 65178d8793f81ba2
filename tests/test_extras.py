"""What is missing is told with the name of the extra that has it."""

from __future__ import annotations

import pytest

from trio_sd.errors import DiscoveryError
from trio_sd.extras import require


def test_what_is_installed_is_fine() -> None:
    require("trio", "Everything", "none")


def test_what_is_missing_is_told() -> None:
    with pytest.raises(DiscoveryError) as caught:
        require("no_such", "X", "x")
    assert str(caught.value) == "X needs no_such, which is not installed; the extra trio-sd[x] has it"
    with pytest.raises(DiscoveryError, match=r"^DNS discovery needs dnspython, "):
        require("no_such", "DNS discovery", "dns", package="dnspython")
