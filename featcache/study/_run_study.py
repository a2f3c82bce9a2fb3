"""run_study: do what a recipe says, as far as it is not done yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

from featcache import api
from featcache.api import Report
from featcache.core.errors import FeatcacheError, RunError
from featcache.core.files import resolved
from featcache.core.progress import Advance, Progress
from featcache.core.project import Project
from featcache.core.shown import shown
from featcache.core.units import duration
from featcache.store import Cache
from featcache.study import averaging, places
from featcache.study.plan import plan_study
from featcache.study.recipe import read_recipe
from featcache.study.steps import Step, candidates, chosen, given, reason_of, steps_of
from featcache.training import Run

State = Literal["made", "there", "failed"]
_SMALLER_IS_BETTER = ("loss",)


@dataclass(frozen=True)
class DoneStep:
    """What came of a step.

    state : "made", "there" already, or "failed"
    cache : the name of the one that it made or found; "" where it makes none
    runs : that it made or found
    reason : why it failed; because_of : the step that failed first, where this one needs its result
    """

    id: str
    kind: str
    state: State
    seconds: float = 0.0
    cache: str = ""
    runs: tuple[Run, ...] = ()
    reason: str = ""
    because_of: str = ""


@dataclass(frozen=True)
class Study:
    """What came of a recipe.

    folder : of the study; steps : in their order; report : None where there is no run yet
    """

    name: str
    folder: Path
    steps: tuple[DoneStep, ...]
    report: Report | None

    @property
    def runs(self) -> list[Run]:
        """The runs of all steps."""
        return [run for step in self.steps for run in step.runs]

    @property
    def failed(self) -> dict[str, str]:
        """The steps that could not be done, with the reason; but for those that only lack their results."""
        return {step.id: step.reason for step in self.steps if step.state == "failed" and not step.because_of}

    @property
    def is_whole(self) -> bool:
        """Whether all steps are done."""
        return all(step.state != "failed" for step in self.steps)

    def _repr_html_(self) -> str:
        """A line for each step, and the report."""
        lines = "".join(
            f"<tr><td>{escape(step.id)}</td><td>{step.state}</td><td>{escape(step.reason)}</td></tr>"
            for step in self.steps
        )
        return f"<b>{escape(self.name)}</b><table>{lines}</table>{self.report._repr_html_() if self.report else ''}"


def run_study(
    recipe: str | Path,
    *,
    into: str | Path | None = None,
    only: Collection[str] = (),
    changes: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Do a whole study: data sets, networks, heads, whole networks, cross-validations, ensembles, and the report.

    What is there already is not done again, so an interrupted study goes on where it stopped. A step that fails leaves
    the others untouched.

    Parameters
    ----------
    recipe : a TOML file, or the name of a recipe that comes with featcache: "leukocytes-study", "leukocytes-best"
    into : folder of the study; by default one with the recipe's name, here
    only : do only these steps and what they need: a name such as "head/100/vgg16", or a part of it: "vgg16", "head".
        * stands for any characters
    changes : keys of the recipe with other values, such as {"dataset.source": "cells/", "heads.100.epochs": 3}
    dry_run : find out what is there and what the rest takes, and do nothing
    progress : told how far it is

    Returns
    -------
    Study: `steps`, `runs`, `report`, `failed`. With `dry_run` a StudyPlan: steps with state, seconds and bytes

    Raises
    ------
    RecipeError : the recipe says something impossible; the message names the line
    UsageError : `only` names no step
    ProjectError : the folder holds another study
    DatasetError : the images cannot be used

    Examples
    --------
    >>> import featcache as fc
    >>> plan = fc.run_study("leukocytes-best", only=["dataset"], changes={"dataset.per_class": 8}, dry_run=True)
    >>> [step.id for step in plan.steps]
    ['dataset', 'report']
    """
    progress = shown(progress)
    read = read_recipe(recipe, changes=changes or {})
    steps = chosen(steps_of(read), only)
    folder = resolved(Path(into if into is not None else read.name))
    if dry_run:
        return plan_study(read, steps, into=folder, progress=progress)
    watched = _Watched(progress)
    work = _Work(folder, steps, watched, is_alone=len(read.datasets) == 1)
    for step in steps:
        work.do(step)
        if watched.is_stopped:
            raise KeyboardInterrupt
    return Study(read.name, folder, tuple(work.done.values()), work.report)


@dataclass
class _Watched:
    """A progress that remembers whether it was asked to stop: a step may come to its end even so."""

    inner: Progress
    is_stopped: bool = False

    def begin(self, what: str, total: int) -> AbstractContextManager[Advance]:
        """See `Progress.begin`."""
        return self.inner.begin(what, total)

    def note(self, message: str) -> None:
        """See `Progress.note`."""
        self.inner.note(message)

    def epochs(self, history: Sequence[Any]) -> None:
        """See `Progress.epochs`."""
        self.inner.epochs(history)

    @contextmanager
    def stopping(self) -> Iterator[Callable[[], bool]]:
        """See `Progress.stopping`."""
        with self.inner.stopping() as stopped:
            try:
                yield stopped
            finally:
                self.is_stopped = self.is_stopped or stopped()


