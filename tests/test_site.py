"""The documentation site: it builds without a warning, holds every public name, and needs no other server."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import featcache
from featcache.cli import COMMANDS

ROOT = Path(__file__).parents[1]
MISSING = [name for name in ("sphinx", "myst_parser", "numpydoc", "pydata_sphinx_theme") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra: docs)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    build = (sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q")
    done = subprocess.run([*build, "docs", out], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_every_public_name_has_a_page(site: Path) -> None:
    for name in set(featcache.__all__) - {"__version__"}:
        page = (site / "reference" / "python" / f"{name}.html").read_text("utf-8")
        assert f'id="featcache.{name}"' in page or f'id="module-featcache.core.{name}"' in page


def test_every_command_and_setting_is_there(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text("utf-8")
    assert [name for name in COMMANDS if f"Usage: featcache {name} " not in commands] == []
    assert "label_smoothing" in (site / "reference" / "settings.html").read_text("utf-8")


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    loads = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"(?:https?:)?//[^\"]*")
    assert [(page.name, found) for page in pages for found in loads.findall(page.read_text("utf-8"))] == []
