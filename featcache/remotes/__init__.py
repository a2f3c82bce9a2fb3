"""Remotes: folders, web servers, buckets, SFTP and packs behind one contract. Transport only."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
