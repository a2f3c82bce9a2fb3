from . import blocks as blocks, charts as charts, figures as figures, page as page, tables as tables
from ._log_to_mlflow import LoggedRun as LoggedRun, log_to_mlflow as log_to_mlflow
from ._report import report as report
from ._runs import (
    MEASURES as MEASURES,
    ListedRun as ListedRun,
    differences as differences,
    runs as runs,
)
from .figures import draw as draw
from .heatmap import heatmap as heatmap
from .live import followed as followed
from .text import clean as clean, counted as counted, in_markdown as in_markdown, shorten as shorten
