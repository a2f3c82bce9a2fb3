"""A dry run of a study: which steps are done, and what the others take in time and bytes; nothing is written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featcache import api, backbones
from featcache.core.errors import FeatcacheError, RunError
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project, changed
from featcache.core.settings import settings_of
from featcache.core.units import duration
from featcache.datasets import SPLITS, dataset_of, plan_views
from featcache.extraction import Estimate
from featcache.heads import HeadConfig, Protocol, expect_rows, from_preset
from featcache.networks import ScratchConfig, from_recipe
from featcache.store import Cache
from featcache.study import places
from featcache.study.steps import Step, given, reason_of
from featcache.study.tables import OneNetwork, Recipe
from featcache.training import CROSS_VALIDATION, list_runs, with_current_labels, without_split

State = Literal["there", "unfinished", "to do", "impossible"]
_DOWNLOADED = "its ImageNet weights are not on this machine, and are downloaded first"


@dataclass(frozen=True)
class PlannedStep:
    """A step and what it takes.

    state : "there" already, "unfinished" of an interrupted call, "to do", or "impossible"
    seconds, bytes : expected; bytes before compression; None where they are not known
    note : where the numbers come from, or why there are none
    """

    id: str
    kind: str
    state: State
    seconds: float | None = 0.0
    bytes: int | None = 0
    note: str = ""


@dataclass(frozen=True)
class StudyPlan:
    """What a study takes: its steps, as `featcache.study.plan` finds them."""

    name: str
    folder: Path
    steps: tuple[PlannedStep, ...]

    @property
    def seconds(self) -> float:
        """Of all steps whose time is known."""
        return sum(step.seconds or 0.0 for step in self.steps)

    @property
    def bytes(self) -> int:
        """Of all steps whose size is known."""
        return sum(step.bytes or 0 for step in self.steps)

    @property
    def unknown(self) -> list[str]:
        """The steps whose time is not known."""
        return [step.id for step in self.steps if step.seconds is None]

    def _repr_html_(self) -> str:
        """A line for each step."""
        lines = "".join(
            f"<tr><td>{escape(step.id)}</td><td>{step.state}</td>"
            f"<td>{'' if step.seconds is None else duration(step.seconds)}</td><td>{escape(step.note)}</td></tr>"
            for step in self.steps
        )
        return f"<b>{escape(self.name)}</b><table>{lines}</table>"


def plan_study(recipe: Recipe, steps: Sequence[Step], *, into: Path, progress: Progress) -> StudyPlan:
    """What a study would do. Images that are not there are found or drawn in a folder that goes again.

    Raises what `run_study` raises for images and folders that cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
        plan = _Plan(into, Path(folder), progress)
        found = []
        for step in steps:
            with progress.begin(f"looking at {step.id}", 1) as advance:
                found.append(plan.of(step))
                advance(1)
    return StudyPlan(recipe.name, into, tuple(found))


@dataclass(frozen=True)
class _Rows:
    """How many rows and classes the features of a network will have, and how long each row is."""

    of_split: Mapping[str, int]
    n_classes: int
    n_inputs: int | None

    def seconds(self, config: HeadConfig, *, share: float = 1.0, judged: int | None = None) -> tuple[float, int]:
        """Of one training on a share of the training rows."""
        if self.n_inputs is None:
            raise FeatcacheError("the size of the features is not known yet")
        n_val = self.of_split["val"] if judged is None else judged
        n_train = round(self.of_split["train"] * share)
        return expect_rows(n_train, n_val, n_inputs=self.n_inputs, n_classes=self.n_classes, config=config)


