"""The documentation is run: commands must work, and print what the pages say but for the numbers."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import shlex
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import yaml
from conftest import Ran, Run, keep_networks, run_command, without_networks
from workshop import Ended

from featcache.cli import COMMANDS, cli
from featcache.core.machine import processor_flags
from featcache.synthetic.drawing import CLASSES, render_cell

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if re.search(r"^```(console|python)$", page.read_text("utf-8"), re.M)
    ),
)
"""The README, and every page with a transcript or a block of Python."""

CACHE_NAME = re.compile(r"efficientnet-lite0-[0-9a-f]{8}")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def output(ran: Ran | Ended, command: str) -> str:
    """What a command printed that did what it was asked to."""
    assert ran.code == 0, f"{command}\n{ran.out}\n{ran.err}"
    assert "Traceback" not in ran.err
    return ran.out


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


PICTURES = "6d702359c42509216eabcb8d6a4c2ab9e9c9b4858eef960403ca0f4bf7c23642"
"""Digest of generated cells where the pages were made: arithmetic of another processor may round a pixel otherwise."""


@functools.cache
def draws_as_where_the_pages_were_made() -> bool:
    """Whether caches of generated pictures have the pages' names here: these follow from the pictures' bytes.

    A few of the pictures have other last bits on a processor without AVX-512.
    """
    if "avx512f" not in processor_flags():
        return False
    found = hashlib.sha256()
    for label, number in itertools.product(CLASSES, range(4)):
        found.update(render_cell(label, 0, index=number).tobytes())
    return found.hexdigest() == PICTURES


def with_real_names(code: str, names: dict[str, str]) -> str:
    """Cache names in a page are those of one machine: the picture files' bytes depend on their encoder."""
    return CACHE_NAME.sub(lambda name: names[name[0]], code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_transcripts_and_python_blocks_run_in_order(
    page: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's commands are processes of their own; those of other pages run in this one, which is quicker.

    Blocks of Python go on where the block before ended. The other team of the page on sharing has no TensorFlow.
    """
    monkeypatch.setenv("FEATCACHE_CONFIG", "config")  # of each folder's own
    theirs = functools.partial(run_command, env=without_networks(tmp_path / "bare"))
    blocks = [(kind, body) for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind != "sh"]
    assert blocks
    names: dict[str, str] = {}
    session: dict[str, object] = {}
    folder = tmp_path
    for kind, body in blocks:
        if kind == "python" and "import torch" in body and find_spec("torch") is None:
            continue  # no dependency of featcache or its tests
        if kind == "python":
            with chdir(folder), monkeypatch.context() as patch:
                if "fit_scratch" not in body:  # it changes the network that it loads
                    keep_networks(patch)
                exec(compile(with_real_names(body, names), page.name, "exec"), session)  # noqa: S102 - the page's own
            continue
        for command, shown in steps(body):
            program, *arguments = shlex.split(with_real_names(command, names))
            if program == "cd":
                folder = (folder / arguments[0]).resolve()
                folder.mkdir(exist_ok=True)
                continue
            assert program == "featcache"
            featcache = theirs if folder.name == "theirs" else run_command if page == PAGES[0] else run
            printed = output(featcache(*arguments, cwd=folder), command)
            assert fits(skeleton(printed, tmp_path, folder), skeleton(shown)), (
                f"{command} printed\n{printed}\nnot\n{shown}"
            )
            for promised, found in zip(CACHE_NAME.findall(shown), CACHE_NAME.findall(printed), strict=False):
                names.setdefault(promised, found)
    if draws_as_where_the_pages_were_made():
        assert {promised: found for promised, found in names.items() if promised != found} == {}


def test_readme_names_targets_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`?make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named - {"on"}), named


def test_manifests_of_kubernetes_can_be_read() -> None:
    blocks = FENCE.findall((ROOT / "docs" / "how-to" / "cluster.md").read_text(encoding="utf-8"))
    manifests = [each for kind, body in blocks if kind == "yaml" for each in yaml.safe_load_all(body)]
    assert [each["kind"] for each in manifests] == ["Service", "Deployment", "Deployment", "Job"]
    pods = [each["spec"]["template"]["spec"] for each in manifests[1:]]
    commands = [container["command"] for pod in pods for container in pod["containers"]]
    assert [command[0] for command in commands] == ["dask", "dask", "featcache"]
    extract = cli.get_command(click.Context(cli), commands[-1][1])
    assert extract is not None
    assert extract.make_context("extract", commands[-1][2:]).params["cluster"] == "dask://featcache-scheduler:8786"


def test_links_between_pages_lead_somewhere() -> None:
    """Or to a page that `make docs` writes; tests/test_site.py builds those."""
    reference = ROOT / "docs" / "reference"
    written = {reference / "commands.md", reference / "settings.md"}
    for page in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "cache/README.md",
        ROOT / "results/README.md",
    ):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                place = Path(os.path.normpath(page.parent / target))
                assert place.exists() or place in written or reference / "python" in place.parents, (page.name, target)


def test_every_command_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert all(f"`featcache {name}" in reference for name in COMMANDS)


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "make check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^check: .*\btest\b", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
