"""Extraction: images are rendered in threads, run through networks once, and kept in caches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
