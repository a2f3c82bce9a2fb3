"""Deployment: a run as one model, from pixels to probabilities, for programs that have no featcache."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