@dataclass
class _Plan:
    into: Path
    spare: Path
    progress: Progress
    projects: dict[str, Project] = field(default_factory=dict)
    rows: dict[str, _Rows] = field(default_factory=dict)
    caches: dict[str, Cache] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    _configs: list[dict[str, Any]] | None = None

    def of(self, step: Step) -> PlannedStep:
        """What one step takes."""
        broken = next((need for need in step.needs if need in self.reasons), None)
        if broken is not None and not (step.ensemble and step.ensemble.choose):
            self.reasons[step.id] = self.reasons[broken]
            return PlannedStep(step.id, step.kind, "impossible", None, None, f"needs {broken}")
        try:
            state, seconds, n_bytes, note = getattr(self, f"_{step.kind.replace('-', '_')}")(step)
        except FeatcacheError as error:
            if step.kind == "dataset":
                raise
            self.reasons[step.id] = reason_of(step, error)
            return PlannedStep(step.id, step.kind, "impossible", None, None, self.reasons[step.id])
        self.states[step.id] = state
        return PlannedStep(step.id, step.kind, state, seconds, n_bytes, note)

    def _dataset(self, step: Step) -> tuple[State, float | None, int | None, str]:
        data = given(step.dataset)
        is_made = places.is_made(data, self.into)
        if is_made:
            project = places.opened(data, self.into)
        else:
            project, _ = places.make(data, self.spare, progress=self.progress)
        self.projects[data.name] = project
        images = dataset_of(project).images
        rows = self._rows_of(project, None)
        counts = ", ".join(f"{rows.of_split[split]:,} {split}" for split in SPLITS)
        state: State = "there" if is_made else "to do"
        return state, 0.0, 0, f"{len(images):,} images; rows: {counts}"

    def _rows_of(self, project: Project, n_inputs: int | None) -> _Rows:
        images = dataset_of(project).images
        views = plan_views(images, project.settings.views)
        of_split = dict.fromkeys(SPLITS, 0)
        for image, n_views in zip(images, views, strict=True):
            if image.is_trained_on:
                of_split[image.split] += n_views
        return _Rows(of_split, len({image.label for image in images if image.is_trained_on}), n_inputs)

    def _extract(self, step: Step) -> tuple[State, float | None, int | None, str]:
        project, network = self.projects[given(step.dataset).name], given(step.network)
        options = {**network.options, "offline": True}
        if _is_downloaded(network):
            rows = self.rows[step.id] = self._rows_of(project, _inputs_of(network))
            item = _item_bytes(project, network)
            n_bytes = sum(rows.of_split.values()) * rows.n_inputs * item if rows.n_inputs else None
            return "to do", None, n_bytes, _DOWNLOADED
        found: Estimate = api.extract(project, network.model, dry_run=True, progress=SILENT, **options)
        explained = found.explained
        if explained.state == "hit":
            where = f"{project.cache_url or project.cache_folder}/{explained.name}"
            cache = with_current_labels(project, api.open_cache(where, project=project))
            self.caches[step.id] = cache
            self.rows[step.id] = self._rows_of(project, int(np.prod(cache.features.shape[1:])))
            return "there", 0.0, 0, explained.name
        item = _item_bytes(project, network)
        n_inputs = found.bytes // explained.compute // item if explained.compute else None
        self.rows[step.id] = self._rows_of(project, n_inputs)
        state: State = "unfinished" if explained.state == "unfinished" else "to do"
        return state, found.seconds, found.bytes, f"{explained.compute:,} rows to compute, {explained.copy:,} to copy"

    def _head(self, step: Step) -> tuple[State, float | None, int | None, str]:
        head = given(step.head)
        cache = self.caches.get(step.needs[0])
        if head.head != "dense":
            wanted = {"kind": "head", "head": {"kind": head.head, "seed": head.settings.get("seed", 0)}}
            if cache is not None and self._there(step, {**wanted, **_of_cache(cache)}):
                return "there", 0.0, 0, ""
            return "to do", None, None, "by scikit-learn: its time is not known"
        configs = [_config(step, seed) for seed in range(head.seeds)]
        missing = [
            config
            for config in configs
            if cache is None or not self._there(step, {"kind": "head", "head": config.to_dict(), **_of_cache(cache)})
        ]
        if not missing:
            return "there", 0.0, 0, ""
        rows = self.rows[step.needs[0]]
        if rows.n_inputs is None:
            return "to do", None, None, "known when the features are"
        seconds, n_bytes = rows.seconds(missing[0])
        return "to do", len(missing) * seconds, n_bytes, _trainings(len(missing), missing[0])

    def _cross_validate(self, step: Step) -> tuple[State, float | None, int | None, str]:
        head, cross = given(step.head), given(step.cross)
        protocol = Protocol(**cross.options)
        cache = self.caches.get(step.needs[0])
        if cache is not None:
            judged = without_split(cache, "test") if cross.without_test else cache
            is_dense = head.head == "dense"
            of_head: Any = {"kind": head.head, "seed": head.settings.get("seed", 0)}
            of_head = _config(step, 0).to_dict() if is_dense else of_head
            wanted = {"kind": CROSS_VALIDATION, "head": of_head, "protocol": vars(protocol), **_of_cache(judged)}
            if self._there(step, wanted):
                return "there", 0.0, 0, ""
        rows = self.rows[step.needs[0]]
        if head.head != "dense" or protocol.leave_group_out or rows.n_inputs is None:
            return "to do", None, None, "not known before its folds are"
        splits = ("train", "val") if cross.without_test else SPLITS
        n_rows = sum(rows.of_split[split] for split in splits)
        share = n_rows * (1 - 1 / protocol.folds) / max(rows.of_split["train"], 1)
        trainings = 1 if protocol.test_on else protocol.folds * protocol.repeats
        config = _config(step, 0)
        seconds, _ = rows.seconds(config, share=share, judged=0)
        return "to do", trainings * seconds, n_rows**2 * np.dtype(config.dtype).itemsize, _trainings(trainings, config)

    def _scratch(self, step: Step) -> tuple[State, float | None, int | None, str]:
        project = self.projects[given(step.dataset).name]
        network, scratch = given(step.network), given(step.scratch)
        arguments = scratch.arguments(network)
        if self._is_trained(project, network, arguments):
            return "there", 0.0, 0, ""
        if arguments["weights"] == "imagenet" and _is_downloaded(network, "imagenet"):
            return "to do", None, None, _DOWNLOADED
        found = api.fit_scratch(project, network.model, dry_run=True, **{**arguments, "offline": True})
        note = (
            f"{_counted(found.epochs, 'epoch')} of {_counted(found.updates, 'update')}, timed here, without validation"
        )
        return "to do", found.seconds, None, note

    def _is_trained(self, project: Project, network: OneNetwork, arguments: Mapping[str, Any]) -> bool:
        """Whether there is a run of a whole network with these settings on these images; of own models, never."""
        if network.model not in backbones.registry.BACKBONES:
            return False
        row = backbones.registry.get(network.model)
        settings = {name: value for name, value in arguments.items() if name in settings_of(ScratchConfig)}
        asked = arguments.get("preprocessing")
        wanted = {
            "kind": "scratch" if arguments["weights"] == "random" else "fine-tune",
            "training": from_recipe(arguments["recipe"], **settings).to_dict(),
            "dataset": dataset_of(project).digest,
            "backbone": row.name,
        }
        of_network = {
            "input_size_px": arguments.get("input_size_px") or row.input_size_px,
            "preprocessing": row.preprocessing if asked in (None, "model") else asked,
        }
        return any(
            of_network.items() <= {**one.get("network", {})}.items() for one in self._all(project) if _has(one, wanted)
        )

    def _ensemble(self, step: Step) -> tuple[State, float | None, int | None, str]:
        project = self.projects[given(step.dataset).name]
        wanted = {"ensemble": given(step.ensemble).name, "data_set": given(step.dataset).name}
        is_there = all(self.states.get(need) == "there" for need in step.needs)
        is_there = is_there and any(_has(config, wanted) for config in self._all(project))
        return ("there" if is_there else "to do"), 0.0, 0, "of predictions: no time to speak of"

    def _report(self, step: Step) -> tuple[State, float | None, int | None, str]:
        return "to do", 0.0, 0, "written each time"

    def _there(self, step: Step, wanted: Mapping[str, Any]) -> bool:
        """Whether a run has these values in its configuration."""
        project = self.projects[given(step.dataset).name]
        return any(_has(one, wanted) for one in self._all(project))

    def _all(self, project: Project) -> Iterable[dict[str, Any]]:
        if self._configs is None:
            self._configs = []
            for run in list_runs(project.results_folder):
                try:
                    self._configs.append(run.config)
                except RunError:  # a damaged run is none that is there
                    continue
        return self._configs


