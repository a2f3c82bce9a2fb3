from . import figures as figures, tables as tables
from ._report import report as report
from .figures import draw as draw
from .heatmap import heatmap as heatmap
from .live import followed as followed
from .text import in_markdown as in_markdown
