"""Reports: every run in results/ as tables, figures, Markdown and one HTML page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
