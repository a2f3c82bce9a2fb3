"""Sizes and times in words."""


def size(n_bytes: int) -> str:
    """1536 -> '1.5 KB'"""
    amount = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """0.034 -> '0.03 s', 3.4 -> '3.4 s', 90 -> '90 s', 400 -> '7 min', 9000 -> '2.5 h'"""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
