from ._segment import SegmentedFolder as SegmentedFolder, segment as segment
from .framing import Framing as Framing, Plain as Plain, plain_view as plain_view
from .options import SegmentOptions as SegmentOptions