def _config(step: Step, number: int) -> HeadConfig:
    """The settings of the head that a step trains, with one of its seeds."""
    head = given(step.head)
    config = from_preset(head.options["preset"], **head.settings)
    return replace(config, seed=config.seed + number)


def _of_cache(cache: Cache) -> dict[str, str]:
    return {"cache": cache.manifest.digest, "dataset": cache.manifest.dataset_digest}


def _has(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(config.get(name) == value for name, value in wanted.items())


def _is_downloaded(network: OneNetwork, weights: str | None = None) -> bool:
    """Whether a network's weights would have to be downloaded, and may be."""
    asked = weights or network.options.get("weights", "imagenet")
    row = backbones.registry.BACKBONES.get(network.model)
    may = not network.options.get("offline")
    return row is not None and may and asked == "imagenet" and backbones.available(row) == "download"


def _inputs_of(network: OneNetwork) -> int | None:
    """How many features a row will have, of a network that is not here; None where that is not known."""
    if network.options.get("input_size_px") or network.options.get("layers"):
        return None
    shape = backbones.registry.get(network.model).feature_shape
    return int(np.prod(shape if network.options.get("pooling", "none") == "none" else shape[-1:]))


def _item_bytes(project: Project, network: OneNetwork) -> int:
    asked = {name: network.options[name] for name in ("dtype",) if name in network.options}
    storage = changed(project.settings.storage, asked)
    return int(np.dtype(storage.dtype_of(str(network.options.get("precision", "float32")))).itemsize)


def _trainings(count: int, config: HeadConfig) -> str:
    times = f"{count} trainings of " if count > 1 else ""
    return f"{times}{_counted(config.epochs, 'epoch')}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
