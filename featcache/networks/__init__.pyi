from ._fit_scratch import (
    Expected as Expected,
    Fitted as Fitted,
    ScratchOptions as ScratchOptions,
    expect as expect,
    fit_scratch as fit_scratch,
)
from .config import ScratchConfig as ScratchConfig, from_recipe as from_recipe
