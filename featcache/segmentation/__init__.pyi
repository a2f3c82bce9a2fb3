from ._segment import SegmentedFolder as SegmentedFolder, segment as segment
from .options import SegmentOptions as SegmentOptions
