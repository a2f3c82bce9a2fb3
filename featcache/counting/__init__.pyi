from ._count import Counted as Counted, count as count
from .options import CountOptions as CountOptions
