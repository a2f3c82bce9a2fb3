from ._attribution import Attribution as Attribution, attribution as attribution
from ._predict import Predictions as Predictions, predict as predict
