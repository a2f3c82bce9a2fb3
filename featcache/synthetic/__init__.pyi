from ._generate import generate as generate
from .drawing import is_generated as is_generated, write_cells as write_cells
