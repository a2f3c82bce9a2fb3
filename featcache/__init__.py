"""featcache: run a frozen backbone once, keep its bottleneck features, train heads on them."""

from __future__ import annotations

__version__ = "0.1.0"
