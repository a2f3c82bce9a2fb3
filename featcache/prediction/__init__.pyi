from ._predict import Predictions as Predictions, open_run as open_run, predict as predict
