from ._evaluate import compare as compare, evaluate as evaluate
from .judged import (
    THRESHOLD as THRESHOLD,
    Judged as Judged,
    JudgedLabels as JudgedLabels,
    judge as judge,
    labels_named as labels_named,
)
from .said import FEW_GROUPS as FEW_GROUPS, decimals as decimals
