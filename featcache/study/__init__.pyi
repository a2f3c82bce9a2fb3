from ._run_study import Study as Study, run_study as run_study
from .plan import StudyPlan as StudyPlan
