from ._fit_segmenter import FittedSegmenter as FittedSegmenter, fit_segmenter as fit_segmenter
from ._segment import segment as segment
from .options import FitSegmenterOptions as FitSegmenterOptions
