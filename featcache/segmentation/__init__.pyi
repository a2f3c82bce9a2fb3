from .classical import ClassicalSegmenter as ClassicalSegmenter
from .contract import Cell as Cell, Rejected as Rejected, Segmented as Segmented, Segmenter as Segmenter
