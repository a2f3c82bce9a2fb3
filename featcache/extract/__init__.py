"""Extraction: rows are rendered in threads, run through networks, and handed to caches; several caches in one pass."""

from featcache.extract.filling import Counts
from featcache.extract.rendering import render_views
from featcache.extract.rows import rows_of
from featcache.extract.run import Extraction, Target, extract
from featcache.extract.shares import Shares, Stage

__all__ = ["Counts", "Extraction", "Shares", "Stage", "Target", "extract", "render_views", "rows_of"]
