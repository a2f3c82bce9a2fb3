"""How measures are said: with the decimals that their images carry, and a word where these are few."""

from __future__ import annotations

FEW_GROUPS = 20
"""A class of fewer groups has an interval so wide that it says more than the measure."""


def decimals(groups: int | None) -> int:
    """Decimals of a percentage of so many groups: of 60 one is 1.7 %, so none. Of 100 and more one, of 1,000 two."""
    return min(max(len(str(groups or 0)) - 2, 0), 2)
