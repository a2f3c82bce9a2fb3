"""Pages of the reference that are made from the code: the Python functions, the options of commands, the settings."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import featcache
from featcache.cli import COMMANDS, SECTIONS, cli
from featcache.core.project import AugmentationSection, DatasetSection, StorageSection, ViewsSection
from featcache.core.settings import settings_of
from featcache.extraction import ExtractOptions
from featcache.heads import PRESETS, HeadConfig, Protocol
from featcache.networks import RECIPES, ScratchConfig
from featcache.pixelwise import FitSegmenterOptions
from featcache.segmentation import SegmentOptions
from featcache.study.tables import CrossTable, DataTable, EnsembleTable, HeadTable, NetworkTable, ScratchTable

_FIELD = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*) : (.*)$", re.MULTILINE)
_ARRAY = re.compile(
    r"~?(?:numpy\.)?ndarray\[~?tuple\[~?(?:typing\.)?Any, \.\.\.\], "
    r"~?(?:numpy\.)?dtype\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\]"
)
_SETTINGS = (
    ("[dataset]", "what `init` reads", DatasetSection, {}),
    ("[views]", "how many views each image gets", ViewsSection, {}),
    ("[augmentation]", "how views differ from the plain one", AugmentationSection, {}),
    ("[storage]", "how features are stored", StorageSection, {}),
    ("Segmentation", "arguments of `segment`", SegmentOptions, {}),
    ("Fitted segmenters", "arguments of `fit_segmenter`", FitSegmenterOptions, {}),
    ("Extraction", "arguments of `extract`", ExtractOptions, {}),
    ("Heads", "arguments of `fit_head`, and what its presets change", HeadConfig, PRESETS),
    ("Cross-validation", "arguments of `cross_validate`", Protocol, {}),
    ("Whole networks", "arguments of `fit_scratch` and `fine_tune`, by recipe", ScratchConfig, RECIPES),
    ("Recipes: [dataset]", "keys besides those of [dataset] above and the options of `init`", DataTable, {}),
    ("Recipes: [networks.NAME]", "keys besides the arguments of `extract`, which [extract] has too", NetworkTable, {}),
    ("Recipes: [heads.NAME]", "keys besides the settings of heads", HeadTable, {}),
    ("Recipes: [scratch.NAME]", "keys besides the settings of whole networks", ScratchTable, {}),
    ("Recipes: [cross_validate.NAME]", "keys besides those of cross-validation", CrossTable, {}),
    ("Recipes: [ensembles.NAME]", "all keys", EnsembleTable, {}),
)


def write_pages(folder: Path) -> None:
    """Write the pages into docs/reference/; those that are as they were stay untouched."""
    pages = {
        **dict(_python_pages()),
        "commands.md": "\n".join(_commands_page()),
        "settings.md": "\n".join(_settings_page()),
        "../notebooks/quickstart.md": "\n\n".join(_notebook_page(folder.parent / "notebooks" / "quickstart.ipynb")),
    }
    (folder / "python").mkdir(exist_ok=True)
    for old in set((folder / "python").iterdir()) - {folder / name for name in pages}:
        old.unlink()
    for name, text in pages.items():
        if not (folder / name).is_file() or (folder / name).read_text("utf-8") != text:
            (folder / name).write_text(text, "utf-8")


def typed_elsewhere(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give numpydoc "name" and a description below it, where a docstring has "name : description".

    The types stand in the signature.
    """
    lines[:] = _FIELD.sub(r"\1\n    \2", "\n".join(lines)).split("\n")


def short_types(app: Any, what: str, name: str, obj: Any, options: Any, *texts: str) -> tuple[Any, ...]:
    """Write NDArray[int64] for ndarray[tuple[Any, ...], dtype[int64]] in a signature."""
    return tuple(text and _ARRAY.sub(r"NDArray[\1]", text) for text in texts)


def _notebook_page(notebook: Path) -> Iterator[str]:
    """The cells of a notebook, without outputs."""
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        yield text if cell["cell_type"] == "markdown" else f"```{{code-block}} python\n{text}\n```"
    yield f"Download this page as a notebook: {{download}}`{notebook.name}`.\n"


def _python_pages() -> Iterator[tuple[str, str]]:
    """A page for each public name, and the list of them."""
    kinds = {name: _kind(getattr(featcache, name)) for name in featcache.__all__ if name != "__version__"}
    names = sorted(kinds, key=lambda name: (("function", "class", "module").index(kinds[name]), name))
    rows = ["# Python functions and classes", "", "    import featcache as fc", ""]
    for title, kind in (("Functions", "function"), ("Classes", "class"), ("Modules", "module")):
        rows += [f"## {title}", "", "| name | what it does |", "|---|---|"]
        rows += [f"| [{n}]({n}.rst) | {_first_line(getattr(featcache, n))} |" for n in names if kinds[n] == kind]
        rows += [""]
    yield "python/index.md", "\n".join([*rows, "```{toctree}", ":hidden:", "", *names, "```", ""])
    for name, kind in kinds.items():
        title = f"featcache.{name}"
        module = getattr(featcache, name).__name__ if kind == "module" else title
        more = (
            "\n   :show-inheritance:\n   :exclude-members: nearest, refuse_shortage, shortage"
            if kind == "module"
            else ""
        )
        head = f"{title}\n{'=' * len(title)}\n\n.. currentmodule:: featcache\n\n"
        yield f"python/{name}.rst", f"{head}.. auto{kind}:: {module}{more}\n"


def _kind(thing: object) -> str:
    return "module" if inspect.ismodule(thing) else "class" if inspect.isclass(thing) else "function"


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _commands_page() -> Iterator[str]:
    """What --help says, for every command."""
    yield "# Options of the commands\n"
    yield "What `featcache COMMAND --help` prints. [Commands and JSON](cli.md) has the commands at a glance.\n"
    for title, commands in SECTIONS.items():
        yield f"## {title}\n"
        for name in commands:
            command = cli.get_command(click.Context(cli), name)
            assert command is not None  # noqa: S101
            children = command.commands if isinstance(command, click.Group) else {}
            for path, each in ((name, command), *((f"{name} {child}", one) for child, one in children.items())):
                context = click.Context(
                    each, info_name=f"featcache {path}", terminal_width=80, help_option_names=["-h", "--help"]
                )
                yield f"### featcache {path}\n\n```text\n{each.get_help(context)}\n```\n"


def _settings_page() -> Iterator[str]:
    """Name, values, default and meaning of every setting."""
    yield "# Settings\n"
    yield "The sections of `featcache.toml`, the arguments of Python functions, and the tables of"
    yield "[recipes](../how-to/studies.md). Options of commands have the same names, with hyphens.\n"
    for title, what, record, presets in _SETTINGS:
        others = [name for name in presets if name != "default"]
        yield f"## {title}\n\n{what[0].upper()}{what[1:]}.\n"
        yield f"| name | values | default | {''.join(f'{name} | ' for name in others)}meaning |"
        yield "|---|---|---|" + "---|" * len(others) + "---|"
        for one in settings_of(record).values():
            values = [_code(one.default), *(_code(getattr(presets[name], one.name)) for name in others)]
            shown = [value if value != values[0] else "" for value in values[1:]]
            yield f"| `{one.name}` | {one.expected} | {' | '.join([values[0], *shown, one.help])} |"
        yield ""


def _code(value: object) -> str:
    return "" if value in (None, "", ()) else f"`{value!r}`"


assert set(COMMANDS) == {name for section in SECTIONS.values() for name in section}  # noqa: S101
