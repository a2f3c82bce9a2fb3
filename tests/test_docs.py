"""The documentation is run: commands must work, and print what the pages say but for the numbers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import without_networks

from featcache.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / page
        for page in ("tutorial.md", "backbones.md", "caches.md", "reading.md", "heads.md", "sharing.md")
    ),
)
CACHE_NAME = re.compile(r"efficientnet-lite0-[0-9a-f]{8}")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path, more: Mapping[str, str] | None = None) -> str:
    environment = {**os.environ, "FEATCACHE_CONFIG": "config", **(more or {})}  # a configuration of each folder's own
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def skeleton(text: str, *folders: Path) -> list[str]:
    """Lines without what differs from run to run: digests, numbers, the folder, the width of columns."""
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        text = text.replace(f"file://{folder.resolve()}/", "file:///").replace(f"{folder.resolve()}/", "")
    text = re.sub(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{8}\b", "#", text)
    text = re.sub(r"\d+(\.\d+)?", "#", text)
    text = re.sub(r"(the bottleneck: )\w+", r"\1#", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def fits(printed: list[str], promised: list[str]) -> bool:
    """Whether what was printed is what the page shows; "..." stands for any lines."""
    pattern = "".join(r"(.*\n)*" if line == "..." else re.escape(line) + r"\n" for line in promised)
    return re.fullmatch(pattern, "".join(line + "\n" for line in printed)) is not None


def steps(transcript: str) -> list[tuple[str, str]]:
    """(command, what the page shows of its output)"""
    parts = re.split(r"^\$ (.*)\n", transcript, flags=re.MULTILINE)[1:]
    return list(zip(parts[0::2], parts[1::2], strict=True))


def with_real_names(code: str, names: dict[str, str]) -> str:
    """Cache names in a page are those of one machine: the picture files' bytes depend on their encoder."""
    return CACHE_NAME.sub(lambda name: names[name[0]], code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_transcripts_and_python_blocks_run_in_order(page: Path, tmp_path: Path) -> None:
    blocks = [(kind, body) for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind != "sh"]
    assert blocks
    names: dict[str, str] = {}
    folder, bare = tmp_path, without_networks(tmp_path / "bare")
    for kind, body in blocks:
        if kind == "python" and "import torch" in body and find_spec("torch") is None:
            continue  # no dependency of featcache or its tests
        if kind == "python":
            run([sys.executable, "-W", "error", "-c", with_real_names(body, names)], folder)
            continue
        for command, shown in steps(body):
            program, *arguments = shlex.split(with_real_names(command, names))
            if program == "cd":
                folder = (folder / arguments[0]).resolve()
                folder.mkdir(exist_ok=True)
                continue
            assert program == "featcache"
            more = bare if folder.name == "theirs" else None  # the other team of sharing.md has no TensorFlow
            printed = run([sys.executable, str(ROOT / "cli.py"), *arguments], folder, more)
            assert fits(skeleton(printed, tmp_path, folder), skeleton(shown)), (
                f"{command} printed\n{printed}\nnot\n{shown}"
            )
            for promised, found in zip(CACHE_NAME.findall(shown), CACHE_NAME.findall(printed), strict=False):
                names.setdefault(promised, found)


def test_readme_names_targets_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`?make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named - {"on"}), named


def test_links_between_pages_lead_somewhere() -> None:
    for page in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "cache/README.md",
        ROOT / "results/README.md",
    ):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert all(f"`featcache {name}" in reference for name in COMMANDS)


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "make check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^check: .*\btest\b", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
