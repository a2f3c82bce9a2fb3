from ._estimate import Estimate as Estimate, estimate as estimate
from ._explain import Explanation as Explanation, Neighbour as Neighbour, diff as diff, explain as explain
from ._extract import Extracted as Extracted, extract as extract
from ._measure import Measured as Measured, measure as measure
from ._preview import preview as preview
from ._recompute import Recomputed as Recomputed
from ._verify import Checked as Checked, verify as verify
from .extractor import FeatureExtractor as FeatureExtractor
from .opening import loaded_network as loaded_network, network_for as network_for, network_of as network_of
from .options import ExtractOptions as ExtractOptions
from .plan import plan_extraction as plan_extraction
from .segmenters import (
    cutting_again as cutting_again,
    opened_segmenter as opened_segmenter,
    with_fitted as with_fitted,
)
from .streaming import Rendering as Rendering, ahead as ahead, stream as stream
