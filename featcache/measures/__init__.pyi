from ._evaluate import compare as compare, evaluate as evaluate
from .judged import Judged as Judged
from .said import FEW_GROUPS as FEW_GROUPS, decimals as decimals
