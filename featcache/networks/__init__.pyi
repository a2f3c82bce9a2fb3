from ._fit_scratch import (
    Expected as Expected,
    expect as expect,
    fit_scratch as fit_scratch,
)
from .config import (
    RECIPES as RECIPES,
    ScratchConfig as ScratchConfig,
    ScratchOptions as ScratchOptions,
    from_recipe as from_recipe,
)
