from . import checkpoint as checkpoint, runs as runs, tensorboard as tensorboard
from .course import Course as Course, Earlier as Earlier, OnEpoch as OnEpoch
from .history import (
    Epoch as Epoch,
    best_of as best_of,
    refuse_divergence as refuse_divergence,
    timed as timed,
)
from .labels import (
    refuse_several_labels as refuse_several_labels,
    with_current_labels as with_current_labels,
    without_split as without_split,
)
from .notes import NO_NOTE as NO_NOTE, Note as Note, annotate as annotate, read_notes as read_notes
from .predictions import Predictions as Predictions, is_large as is_large, read_predictions as read_predictions
from .results import (
    Fitted as Fitted,
    described as described,
    explaining_damage as explaining_damage,
    measured as measured,
    pooled_rows_of as pooled_rows_of,
    refuse_unfair_splits as refuse_unfair_splits,
    there_already as there_already,
    write_results as write_results,
)
from .runs import (
    CONFIG_FILE as CONFIG_FILE,
    CROSS_VALIDATION as CROSS_VALIDATION,
    ENSEMBLE as ENSEMBLE,
    EVALUATION as EVALUATION,
    HISTORY_FILE as HISTORY_FILE,
    METRICS_FILE as METRICS_FILE,
    MODEL_FILE as MODEL_FILE,
    PREDICTIONS_FILE as PREDICTIONS_FILE,
    PULLED_FILE as PULLED_FILE,
    SEGMENTER_FILE as SEGMENTER_FILE,
    TRAINING_SUFFIX as TRAINING_SUFFIX,
    Run as Run,
    find_run as find_run,
    is_finished as is_finished,
    list_runs as list_runs,
)
