from ._attribution import Attribution as Attribution, attribution as attribution
from ._predict import Predictions as Predictions, predict as predict
from .opening import (
    classes_of as classes_of,
    head_of as head_of,
    is_whole as is_whole,
    open_run as open_run,
    recipe_of as recipe_of,
)
