"""Studies: a recipe of data sets, networks and heads, done as one command."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