@dataclass
class _Work:
    """A study under way: what is done, and what the next steps take from it.

    is_alone : whether there is one data set, without which there is nothing to do
    """

    folder: Path
    steps: list[Step]
    progress: Progress
    is_alone: bool
    done: dict[str, DoneStep] = field(default_factory=dict)
    projects: dict[str, Project] = field(default_factory=dict)
    caches: dict[str, Cache] = field(default_factory=dict)
    report: Report | None = None

    def do(self, step: Step) -> None:
        """Do one step, and note what came of it."""
        began = time.perf_counter()
        failed = self._failed_need(step)
        if failed is not None:
            first = failed.because_of or failed.id
            self.done[step.id] = DoneStep(step.id, step.kind, "failed", reason=f"needs {first}", because_of=first)
            return
        try:
            was_there, runs = getattr(self, f"_{step.kind.replace('-', '_')}")(step)
        except (FeatcacheError, MemoryError) as error:
            if step.kind == "dataset" and self.is_alone:
                raise
            reason = reason_of(step, error)
            self.done[step.id] = DoneStep(step.id, step.kind, "failed", reason=reason)
            self._say(step, f"failed: {reason}")
            return
        state: State = "there" if was_there else "made"
        cache = self.caches[step.id].name if step.id in self.caches else ""
        done = DoneStep(step.id, step.kind, state, time.perf_counter() - began, cache, tuple(runs))
        self.done[step.id] = done
        if step.kind != "report":
            self._say(step, _said(done))

    def _say(self, step: Step, what: str) -> None:
        """Tell what came of a step, and how far the study is."""
        self.progress.note(f"{len(self.done)} of {len(self.steps)}, {step.id}: {what}")

    def _failed_need(self, step: Step) -> DoneStep | None:
        """A step that is needed and failed. A choice is made from those that did not, if there are any."""
        failed = [self.done[need] for need in step.needs if self.done[need].state == "failed"]
        if step.ensemble is not None and step.ensemble.choose and self._whole_candidates(step):
            return None
        return failed[0] if failed else None

    def _whole_candidates(self, step: Step) -> dict[str, str]:
        own = [other for other in self.steps if other.dataset is step.dataset]
        pairs = candidates(given(step.ensemble), own)
        return {
            judged: trained
            for judged, trained in pairs.items()
            if self.done[judged].state != "failed" and self.done[trained].state != "failed"
        }

    def _project(self, step: Step) -> Project:
        return self.projects[given(step.dataset).name]

    def _cache(self, step: Step) -> Cache:
        return self.caches[step.needs[0]]

    def _dataset(self, step: Step) -> tuple[bool, list[Run]]:
        project, was_there = places.make(given(step.dataset), self.folder, progress=self.progress)
        self.projects[given(step.dataset).name] = project
        return was_there, []

    def _extract(self, step: Step) -> tuple[bool, list[Run]]:
        network, project = given(step.network), self._project(step)
        others = [other.cache_folder for other in self.projects.values() if other is not project]
        cache = api.extract(
            project,
            network.model,
            reuse_from=[folder for folder in others if folder.is_dir()],
            progress=self.progress,
            **network.options,
        )
        self.caches[step.id] = cache
        done = cache.extracted
        return not (done.computed or done.copied or done.pulled_from), []

    def _head(self, step: Step) -> tuple[bool, list[Run]]:
        head = given(step.head)
        made = api.fit_head(self._cache(step), head=head.head, seeds=head.seeds, progress=self.progress, **head.options)
        runs = made if isinstance(made, list) else [made]
        return all(run.fitted.reused for run in runs), runs

    def _cross_validate(self, step: Step) -> tuple[bool, list[Run]]:
        head, cross = given(step.head), given(step.cross)
        settings = {name: value for name, value in head.options.items() if name != "solver"}
        run = api.cross_validate(
            self._cache(step),
            head=head.head,
            without_test=cross.without_test,
            progress=self.progress,
            **cross.options,
            **settings,
        )
        return run.fitted.reused, [run]

    def _scratch(self, step: Step) -> tuple[bool, list[Run]]:
        network = given(step.network)
        options = given(step.scratch).arguments(network)
        run = api.fit_scratch(self._project(step), network.model, progress=self.progress, **options)
        return run.fitted.reused, [run]

    def _ensemble(self, step: Step) -> tuple[bool, list[Run]]:
        ensemble = given(step.ensemble)
        facts: dict[str, Any] = {"data_set": given(step.dataset).name}
        members = step.needs
        if ensemble.choose:
            ranked = self._ranked(step)
            best = ranked[: ensemble.best]
            members = [trained for _, _, trained in best]
            facts["choice"] = {
                "measure": ensemble.measure,
                "candidates": [
                    {"step": trained, "judged_by": self.done[judged].runs[0].name, "value": value}
                    for value, judged, trained in ranked
                ],
            }
        runs = [run for member in members for run in self.done[member].runs]
        run, was_there = averaging.average(self._project(step).results_folder, runs, name=ensemble.name, facts=facts)
        return was_there, [run]

    def _ranked(self, step: Step) -> list[tuple[float, str, str]]:
        """(measure, cross-validation, step of the head) of all candidates, the best first."""
        measure = given(step.ensemble).measure
        sign = 1 if measure in _SMALLER_IS_BETTER else -1
        found = []
        for judged, trained in self._whole_candidates(step).items():
            of = self.done[judged].runs[0].metrics["measures"].get(measure)
            if of is None:
                raise RunError(f"{self.done[judged].runs[0].name}: has no measure {measure!r} to choose by")
            found.append((float(of["mean"]), judged, trained))
        return sorted(found, key=lambda one: (sign * one[0], one[2]))

    def _report(self, step: Step) -> tuple[bool, list[Run]]:
        if any(done.runs for done in self.done.values()):
            project = next(iter(self.projects.values()))
            self.report = api.report(project if self.is_alone else resolved(project.results_folder))
        return False, []


def _said(done: DoneStep) -> str:
    names = ", ".join(filter(None, [done.cache, *(run.name for run in done.runs)]))
    if done.state == "there":
        return "there already" + (f" ({names})" if names else "")
    return f"made in {duration(done.seconds)}" + (f" ({names})" if names else "")
