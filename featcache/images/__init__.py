"""Images: decoding, scanning, naming, boxes and views. Pixels, and no policy about labels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
