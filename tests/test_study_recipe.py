"""Recipes: what they may say, and that everything else is refused with its line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from featcache.core.errors import FeatcacheError, RecipeError, UsageError
from featcache.core.project import ViewsSection
from featcache.datasets import SPLITS, LabelledImage, plan_views
from featcache.datasets.manifest import LabelledImage as Image
from featcache.study.locate import line_of, lines_of
from featcache.study.recipe import packaged, read_recipe
from featcache.study.steps import chosen, matches, steps_of
from featcache.study.tables import DataSet, Recipe

ROOT = Path(__file__).parents[1]
CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")
GOOD = """\
title = "cells"

[dataset]
per_class = 8

[extract]
weights = "random"

[networks.small]
model = "mobilenetv2"
[networks.pixels]

[heads.a]
epochs = 3
hidden = [8, 4]
[heads.b]
head = "logreg"

[cross_validate.cv]
folds = 2
heads = ["a"]

[ensembles.best]
choose = "cv"
"""


def read(folder: Path, text: str, **changes: Any) -> Recipe:
    (folder / "r.toml").write_text(text)
    return read_recipe(folder / "r.toml", changes={key.replace("__", "."): value for key, value in changes.items()})


# Lines


TEXT = '''\
# [not.a.table]
a = 1
b."c d" = [1,
  "]", # ]
  { x = 2, y = { z = "}" } },
]

[t]
s = """
[no]
k = 1
"""
l = \'\'\'
x = "\'\'\'
'q.r' = { m = 1, n.o = [ { p = 2 } ] }
[[u.v]]
w = 2020-01-01
[[u.v]]
after = "a\\"b # no"
'''


def paths_in(value: Any, before: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    if isinstance(value, list):
        return set().union(*(paths_in(each, before) for each in value))
    if not isinstance(value, dict):
        return set()
    own = {(*before, key) for key in value}
    return own.union(*(paths_in(inner, (*before, key)) for key, inner in value.items()))


def test_every_key_has_the_line_that_it_stands_on() -> None:
    found = lines_of(TEXT)
    assert set(found) == paths_in(tomllib.loads(TEXT))
    expected = {
        ("a",): 2,
        ("b", "c d"): 3,
        ("b", "c d", "y", "z"): 5,
        ("t",): 8,
        ("t", "s"): 9,
        ("t", "l"): 13,
        ("t", "q.r"): 15,
        ("t", "q.r", "n", "o", "p"): 15,
        ("u", "v"): 16,
        ("u", "v", "after"): 19,
    }
    assert {path: found[path] for path in expected} == expected
    assert line_of(found, ("t", "s", "no", "such")) == 9
    assert line_of(found, ("nothing",)) is None


@given(st.lists(st.sampled_from(TEXT.splitlines(keepends=True)), max_size=12))
def test_lines_of_any_valid_text(lines: list[str]) -> None:
    text = "".join(lines)
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert paths_in(value) <= {path[:n] for path in lines_of(text) for n in range(1, len(path) + 1)}


# What is right


def test_a_recipe(tmp_path: Path) -> None:
    made = read(tmp_path, GOOD)
    assert (made.name, made.title) == ("r", "cells")
    assert [(one.name, one.model) for one in made.networks] == [("small", "mobilenetv2"), ("pixels", "pixels")]
    assert made.networks[0].options == {"weights": "random"}
    assert made.heads[0].settings == {"epochs": 3, "hidden": (8, 4)}
    assert [step.id for step in steps_of(made)] == [
        *("dataset", "extract/small", "head/a/small", "head/b/small", "cross-validate/cv/a/small"),
        *("extract/pixels", "head/a/pixels", "head/b/pixels", "cross-validate/cv/a/pixels"),
        *("ensemble/best", "report"),
    ]


def test_changes_are_toml_or_text_and_the_later_of_two_ways_to_say_it_counts(tmp_path: Path) -> None:
    made = read(
        tmp_path,
        GOOD.replace("per_class = 8", "split_counts = [6, 1, 1]"),
        dataset__source="../x y",
        dataset__split="[70, 15, 15]",
        heads__a__epochs="7",
        heads__b__seed=4,
        networks__small__weights="w.h5",
        views__train_rows="{a = 3}",
    )
    (data,) = made.datasets
    assert data.source == str(Path.cwd() / "../x y")
    assert dict(data.dataset) == {"split": [70, 15, 15]}
    assert dict(data.views) == {"train_rows": {"a": 3}}
    assert made.heads[0].settings["epochs"] == 7
    assert made.heads[1].options == {"seed": 4}
    assert made.networks[0].options["weights"] == str(Path.cwd() / "w.h5")
    of_file = read(tmp_path, 'dataset.source = "cells"\nnetworks.pixels = {}\n')
    assert of_file.datasets[0].source == str(tmp_path / "cells")


def test_several_data_sets_share_what_they_do_not_say(tmp_path: Path) -> None:
    text = """\
