from ._cross_validate import (
    cross_validate as cross_validate,
    measured_images as measured_images,
    points_of as points_of,
)
from ._fit_classical import fit_classical as fit_classical
from ._fit_head import (
    expected as expected,
    fit_head as fit_head,
)
from ._sweep import (
    fit_seeds as fit_seeds,
    grid as grid,
    random_points as random_points,
    spread as spread,
    sweep as sweep,
)
from .attribution import Attributed as Attributed, attribute as attribute, is_exact as is_exact
from .choosing import candidates as candidates, choose_cache as choose_cache
from .config import (
    PRESETS as PRESETS,
    Device as Device,
    HeadConfig as HeadConfig,
    Solver as Solver,
    asked_epochs as asked_epochs,
    changed_by as changed_by,
    from_preset as from_preset,
)
from .cost import expect_rows as expect_rows
from .distance_head import ROWS_FILE as ROWS_FILE, TrainedHead as TrainedHead, load_head as load_head
from .estimator import HeadClassifier as HeadClassifier
from .fold_training import Classical as Classical, Dense as Dense
from .gram import accuracy_of as accuracy_of
from .head import HEAD_FILE as HEAD_FILE, Head as Head, refuse_other_space as refuse_other_space
from .initializers import order as order
from .joint import JointRegression as JointRegression
from .keras_layers import (
    dense_layer as dense_layer,
    logits_of as logits_of,
    probabilities_of as probabilities_of,
)
from .kernel import KERNELS_SUFFIX as KERNELS_SUFFIX, kernels_folder as kernels_folder, unwanted as unwanted
from .protocol import TUNED as TUNED, Protocol as Protocol
from .resume import interrupted as interrupted
from .stack import losses as losses, softmax as softmax
