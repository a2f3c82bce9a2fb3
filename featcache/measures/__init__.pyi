from ._evaluate import compare as compare, evaluate as evaluate
from .judged import Judged as Judged
