from ._export import Exported as Exported, description_of as description_of, export as export
from .formats import FORMATS as FORMATS, Compute as Compute, Format as Format
from .graph import graph_of as graph_of
