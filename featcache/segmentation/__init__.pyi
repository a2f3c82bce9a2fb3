from ._segment import SegmentedFolder as SegmentedFolder, segment as segment
from .framing import Plain as Plain, plain_view as plain_view, segmentation_of as segmentation_of
from .options import SegmentOptions as SegmentOptions
