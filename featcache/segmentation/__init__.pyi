from ._segment import SegmentedFolder as SegmentedFolder, segment as segment
from .contract import Cell as Cell, Rejected as Rejected, Segmented as Segmented, Segmenter as Segmenter
from .options import SegmentOptions as SegmentOptions
from .picture import SEGMENTERS as SEGMENTERS, segment_picture as segment_picture
