"""Segmentation by a fitted classifier of pixels, on early feature maps of a frozen network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
