"""Whole networks, trained from random or from pretrained weights on rendered views."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
