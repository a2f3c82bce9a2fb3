"""Data sets: which images there are, what they show, and in which split each one is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
