"""How Sphinx builds the site: `make docs`, without a network; a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

from generated import short_types, typed_elsewhere, write_pages  # noqa: E402

import featcache  # noqa: E402

project = "featcache"
version = release = featcache.__version__
copyright = "the featcache authors"  # noqa: A001 - Sphinx' own name

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["schema/*"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

_OF_SKLEARN = "set_fit_request, set_score_request"
autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": _OF_SKLEARN}
autodoc_typehints_format = "short"
default_role = "py:obj"
python_maximum_signature_line_length = 88
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "featcache"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {
    "navigation_with_keys": False,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_nav_level": 2,
}


def setup(app: Any) -> None:
    """Write what is made from the code, before the pages are read."""
    app.connect("builder-inited", lambda _: write_pages(DOCS / "reference"))
    app.connect("autodoc-process-docstring", typed_elsewhere, priority=100)  # before numpydoc
    app.connect("autodoc-process-signature", short_types)
