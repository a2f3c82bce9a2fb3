from .backbones import models as models
from .caches import convert as convert, open_cache as open_cache, status as status, verify as verify
from .evaluation import cross_validate as cross_validate
from .exchange import pull as pull, push as push
from .extracting import explain as explain, extract as extract, plan as plan
from .fitting import fine_tune as fine_tune, fit_head as fit_head, fit_scratch as fit_scratch, sweep as sweep
from .projects import init as init, open_project as open_project
from .reports import Report as Report, log_to_mlflow as log_to_mlflow, report as report, runs as runs
