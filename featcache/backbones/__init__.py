"""Backbones: networks without their top, frozen, each with its own preprocessing and weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
