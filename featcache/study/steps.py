"""The steps of a study: what is done, in which order, and what each one needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from featcache.core.errors import RecipeError, UsageError, WeightsError, nearest
from featcache.study.tables import DataSet, OneCross, OneEnsemble, OneHead, OneNetwork, OneScratch, Recipe

Kind = Literal["dataset", "extract", "head", "cross-validate", "scratch", "ensemble", "report"]
_T = TypeVar("_T")
JUDGED: tuple[Kind, ...] = ("head", "cross-validate", "scratch")
"""Kinds of steps whose runs can be averaged."""


@dataclass(frozen=True)
class Step:
    """One thing to do.

    id : such as head/100/vgg16; of several data sets, the name of one in front
    needs : ids of the steps whose results it takes
    """

    id: str
    kind: Kind
    needs: Sequence[str] = ()
    dataset: DataSet | None = None
    network: OneNetwork | None = None
    head: OneHead | None = None
    scratch: OneScratch | None = None
    cross: OneCross | None = None
    ensemble: OneEnsemble | None = None


def steps_of(recipe: Recipe) -> list[Step]:
    """All steps, each behind those that it needs. Raises RecipeError for an ensemble of nothing, or of unlike runs."""
    steps: list[Step] = []
    for data in recipe.datasets:
        steps += _of_dataset(recipe, data)
    return [*steps, Step("report", "report")]


def chosen(steps: Sequence[Step], only: Collection[str]) -> list[Step]:
    """The steps that any of some patterns matches, those that they need, and the report; all where there is none.

    Raises UsageError for a pattern that matches no step.
    """
    if not only:
        return list(steps)
    found: set[str] = set()
    for pattern in only:
        matched = {step.id for step in steps if matches(pattern, step.id)}
        if not matched:
            parts = {part for step in steps for part in step.id.split("/")}
            raise UsageError(f"`only={pattern!r:.80}`: no step is called so: {nearest(pattern, parts)}")
        found |= matched
    for step in reversed(steps):
        if step.id in found:
            found |= set(step.needs)
    return [step for step in steps if step.id in found or step.kind == "report"]


def matches(pattern: str, step: str) -> bool:
    """Whether a pattern means a step: by its whole name, or by parts of it that follow one another."""
    asked, parts = pattern.strip("/").split("/"), step.split("/")
    return any(
        all(map(fnmatchcase, parts[start : start + len(asked)], asked)) for start in range(len(parts) - len(asked) + 1)
    )


def _of_dataset(recipe: Recipe, data: DataSet) -> list[Step]:
    def named(*parts: str) -> str:
        return "/".join([data.name, *parts] if data.name else parts)

    base = Step(named("dataset"), "dataset", dataset=data)
    steps = [base]
    for network in recipe.networks:
        extract = Step(named("extract", network.name), "extract", (base.id,), data, network)
        steps.append(extract)
        heads = [head for head in recipe.heads if _is_meant(network.name, head.networks)]
        for head in heads:
            name = named("head", head.name, network.name)
            steps.append(Step(name, "head", (extract.id,), data, network, head))
        for cross in recipe.cross_validate:
            if _is_meant(network.name, cross.networks):
                for head in heads:
                    if _is_meant(head.name, cross.heads):
                        name = named("cross-validate", cross.name, head.name, network.name)
                        steps.append(Step(name, "cross-validate", (extract.id,), data, network, head, cross=cross))
    for scratch in recipe.scratch:
        for network in recipe.networks:
            if _is_meant(network.name, scratch.networks):
                name = named("scratch", scratch.name, network.name)
                steps.append(Step(name, "scratch", (base.id,), data, network, scratch=scratch))
    steps += [
        Step(named("ensemble", one.name), "ensemble", _members(one, steps), data, ensemble=one)
        for one in recipe.ensembles
    ]
    return steps


def candidates(ensemble: OneEnsemble, steps: Iterable[Step]) -> dict[str, str]:
    """The steps that a cross-validation chooses from, each with the step that trains the head that it judges."""
    steps = list(steps)
    heads: Mapping[tuple[str, str, str], str] = {
        (step.dataset.name, step.head.name, step.network.name): step.id
        for step in steps
        if step.kind == "head" and step.dataset and step.head and step.network
    }
    return {
        step.id: heads[step.dataset.name, step.head.name, step.network.name]
        for step in steps
        if step.cross and step.cross.name == ensemble.choose and step.dataset and step.head and step.network
    }


def _members(ensemble: OneEnsemble, steps: Sequence[Step]) -> tuple[str, ...]:
    """The steps that an ensemble needs, of one data set."""
    if ensemble.choose:
        pairs = candidates(ensemble, steps)
        if not pairs:
            raise RecipeError(f"ensembles.{ensemble.name}: [cross_validate.{ensemble.choose}] judges no head")
        return tuple(dict.fromkeys([*pairs, *pairs.values()]))
    judged = [step for step in steps if step.kind in JUDGED]
    found = []
    for pattern in ensemble.members:
        matched = [step for step in judged if matches(pattern, step.id)]
        if not matched:
            known = {part for step in judged for part in step.id.split("/")} | {step.id for step in judged}
            near = nearest(pattern, known) if known else "the recipe has no heads"
            raise RecipeError(f"ensembles.{ensemble.name}: members: no step is called {pattern!r:.80}: {near}")
        found += matched
    kinds = {step.kind for step in found}
    if "cross-validate" in kinds and len(kinds) > 1:
        raise RecipeError(
            f"ensembles.{ensemble.name}: members: {', '.join(sorted(kinds))} are not judged on the same images: write "
            "head/... or cross-validate/... in front"
        )
    return tuple(dict.fromkeys(step.id for step in found))


def _is_meant(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def reason_of(step: Step, error: BaseException) -> str:
    """Why a step failed. Of missing weights, which key of the recipe names their file."""
    if isinstance(error, WeightsError) and step.network is not None:
        table = f"scratch.{step.scratch.name}" if step.scratch is not None else f"networks.{step.network.name}"
        return f"{error.message}. Name their file by `changes='{table}.weights=PATH'`"
    return str(error) or "not enough memory"


def given(part: _T | None) -> _T:
    """A part of a step that steps of its kind have."""
    if part is None:
        raise ValueError("a step without what its kind needs")
    return part
