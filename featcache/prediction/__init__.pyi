from ._adapt import Adapted as Adapted, adapt as adapt
from ._attribution import Attribution as Attribution, attribution as attribution
from ._evaluate import Evaluated as Evaluated, evaluate as evaluate
from ._predict import (
    Predictions as Predictions,
    check_doubt as check_doubt,
    predict as predict,
    rows_streamed as rows_streamed,
    said as said,
)
from .bundle import (
    BUNDLE_FILE as BUNDLE_FILE,
    EXPECTED_FILE as EXPECTED_FILE,
    MODEL_ONNX as MODEL_ONNX,
    Bundle as Bundle,
    BundleRecord as BundleRecord,
    Entry as Entry,
    expected_of as expected_of,
)
from .opening import (
    check_um_per_px as check_um_per_px,
    classes_of as classes_of,
    head_of as head_of,
    is_whole as is_whole,
    item_of as item_of,
    open_run as open_run,
    recipe_of as recipe_of,
    size_remedy as size_remedy,
)
from .predictor import (
    Predictor as Predictor,
    has_several_labels as has_several_labels,
    open_trained as open_trained,
)
