from . import figures as figures, tables as tables
from ._report import report as report