dataset.source = "all"
dataset.split_counts = [5, 1, 1]
views.train = 3
networks.pixels = {}
[datasets.one]
[datasets.two]
dataset = { source = "own", split = [8, 1, 1] }
views.train_rows = 40
"""
    one, two = read(tmp_path, text).datasets
    assert (one.name, one.source, dict(one.dataset)) == ("one", str(tmp_path / "all"), {"split_counts": [5, 1, 1]})
    assert (two.name, two.source, dict(two.dataset)) == ("two", str(tmp_path / "own"), {"split": [8, 1, 1]})
    assert (dict(one.views), dict(two.views)) == ({"train": 3}, {"train_rows": 40})
    ids = [step.id for step in steps_of(read(tmp_path, text))]
    assert ids == ["one/dataset", "one/extract/pixels", "two/dataset", "two/extract/pixels", "report"]


# What is wrong


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 3", "epoch = 3", r"r.toml, line 14: heads.a.epoch: there is no such setting: did you mean epochs"),
        ("epochs = 3", "epochs = 0", r"line 14: heads.a.epochs: expected a whole number of at least 1, found 0"),
        ("epochs = 3", 'epochs = "3"', r"line 14: heads.a.epochs: expected a whole number .*, found '3'"),
        ("epochs = 3", "epochs = true", r"line 14: heads.a.epochs: expected a whole number .*, found True"),
        ("epochs = 3", "nesterov = true", r"line 13: heads.a: nesterov: expected a momentum above 0"),
        ("[8, 4]", "[1, 'x']", r"line 15: heads.a.hidden: expected a list, each a whole number"),
        ("hidden = [8, 4]", "l2 = [0.1, 0.1, 0.1]", r"line 13: heads.a: l2=.*each of the 2 layers"),
        ("[heads.a]", "[head.a]", r"line 13: head: there is no such table: did you mean heads"),
        ("[heads.a]", "[heads.'a/b']", r"line 13: heads.a/b: expected a name of letters"),
        ('head = "logreg"', 'head = "logrg"', r"line 17: heads.b.head: expected dense or logreg"),
        ('head = "logreg"', 'head = "logreg"\nlr = 0.1', r"heads.b.lr: a head of kind logreg has no such setting"),
        ("per_class = 8", "per_class = 1", r"line 4: dataset.per_class: expected a whole number of at least 3"),
        ("per_class = 8", "split = [1, 2]", r"line 4: dataset.split: .*[Ff]ield required"),
        ("per_class = 8", "splt = [1, 2]", r"line 4: dataset.splt: there is no such setting: did you mean split"),
        ("per_class = 8", "images = 'x'", r"line 4: dataset.images: there is no such setting"),
        ("per_class = 8", "group_pattern = '('", r"line 4: dataset.group_pattern: not a regular expression"),
        ("per_class = 8", "source = 3", r"line 4: dataset.source: expected .*text.*, found 3"),
        ('"random"', '["random"]', r"line 7: extract.weights: expected text"),
        ('"mobilenetv2"', '"mobilnetv2"', r"line 10: networks.small.model: .*did you mean mobilenetv2"),
        ("[networks.pixels]", "[networks.vgg61]", r"line 11: networks.vgg61: .*did you mean vgg19 or vgg16"),
        ("[networks.pixels]", "[networks.vgg16]\nlayers = ['a', 'b']", r"line 12: .*expected one layer"),
        ("folds = 2", "folds = 1", r"line 20: cross_validate.cv.folds: expected a whole number of at least 2"),
        ("folds = 2", "leave_group_out = true\nrepeats = 2", r"line 19: cross_validate.cv: .*expected 1"),
        ("folds = 2", "without_test = false", r"line 24: ensembles.best.choose: .*judges the test images, too"),
        ('heads = ["a"]', 'heads = ["c"]', r"line 21: cross_validate.cv.heads: nothing is called 'c'"),
        ('choose = "cv"', 'choose = "vc"', r"line 24: .*there is no \[cross_validate.vc\]: did you mean cv"),
        ('choose = "cv"', 'members = ["head/c"]', r"ensembles.best: members: no step is called 'head/c'"),
        ('choose = "cv"', 'members = ["*"]', r"cross-validate, head are not judged on the same images"),
        ('choose = "cv"', "", r"line 23: ensembles.best: expected either members or choose"),
        ('choose = "cv"', 'members = ["head"]\nbest = 2', r"line 25: ensembles.best.best: is for choose"),
        ('title = "cells"', "title = 3", r"line 1: title: expected text, found 3"),
        ('title = "cells"', 'title = "cells', r"r.toml: not readable as TOML: .*line 1"),
        ('title = "cells"', "heads = 3", r"r.toml: not readable as TOML"),
        ('title = "cells"', "views = 3", r"line 1: views: expected a table, found 3"),
        ('title = "cells"', "datasets.a = 3", r"line 1: datasets.a: expected a table, found 3"),
        ('title = "cells"', "datasets.results = {}", r"line 1: datasets.results: expected a name of .*results"),
        ('title = "cells"', "datasets.a.vews = {}", r"line 1: datasets.a.vews: .*did you mean views"),
        ('title = "cells"', "datasets.a.views.train = 0", r"line 1: datasets.a.views.train: input should be"),
        ('title = "cells"', "views.train_rows = {a = 0}", r"line 1: views.train_rows"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=message) as raised:
        steps_of(read(tmp_path, GOOD.replace(old, new, 1)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("heads.a.epoch", "3", r"`changes='heads.a.epoch'`: there is no such setting: did you mean epochs"),
        ("heads.a.epochs", "many", r"`changes='heads.a.epochs'`: .*expected a whole number.*found 'many'"),
        ("heads.a", "3", r"`changes='heads.a'`: expected a table, found 3"),
        ("heads..a", "3", r"`changes='heads..a'`: expected a key of the recipe"),
        ("", "3", r"`changes=''`: expected a key of the recipe"),
        ("heads.a.hidden", "[1, 2", r"`changes='heads.a.hidden'`: '\[1, 2' is not readable as TOML"),
        ("networks.vgg61.weights", "random", r"networks.vgg61: .*did you mean vgg19 or vgg16"),
        ("views.train", "x", r"`changes='views.train'`: input should be"),
    ],
)
def test_what_is_wrong_with_a_change_is_said(key: str, value: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(GOOD)
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / "r.toml", changes={key: value})


def test_a_wrong_line_is_not_blamed_on_a_change_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"line 14: heads.a.epoch") as raised:
        read(tmp_path, GOOD.replace("epochs", "epoch"), heads__b__seed=3)
    assert "changes" not in str(raised.value)


def test_many_mistakes_are_said_together(tmp_path: Path) -> None:
    wrong = "".join(f"x{number} = 1\n" for number in range(8))
    with pytest.raises(RecipeError, match=r"line 1: x0: .*; r.toml, line 2: x1: .*; and \d more"):
        read(tmp_path, wrong)


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    for name, message in (
        ("leukocyte-study", "did you mean leukocytes-study"),
        (str(tmp_path / "no.toml"), "there is no such file.*leukocytes-best"),
        (str(tmp_path), "there is no such file"),
    ):
        with pytest.raises(RecipeError, match=message):
            read_recipe(name, changes={})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(RecipeError, match="not readable as TOML"):
        read_recipe(tmp_path / "binary.toml", changes={})


# Steps


@pytest.mark.parametrize(
    ("pattern", "step", "is_meant"),
    [
        ("head", "head/100/vgg16", True),
        ("head/100", "head/100/vgg16", True),
        ("100/vgg16", "a/head/100/vgg16", True),
        ("vgg*", "head/100/vgg16", True),
        ("head/*/vgg*", "b/head/100/vgg16", True),
        ("head/vgg16", "head/100/vgg16", False),
        ("vgg", "head/100/vgg16", False),
        ("HEAD", "head/100/vgg16", False),
    ],
)
def test_patterns(pattern: str, step: str, is_meant: bool) -> None:
    assert matches(pattern, step) == is_meant


def test_only_some_steps_come_with_what_they_need(tmp_path: Path) -> None:
    steps = steps_of(read(tmp_path, GOOD))
    assert [step.id for step in chosen(steps, ["head/a/small"])] == [
        *("dataset", "extract/small", "head/a/small", "report"),
    ]
    of_choice = [step.id for step in chosen(steps, ["best"])]
    assert "cross-validate/cv/a/pixels" in of_choice
    assert "head/a/small" in of_choice
    assert "head/b/small" not in of_choice
    with pytest.raises(UsageError, match="`only='smal'`: no step is called so: did you mean small"):
        chosen(steps, ["smal"])


# The recipes of featcache


def test_the_recipes_in_the_checkout_are_those_that_are_installed() -> None:
    listed = {path.stem: path.resolve() for path in (ROOT / "recipes").glob("*.toml")}
    assert listed == {name: path.resolve() for name, path in packaged().items()}
    assert set(listed) == {"leukocytes-best", "leukocytes-study"}


@pytest.mark.parametrize("name", ["leukocytes-best", "leukocytes-study"])
def test_recipes_of_featcache_name_no_path(name: str) -> None:
    made = read_recipe(name, changes={})
    assert all(data.source is None for data in made.datasets)
    assert not any("weights" in network.options for network in made.networks)
    assert steps_of(made)


def images(counts: dict[str, int]) -> list[LabelledImage]:
    return [
        Image(path=f"{label}/{split}{number}.png", label=label, split=split, group=f"{label}{split}{number}", box=None,
              image_id=f"{label}-{split}-{number}")
        for label in CLASSES
        for split, count in counts.items()
        for number in range(count)
    ]  # fmt: skip


def rows_of(data: DataSet, counts: dict[str, int]) -> dict[str, list[int]]:
    listed = images(counts)
    views = plan_views(listed, ViewsSection.model_validate(data.views))
    return {
        split: [sum(n for image, n in zip(listed, views, strict=True) if (image.split, image.label) == (split, label))
                for label in CLASSES]
        for split in SPLITS
    }  # fmt: skip


def test_the_study_has_the_published_numbers_of_rows() -> None:
    second, first = read_recipe("leukocytes-study", changes={}).datasets
    assert (second.name, first.name) == ("second", "first")
    assert second.dataset["split_counts"] == [100, 10, 10]
    assert rows_of(second, {"train": 100, "val": 10, "test": 10}) == {
        "train": [1099, 1099, 1098, 1098],  # 4394
        "val": [110] * 4,  # 440
        "test": [110] * 4,
    }
    assert rows_of(first, {"train": 120, "val": 15, "test": 15}) == {
        "train": [2610, 2628, 2604, 2624],  # 10466
        "val": [215, 213, 211, 218],
        "test": [215, 213, 211, 218],
    }


def test_rows_of_other_classes_are_refused() -> None:
    wanted = ViewsSection.model_validate({"train_rows": {"eosinophil": 3, "basophil": 2}})
    with pytest.raises(FeatcacheError, match=re.escape("train_rows in [views] is for the classes basophil, eosin")):
        plan_views(images({"train": 2}), wanted)
