"""Sharing caches and runs: push and pull, parts, signatures, the index. Nothing here computes a feature."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
