from .likeness import Likeness as Likeness, pooled as pooled
from .record import DOUBT_FILE as DOUBT_FILE, Doubt as Doubt
from .reliability import BINS as BINS, bin_of as bin_of, reliability as reliability
