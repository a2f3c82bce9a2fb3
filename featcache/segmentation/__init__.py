"""Segmentation: white cells of a picture as boxes and masks of nucleus and cytoplasm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
