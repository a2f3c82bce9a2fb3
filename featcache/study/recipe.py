"""Reading a recipe: which file is meant, what is changed in it, and what is wrong with it, line by line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from featcache.backbones import check_model, is_model_file
from featcache.core.errors import BackboneError, FeatcacheError, RecipeError, nearest
from featcache.core.files import expanded
from featcache.core.project import AugmentationSection, DatasetSection, ViewsSection
from featcache.core.settings import Setting, settings_of
from featcache.core.strict_json import read_bounded, strict_toml
from featcache.heads import HeadConfig, Protocol, from_preset
from featcache.networks import ScratchConfig, ScratchOptions, from_recipe
from featcache.study import tables
from featcache.study.locate import line_of, lines_of
from featcache.study.tables import NAMED, SETTINGS

_MOST_BYTES = 1 << 20
_MOST_PROBLEMS = 5
_SUFFIX = ".toml"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")
_SECTIONS: dict[str, type[BaseModel]] = {
    "dataset": DatasetSection,
    "views": ViewsSection,
    "augmentation": AugmentationSection,
}
_BESIDES = {name: SETTINGS["dataset"][name] for name in ("source", "classes", "per_class", "resplit", "strict")}
"""Keys of [dataset] that featcache.toml does not have, or where they may be left out."""
_EXCLUSIVE = (("split", "split_counts"), ("train", "train_rows"), ("val", "val_rows"), ("test", "test_rows"))
"""Keys that say the same in two ways: one of a later layer replaces the other of an earlier one."""
_WORDS = ("imagenet", "random", "")
"""Weights that are no files."""

Values = dict[str, Any]
Place = tuple[str, ...]


@dataclass
class _Reading:
    """What is being read, and what was found to be wrong.

    told : keys that the caller changed, and not the file
    """

    file: str
    lines: dict[Place, int]
    told: Sequence[Place]
    problems: list[str] = field(default_factory=list)

    def wrong(self, place: Place, message: str) -> None:
        """Note that something is wrong with a key."""
        told = [key for key in self.told if place[: len(key)] == key or key[: len(place)] == place]
        line = line_of(self.lines, place)
        if told and (line is None or place not in self.lines or place in self.told):
            where = f"`changes={'.'.join(told[0])!r}`"
        else:
            where = f"{self.file}, line {line}" if line is not None else self.file
        key = "" if told and place == told[0] and where[0] == "`" else ".".join(place)
        said = f"{where}: {f'{key}: ' if key else ''}{message}"
        if said not in self.problems:
            self.problems.append(said)

    def end(self) -> None:
        """Raise RecipeError where anything was wrong."""
        if self.problems:
            more = len(self.problems) - _MOST_PROBLEMS
            raise RecipeError("; ".join(self.problems[:_MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else ""))


def packaged() -> dict[str, Path]:
    """The recipes that come with featcache, by name."""
    folder = Path(str(files("featcache"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob(f"*{_SUFFIX}"))}


def read_recipe(recipe: str | Path, *, changes: Mapping[str, Any]) -> tables.Recipe:
    """A recipe by its file, or by the name of one that comes with featcache, with some keys changed.

    changes : {"dataset.source": "cells", "heads.100.epochs": 3}. A text that is the value of a TOML key is taken as
        such; relative paths in the file start from its folder, those in changes from the current one

    Raises RecipeError naming the line of each wrong key.
    """
    path = _file_of(recipe)
    text, values = _read(path)
    told, changed = _changes(changes)
    reading = _Reading(path.name, lines_of(text), told)
    values = _merged(_placed(values, path.parent.absolute()), _placed(changed, Path.cwd()))
    return _checked(path.stem, values, reading)


def _file_of(recipe: str | Path) -> Path:
    path = expanded(recipe)
    if path.is_file():
        return path
    known = packaged()
    if str(recipe) in known:
        return known[str(recipe)]
    if path.suffix == _SUFFIX or len(path.parts) > 1:
        raise RecipeError(f"{path}: there is no such file", f"Recipes that come with featcache: {', '.join(known)}")
    raise RecipeError(f"{str(recipe)!r:.200}: neither a file nor a recipe of featcache: {nearest(str(recipe), known)}")


def _read(path: Path) -> tuple[str, Values]:
    try:
        text = read_bounded(path, _MOST_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
        return text, strict_toml(text)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a TOMLDecodeError names its line
        raise RecipeError(f"{path.name}: not readable as TOML: {error}") from error


def _changes(changes: Mapping[str, Any]) -> tuple[list[Place], Values]:
    """The places that are changed, and the changes as nested tables."""
    told: list[Place] = []
    values: Values = {}
    for key, value in changes.items():
        try:
            nested = tomllib.loads(f"{key} = 0") if "\n" not in key else {}
        except tomllib.TOMLDecodeError:
            nested = {}
        place: list[str] = []
        inner: Any = nested
        while isinstance(inner, dict) and len(inner) == 1:
            ((name, inner),) = inner.items()
            place.append(name)
        if not place or isinstance(inner, dict):
            raise RecipeError(f"`changes={key!r:.80}`: expected a key of the recipe, such as heads.100.epochs")
        made = _value_of(key, value)
        for name in reversed(place):
            made = {name: made}
        told.append(tuple(place))
        values = _merged(values, made)
    return told, values


def _value_of(key: str, value: Any) -> Any:
    """A text as TOML where it is TOML, else as text, such as a path."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    try:
        return strict_toml(f"value = {value}")["value"] if "\n" not in value else value
    except ValueError as error:
        if value.lstrip()[:1] in ("[", "{", '"', "'"):
            raise RecipeError(f"`changes={key!r:.80}`: {value!r:.80} is not readable as TOML: {error}") from error
        return value


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Tables in one another; keys of `over` replace those of `values`."""
    made = dict(values)
    for key, value in over.items():
        for pair in _EXCLUSIVE:
            if key in pair and (other := pair[1 - pair.index(key)]) not in over:
                made.pop(other, None)
        before = made.get(key)
        made[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return made


def _placed(values: Values, folder: Path) -> Values:
    """The same with relative paths as they are from everywhere."""

    def path(value: Any) -> Any:
        return str(folder / expanded(value)) if isinstance(value, str) and value else value

    def weights(value: Any) -> Any:
        return value if value in _WORDS else path(value)

    def model(value: Any) -> Any:
        return path(value) if isinstance(value, str) and is_model_file(value) else value

    def roots(value: Any) -> Any:
        return {name: path(root) for name, root in value.items()} if isinstance(value, dict) else value

    made: Any = values
    of_data = {"source": path, "roots": roots}
    of_network = {"weights": weights, "model": model}
    made = _applied(made, ("dataset",), of_data)
    made = _applied(made, ("datasets", "*", "dataset"), of_data)
    made = _applied(made, ("extract",), of_network)
    made = _applied(made, ("networks", "*"), of_network)
    return dict(_applied(made, ("scratch", "*"), of_network))


def _applied(values: Any, place: Place, of: Mapping[str, Callable[[Any], Any]]) -> Any:
    """Tables with some values replaced in the one at a place; * stands for every name. Anything else stays."""
    if not isinstance(values, dict):
        return values
    if not place:
        return {name: of[name](value) if name in of else value for name, value in values.items()}
    first, *rest = place
    names = values if first == "*" else {first} & set(values)
    return {name: _applied(value, tuple(rest), of) if name in names else value for name, value in values.items()}


def _checked(name: str, values: Values, reading: _Reading) -> tables.Recipe:
    known = ("title", "dataset", "datasets", "views", "augmentation", "extract", *NAMED)
    _refuse_unknown(values, (), known, reading)
    for key in known[1:]:
        _table(values, (key,), reading)
    for key in NAMED:
        for one in _table(values, (key,), reading):
            _table(values, (key, one), reading)
    if not isinstance(values.get("title", ""), str):
        reading.wrong(("title",), f"expected text, found {values['title']!r:.80}")
    reading.end()
    common = {key: values.get(key, {}) for key in _SECTIONS}
    made = tables.Recipe(
        name=name,
        title=str(values.get("title", "")),
        datasets=_datasets(common, values.get("datasets", {}), reading),
        networks=_networks(values, reading),
        heads=_each(values, "heads", reading, _head),
        scratch=_each(values, "scratch", reading, _scratch),
        cross_validate=_each(values, "cross_validate", reading, _cross),
        ensembles=_each(values, "ensembles", reading, _ensemble),
    )
    if not made.networks and "networks" not in values:
        reading.wrong((), "no [networks.NAME]: a study needs at least one network")
    _refuse_dangling(made, reading)
    reading.end()
    return made


def _table(values: Values, place: Place, reading: _Reading) -> Values:
    """The table at a place; an empty one where there is none."""
    found = values
    for part in place:
        inner = found.get(part, {})
        if not isinstance(inner, dict):
            reading.wrong(place, f"expected a table, found {inner!r:.80}")
            return {}
        found = inner
    return found


def _refuse_unknown(values: Mapping[str, Any], place: Place, known: Iterable[str], reading: _Reading) -> None:
    names = list(known)
    for key in values:
        if key not in names:
            kind = "setting" if place else "table"
            reading.wrong((*place, key), f"there is no such {kind}: {nearest(key, names)}")


def _each(values: Values, key: str, reading: _Reading, make: Callable[..., Any]) -> tuple[Any, ...]:
    """One record for each [key.NAME]."""
    made = []
    for name, given in values.get(key, {}).items():
        place = (key, name)
        if not _NAME.fullmatch(name):
            reading.wrong(place, "expected a name of letters, digits and _ . + -")
        made.append(make(name, _settings(given, place, SETTINGS[key], reading), place, reading))
    return tuple(one for one in made if one is not None)


def _settings(given: Mapping[str, Any], place: Place, known: Mapping[str, Setting], reading: _Reading) -> Values:
    """The values of a table that are right, lists as tuples."""
    _refuse_unknown(given, place, known, reading)
    found = {}
    for name, value in given.items():
        if name in known:
            value = tuple(value) if isinstance(value, list) else value
            if _takes(known[name], value):
                found[name] = value
            else:
                shown = list(value) if isinstance(value, tuple) else value
                expected = known[name].expected.replace("a tuple", "a list")
                reading.wrong((*place, name), f"expected {expected}, found {shown!r:.80}")
    return found


def _takes(one: Setting, value: Any) -> bool:
    """As `Setting.takes`, for lists of text, too."""
    if any(get_origin(kind) is Sequence for kind in one.kinds):
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    return one.takes(value)


def _split(values: Mapping[str, Any], *records: type) -> tuple[Values, Values]:
    """The values that are settings of some records, and all others."""
    names = {name for record in records for name in settings_of(record)}
    return (
        {name: value for name, value in values.items() if name in names},
        {name: value for name, value in values.items() if name not in names},
    )


def _made(record: Any, values: Mapping[str, Any]) -> Any:
    """A record of those values that are its fields."""
    return record(**{one.name: values[one.name] for one in fields(record) if one.name in values})


def _datasets(common: Mapping[str, Values], several: Values, reading: _Reading) -> tuple[tables.DataSet, ...]:
    """The data sets: the one that the tables without a name describe, or those of [datasets.NAME], changed from it."""
    if not isinstance(several, dict) or not several:
        return (_dataset("", common, {}, (), reading),)
    made = []
    for name, over in several.items():
        place = ("datasets", name)
        if not isinstance(over, dict):
            reading.wrong(place, f"expected a table, found {over!r:.80}")
            continue
        if not _NAME.fullmatch(name) or name in ("results", "cache"):
            reading.wrong(place, "expected a name of letters, digits and _ . + -, other than results and cache")
        _refuse_unknown(over, place, _SECTIONS, reading)
        made.append(_dataset(name, common, over, place, reading))
    return tuple(made)


def _dataset(name: str, common: Mapping[str, Values], over: Values, place: Place, reading: _Reading) -> tables.DataSet:
    found: dict[str, Values] = {}
    own: Values = {}
    for section, model in _SECTIONS.items():
        layers = [((section,), common[section]), ((*place, section), over.get(section, {}))]
        for where, given in layers:
            if not isinstance(given, dict):
                reading.wrong(where, f"expected a table, found {given!r:.80}")
                given = {}
            _refuse_unknown(given, where, SETTINGS[section], reading)
            besides = {key: value for key, value in given.items() if key in _BESIDES} if section == "dataset" else {}
            own |= _settings(besides, where, _BESIDES, reading)
            rest = {key: value for key, value in given.items() if key in model.model_fields and key not in besides}
            _refuse_invalid(model, rest, where, reading)
            found[section] = _merged(found.get(section, {}), rest)
    return tables.DataSet(
        name=name,
        source=own.pop("source", None),
        classes=own.pop("classes", ()),
        dataset=found["dataset"],
        views=found["views"],
        augmentation=found["augmentation"],
        init=own,
    )


def _refuse_invalid(model: type[BaseModel], given: Values, place: Place, reading: _Reading) -> None:
    try:
        model.model_validate(given)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            where = (*place, *(str(part) for part in item["loc"] if isinstance(part, str) and part in given))
            said = item["msg"].removeprefix("Value error, ")
            reading.wrong(where, f"{said[:1].lower()}{said[1:]}, found {item['input']!r:.80}")


def _networks(values: Values, reading: _Reading) -> tuple[tables.OneNetwork, ...]:
    common = _settings(values.get("extract", {}), ("extract",), SETTINGS["extract"], reading)
    return _each(values, "networks", reading, lambda *given: _network(common, *given))


def _network(common: Values, name: str, own: Values, place: Place, reading: _Reading) -> tables.OneNetwork:
    options = {**common, **own}
    model = options.pop("model", None) or name
    try:
        check_model(model)
    except BackboneError as error:
        reading.wrong((*place, "model") if "model" in own else place, str(error))
    if len(options.get("layers", ())) > 1:
        reading.wrong((*place, "layers"), "expected one layer: write a table for each")
    return tables.OneNetwork(name, model, options)


def _head(name: str, given: Values, place: Place, reading: _Reading) -> tables.OneHead | None:
    settings, besides = _split(given, HeadConfig)
    own = _made(tables.HeadTable, besides)
    if own.head == "dense":
        options = {"preset": own.preset, "solver": own.solver, **settings}
        if not _is_possible(lambda: from_preset(own.preset, **settings), place, reading):
            return None
    else:
        for key in sorted({*given} - {"head", "seed", "networks"}):
            reading.wrong((*place, key), f"a head of kind {own.head} has no such setting")
        options = settings
    return tables.OneHead(name, own.networks, own.head, own.seeds, options, settings)


def _scratch(name: str, given: Values, place: Place, reading: _Reading) -> tables.OneScratch | None:
    settings, rest = _split(given, ScratchConfig)
    options, besides = _split(rest, ScratchOptions)
    own = _made(tables.ScratchTable, besides)
    if not _is_possible(lambda: from_recipe(own.recipe, **settings), place, reading):
        return None
    return tables.OneScratch(name, own.networks, {"recipe": own.recipe, "weights": own.weights, **options, **settings})


def _cross(name: str, given: Values, place: Place, reading: _Reading) -> tables.OneCross | None:
    options, besides = _split(given, Protocol)
    own = _made(tables.CrossTable, besides)
    if not _is_possible(lambda: Protocol(**options), place, reading):
        return None
    return tables.OneCross(name, own.heads, own.networks, own.without_test, options)


def _ensemble(name: str, given: Values, place: Place, reading: _Reading) -> tables.OneEnsemble:
    own = _made(tables.EnsembleTable, given)
    if bool(own.members) == bool(own.choose):
        reading.wrong(place, "expected either members or choose")
    if not own.choose:
        for key in ("best", "measure"):
            if key in given:
                reading.wrong((*place, key), "is for choose, which is not given")
    return tables.OneEnsemble(name, own.members, own.choose, own.best, own.measure)


def _is_possible(make: Callable[[], Any], place: Place, reading: _Reading) -> bool:
    try:
        make()
    except FeatcacheError as error:
        reading.wrong(place, str(error).replace("`", ""))
        return False
    return True


def _refuse_dangling(made: tables.Recipe, reading: _Reading) -> None:
    """Note names of networks, heads and cross-validations that there are none of."""
    networks, heads = [one.name for one in made.networks], [one.name for one in made.heads]
    for key in ("heads", "scratch", "cross_validate"):
        for one in getattr(made, key):
            _refuse_unmatched(one.networks, networks, (key, one.name, "networks"), reading)
    for one in made.cross_validate:
        _refuse_unmatched(one.heads, heads, (("cross_validate", one.name, "heads")), reading)
    crosses = {one.name: one for one in made.cross_validate}
    for ensemble in made.ensembles:
        if not ensemble.choose:
            continue
        place = ("ensembles", ensemble.name, "choose")
        if ensemble.choose not in crosses:
            reading.wrong(place, f"there is no [cross_validate.{ensemble.choose}]: {_near(ensemble.choose, crosses)}")
        elif not crosses[ensemble.choose].without_test:
            reading.wrong(
                place, f"[cross_validate.{ensemble.choose}] judges the test images, too: set without_test = true there"
            )


def _refuse_unmatched(patterns: Sequence[str], names: Sequence[str], place: Place, reading: _Reading) -> None:
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            reading.wrong(place, f"nothing is called {pattern!r:.80}: {_near(pattern, names)}")


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return nearest(name, names) if names else "the recipe has none"
