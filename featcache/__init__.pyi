from .api import (
    Report as Report,
    convert as convert,
    cross_validate as cross_validate,
    explain as explain,
    extract as extract,
    fine_tune as fine_tune,
    fit_head as fit_head,
    fit_scratch as fit_scratch,
    init as init,
    log_to_mlflow as log_to_mlflow,
    models as models,
    open_cache as open_cache,
    open_project as open_project,
    plan as plan,
    pull as pull,
    push as push,
    report as report,
    runs as runs,
    status as status,
    sweep as sweep,
    verify as verify,
)
from .core import errors as errors
from .core.project import Project as Project
from .counting import Counted as Counted, count as count
from .datasets import (
    CheckedDataset as CheckedDataset,
    Relabelled as Relabelled,
    check_dataset as check_dataset,
    relabel as relabel,
)
from .deployment import (
    Bundled as Bundled,
    Checked as Checked,
    Exported as Exported,
    bundle as bundle,
    check as check,
    export as export,
)
from .extraction import FeatureExtractor as FeatureExtractor
from .heads import HeadClassifier as HeadClassifier
from .pixelwise import FittedSegmenter as FittedSegmenter, fit_segmenter as fit_segmenter, segment as segment
from .prediction import (
    Adapted as Adapted,
    Attribution as Attribution,
    Evaluated as Evaluated,
    Predictions as Predictions,
    adapt as adapt,
    attribution as attribution,
    evaluate as evaluate,
    predict as predict,
)
from .segmentation import SegmentedFolder as SegmentedFolder
from .serving import serve as serve
from .store import Cache as Cache
from .study import Study as Study, StudyPlan as StudyPlan, run_study as run_study
from .training import Run as Run

__version__: str
__all__: list[str]
