from ._predict import Predictions as Predictions, predict as predict
