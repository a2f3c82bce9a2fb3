from . import pixels as pixels, registry as registry
from .cuts import CutLayer as CutLayer
from .doors import (
    AnyNetwork as AnyNetwork,
    as_keras as as_keras,
    layers_to_cut as layers_to_cut,
    open_network as open_network,
)
from .engines.affine import preprocessed as preprocessed
from .engines.batches import is_out_of_memory as is_out_of_memory
from .engines.choose import (
    CALIBRATION_FILE as CALIBRATION_FILE,
    ChosenEngine as ChosenEngine,
    open_engine as open_engine,
    quick_precision as quick_precision,
)
from .engines.contract import Engine as Engine
from .engines.openvino_engine import openvino_model as openvino_model
from .frozen import (
    SIGNATURES as SIGNATURES,
    frozen_graph as frozen_graph,
    save_frozen as save_frozen,
    without_large as without_large,
)
from .imagenet import available as available
from .import_keras import (
    compute_deterministically as compute_deterministically,
    import_keras as import_keras,
    keras_backend as keras_backend,
    require_keras as require_keras,
    spread_over as spread_over,
)
from .last_map import at_last_map as at_last_map
from .model_file import foreign_parts as foreign_parts, is_own_name as is_own_name
from .model_names import (
    KERAS_HUB as KERAS_HUB,
    is_in_registry as is_in_registry,
    is_model_file as is_model_file,
    is_of_library as is_of_library,
    kind_of as kind_of,
    model_of as model_of,
    needs_keras as needs_keras,
)
from .network import (
    Cut as Cut,
    Network as Network,
    check_model as check_model,
    load_network as load_network,
    refuse_other_kinds as refuse_other_kinds,
    specs_of as specs_of,
    whole_network as whole_network,
)
from .onnx_runs import import_openvino as import_openvino, onnx_session as onnx_session
from .registry import PIXELS as PIXELS, STUDY as STUDY, Backbone as Backbone
from .remembered import KNOWN_FILE as KNOWN_FILE, identify as identify
from .spec import NetworkSpec as NetworkSpec
from .weights import glorot_uniform as glorot_uniform, tensors_digest as tensors_digest
from .zoo.drop_path import without_drop_path as without_drop_path
from .zoo.stochastic_depth import with_stochastic_depth as with_stochastic_depth
