"""Options are made from records: names, types, bounds, defaults and help are the records' own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import click
import pytest
from conftest import Run

from featcache.backbones.spec import NetworkSpec
from featcache.cli import cli
from featcache.cli.command import Option
from featcache.cli.settings import options
from featcache.core.project import AugmentationSection, DatasetSection, ViewsSection
from featcache.core.settings import problems_of, setting, settings_of
from featcache.datasets import InitOptions
from featcache.extraction import ExtractOptions
from featcache.heads import PRESETS, HeadConfig
from featcache.networks import RECIPES, ScratchConfig, ScratchOptions
from featcache.sharing import Part, PushOptions

NO_OPTION = {"weights", "horizontal_flip", "vertical_flip", "brightness", "contrast", "saturation", "hue_deg"}
NO_OPTION |= {"fill_modes", "fill_value", "no_remote", "offline", "strict"}
"""Settings that some command leaves to featcache.toml or to Python."""


def options_of(name: str) -> dict[str, Option]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return {str(param.name): param for param in command.params if isinstance(param, Option)}


@pytest.mark.parametrize(
    ("command", "record"),
    [
        ("init", InitOptions),
        ("init", DatasetSection),
        ("init", ViewsSection),
        ("init", AugmentationSection),
        ("extract", NetworkSpec),
        ("extract", ExtractOptions),
        ("extract", AugmentationSection),
        ("fit-head", HeadConfig),
        ("fit-scratch", ScratchConfig),
        ("fine-tune", ScratchConfig),
        ("fine-tune", ScratchOptions),
        ("push", PushOptions),
        ("pull", Part),
    ],
)
def test_every_setting_of_a_record_is_an_option_with_its_help(command: str, record: type) -> None:
    made = options_of(command)
    for name, one in settings_of(record).items():
        if (command, record, name) == ("init", DatasetSection, "margin"):
            continue  # the option is the margin of [views]; that of [dataset] is of projects before it
        if (command, record, name) == ("init", ViewsSection, "um_per_px"):
            continue  # the option is the size of the images' pixels; that of views is an option of extract
        if name in made:
            assert str(made[name].help).startswith(one.help)
        else:
            assert name in NO_OPTION, f"{command} has no option for {name}"


def test_defaults_in_the_help_are_those_of_the_records() -> None:
    head = options_of("fit-head")
    assert head["lr"].default_text == f"{PRESETS['default'].lr:g}; study: {PRESETS['study'].lr:g}"
    assert head["hidden"].default_text == "256"
    assert head["restore_best"].default_text == "yes; study: none"
    tuned = options_of("fine-tune")
    assert tuned["epochs"].default_text == f"{RECIPES['fine-tune'].epochs}; study: 100; modern: 100"
    assert tuned["restore_best"].default_text == "yes; study: none"
    assert options_of("init")["split"].default_text == "70/15/15"


def test_types_are_made_from_annotations_and_bounds() -> None:
    @dataclass(frozen=True)
    class Some:
        """All kinds of settings."""

        count: int = setting(3, "A count.", ge=1)
        share: float = setting(0.5, "A share.", gt=0, lt=1)
        choice: Literal["a", "b"] = setting("a", "A choice.")
        optional: int | None = setting(None, "Optional.", le=9)
        flag: bool = setting(False, "A flag.")
        text: str = setting("x", "A text.")
        private: int = 0

    seen: dict[str, Any] = {}

    @click.command()
    @options(Some, *settings_of(Some))
    def command(**values: Any) -> None:
        seen.update(values)

    command.main(["--count", "2", "--choice", "b", "--flag"], standalone_mode=False)
    assert seen == {"count": 2, "share": None, "choice": "b", "optional": None, "flag": True, "text": None}
    for wrong in (["--count", "0"], ["--share", "1"], ["--share", "0"], ["--choice", "c"], ["--optional", "10"]):
        with pytest.raises(click.BadParameter, match=rf"{wrong[1]}"):
            command.main(wrong, standalone_mode=False)
    assert problems_of(Some(count=0, share=True, optional=10, flag=1)) == [  # type: ignore[arg-type]
        "`count=0`: expected a whole number of at least 1",
        "`share=True`: expected a number with 0 < x < 1",
        "`optional=10`: expected a whole number with x <= 9 or None",
        "`flag=1`: expected True or False",
    ]


def test_help_lists_commands_and_options_in_groups(run: Run, tmp_path: Any) -> None:
    shown = run("--help", cwd=tmp_path).out
    titles = ("Start:", "Compute:", "Train:", "Use:", "Look:", "Share:", "Tidy:")
    assert [shown.index(title) for title in titles] == sorted(shown.index(title) for title in titles)
    shown = run("extract", "--help", cwd=tmp_path).out
    titles = (
        "\nNetwork:",
        "\nEngine:",
        "\nViews ",
        "\nAugmentation ",
        "\nStorage ",
        "\nReuse and remotes:",
        "\nOptions:",
    )
    assert [shown.index(title) for title in titles] == sorted(shown.index(title) for title in titles)
