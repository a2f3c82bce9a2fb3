"""The store: caches on disk, written shard by shard and read as arrays and tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
