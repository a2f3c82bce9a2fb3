"""Doubt: how far a prediction can be trusted, from rows that no training has seen."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
