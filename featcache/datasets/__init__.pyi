from ._check_dataset import (
    CheckedDataset as CheckedDataset,
    check_dataset as check_dataset,
    compared as compared,
    on_two_sides as on_two_sides,
)
from ._init import GENERATED_FOLDER as GENERATED_FOLDER, Initialised as Initialised, init as init
from ._preview import preview as preview
from ._relabel import Relabelled as Relabelled, relabel as relabel
from .candidates import LeftOut as LeftOut
from .collected import collect as collect
from .current import current_dataset as current_dataset, stop_if_strict as stop_if_strict
from .label_lists import encoded as encoded, joined as joined, labels_in as labels_in
from .labelled import labelled_images as labelled_images
from .manifest import (
    SPLITS as SPLITS,
    Dataset as Dataset,
    LabelledImage as LabelledImage,
    check as check,
    dataset_of as dataset_of,
)
from .options import GENERATED_PER_CLASS as GENERATED_PER_CLASS, InitOptions as InitOptions
from .sources import find_images as find_images
from .view_plan import plan_views as plan_views
