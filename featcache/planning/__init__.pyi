from ._plan import Planned as Planned, plan as plan
from .options import PlanOptions as PlanOptions
