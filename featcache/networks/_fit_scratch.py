"""fit-scratch and fine-tune: train a whole network on the views of the project and write its run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import (
    KNOWN_FILE,
    PIXELS,
    Cut,
    Network,
    NetworkSpec,
    as_keras,
    at_last_map,
    compute_deterministically,
    identify,
    import_keras,
    load_network,
    refuse_other_kinds,
    spread_over,
)
from featcache.core.errors import ScratchError
from featcache.core.files import beside
from featcache.core.offline import offline
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project, refuse_unwritable
from featcache.core.recipe import Pooling, digest
from featcache.doubt import pooled
from featcache.extraction import extract, plan_extraction, with_fitted
from featcache.heads import Head
from featcache.networks import classifier
from featcache.networks.config import ScratchConfig, ScratchOptions
from featcache.networks.feed import Feed
from featcache.networks.training import Training
from featcache.networks.views import Live, held, numbers_of
from featcache.reporting import draw, followed
from featcache.segmentation import Framing
from featcache.store import Cache, open_cache
from featcache.training import (
    Fitted,
    described,
    explaining_damage,
    measured,
    refuse_several_labels,
    refuse_unfair_splits,
    runs,
    there_already,
    write_results,
)

LAST_FILE = "last.keras"


def fit_scratch(
    project: Project,
    spec: NetworkSpec,
    *,
    config: ScratchConfig,
    options: ScratchOptions | None = None,
    again: bool = False,
    progress: Progress = SILENT,
) -> Fitted:
    """Train a whole network, from the weights that `spec` names, on the rendered views of the project.

    Views are rendered once, into a cache of their own. An interrupted training goes on where its last checkpoint
    stands, a longer one where a shorter run of the same settings ended.

    again : train from the beginning even so, and put the new run in the old one's place
    progress : told what is to be trained, and how far that is

    Raises ScratchError for what cannot be trained and for a training whose loss is no number any more, DatasetError,
    BackboneError and WeightsError for images and networks that cannot be had, RunError where the run cannot be written.
    """
    options = options or ScratchOptions()
    with offline(options.offline):
        return _fit_scratch(project, spec, config=config, options=options, again=again, progress=progress)


def _fit_scratch(
    project: Project,
    spec: NetworkSpec,
    config: ScratchConfig,
    options: ScratchOptions,
    again: bool,
    progress: Progress,
) -> Fitted:
    started = time.perf_counter()
    refuse_unwritable(project.results_folder)
    spec, head = _asked(project, spec, config, options)
    cuts, found = identify(project.cache_folder / KNOWN_FILE, spec)
    network = None if found is None else as_keras(found)
    _refuse_other_features(head, cuts[0], project)
    cache = _views(project, cuts[0], options, progress)
    refuse_unfair_splits(cache)
    identity = _identity(cache, cuts[0], spec, config, head)
    name = runs.run_name(str(identity["kind"]), cuts[0].space.backbone, identity=identity)
    results = project.results_folder
    with runs.training(results, name, config={**identity, "cache_name": cache.name}, again=again) as folder:
        if folder is None:
            return there_already(results / name, cache)
        job = _Job(
            project=project,
            cache=cache,
            cut=cuts[0],
            spec=spec,
            config=config,
            identity=identity,
            name=name,
            started=started,
        )
        with explaining_damage(cache), ExitStack() as open_parts:
            return job.run(
                folder, open_parts, network=network or load_network(spec), head=head, again=again, progress=progress
            )


@dataclass(frozen=True)
class Expected:
    """What a training is expected to take: rows and updates an epoch, the weights that are trained, seconds in all."""

    rows: int
    updates: int
    weights: int
    trained_weights: int
    seconds: float
    epochs: int


def expect(
    project: Project, spec: NetworkSpec, *, config: ScratchConfig, options: ScratchOptions | None = None
) -> Expected:
    """What `fit_scratch` would take, from a few steps on made-up pixels; nothing is written.

    Raises what `fit_scratch` raises for what cannot be trained.
    """
    options = options or ScratchOptions()
    spec, head = _asked(project, spec, config, options)
    network = load_network(spec)
    _refuse_other_features(head, network.cuts[0], project)
    views = _views_of(network.cuts[0])
    side = network.cuts[0].space.input_size_px
    (plan,) = plan_extraction(project, [views], options=options.extraction(), keep=False)
    counted = zip(plan.dataset.images, plan.views, strict=True)
    counts = [
        min(views, 1) if config.augment == "none" else views for image, views in counted if image.split == "train"
    ]
    n_classes = len({image.label for image in plan.dataset.images})
    made = classifier.build(network, n_classes, config=config, head=head.head if head else None)
    made.compile(config.most_blocks(len(made.blocks)))
    step_s = made.time_step(np.zeros((config.part_rows, side, side, 3), np.float32))
    updates = -(-sum(counts) // config.batch)
    return Expected(
        rows=sum(counts),
        updates=updates,
        weights=made.model.count_params(),
        trained_weights=sum(math.prod(weight.shape) for weight in made.model.trainable_weights),
        seconds=config.epochs * updates * config.accumulate * step_s,
        epochs=config.epochs,
    )


def _identity(
    cache: Cache, cut: Cut, spec: NetworkSpec, config: ScratchConfig, head: _StartHead | None
) -> dict[str, Any]:
    """All that decides a run's result."""
    names = ("backbone", "layer", "input_size_px", "preprocessing", "pooling", "weights_digest")
    return {
        "kind": "scratch" if spec.weights == "random" else "fine-tune",
        "cache": cache.manifest.digest,
        "dataset": cache.manifest.dataset_digest,
        "network": {name: getattr(cut.space, name) for name in names},
        "training": config.to_dict(),
        "start_head": head.name if head else "",
    }


def _course(identity: Mapping[str, Any], config: ScratchConfig) -> str:
    """Digest of all that decides each epoch: a shorter training of the same course is the beginning of a longer one."""
    free = {"patience"} if config.schedule == "cosine" else {"patience", "epochs"}
    training = {name: value for name, value in identity["training"].items() if name not in free}
    return digest({**identity, "training": training, "backend": import_keras().backend.backend()})


def _asked(
    project: Project, spec: NetworkSpec, config: ScratchConfig, options: ScratchOptions
) -> tuple[NetworkSpec, _StartHead | None]:
    """The network as it is to be built, on the devices that it is to be built for, and the head it begins with."""
    refuse_several_labels(project.settings.dataset.label_separator, "training of whole networks")
    refuse_other_kinds(spec)
    if config.part_rows % options.devices:
        raise ScratchError(f"{config.part_rows} rows at a time cannot be spread evenly over {options.devices} devices")
    spread_over(options.devices)
    head = _head(project, options.head) if options.head else None
    pooling = head.pooling if head else spec.pooling
    return replace(spec, precision=config.precision, weights_seed=config.seed, pooling=pooling), head


# --- what it is trained on -----------------------------------------------------------------------


def _views(project: Project, cut: Cut, options: ScratchOptions, progress: Progress) -> Cache:
    """The cache of the project's rendered views at the network's size; rendered now if it is not there.

    Each epoch reads all of it, so it is on this machine, wherever the project's caches are made.
    """
    project = project.with_cache_folder(project.cache_folder)
    (done,) = extract(project, [_views_of(cut)], options=options.extraction(), progress=progress)
    return open_cache(done.path)


def _views_of(cut: Cut) -> NetworkSpec:
    return NetworkSpec(PIXELS, input_size_px=cut.space.input_size_px)


@dataclass(frozen=True)
class _StartHead:
    name: str
    head: Head
    pooling: Pooling
    described: str


def _head(project: Project, name: str) -> _StartHead:
    found = {run.name: run for run in runs.list_runs(project.results_folder)}
    if name not in found:
        there = ", ".join(run for run in found if run.startswith("head-")) or "none"
        raise ScratchError(f"there is no run {name!r:.200} to start from: heads here are {there}")
    run = found[name]
    try:
        space, dropout = run.config["recipe"]["space"], float(run.config["head"]["dropout"])
        described = (
            f"{space['backbone']}, {space['input_size_px']} px, {space['preprocessing']}, {run.config['weights']}"
        )
        head = Head.load(run.folder, dropout)
        return _StartHead(run.name, head, space["pooling"], described)
    except (KeyError, TypeError, ValueError) as error:
        raise ScratchError(f"{run.folder}: is no run of a head of dense layers") from error


def _refuse_other_features(start: _StartHead | None, cut: Cut, project: Project) -> None:
    views, _ = with_fitted(project.settings.views, (), folder=project.folder)
    framing = Framing.asked(views, cut.space.input_size_px, own=cut.transform)._asdict()
    spaces = {cut.stored(dtype, **framing).digest for dtype in ("float32", "float16")}
    if start is not None and start.head.space not in spaces:
        mine = f"{cut.space.backbone}, {cut.space.input_size_px} px, {cut.space.preprocessing}, {cut.weights}"
        raise ScratchError(
            f"{start.name} was trained on features of another network ({start.described}); this one is {mine}",
            "Set the same `model`, `weights`, `input_size_px` and `preprocessing`",
        )


# --- the training --------------------------------------------------------------------------------


@dataclass
class _Job:
    """A training of one network, from its beginning to the run that it leaves."""

    project: Project
    cache: Cache
    cut: Cut
    spec: NetworkSpec
    config: ScratchConfig
    identity: dict[str, Any]
    name: str
    started: float

    def run(
        self,
        folder: Path,
        open_parts: ExitStack,
        *,
        network: Network,
        head: _StartHead | None,
        again: bool,
        progress: Progress,
    ) -> Fitted:
        """Train, measure and write the run."""
        cache, config = self.cache, self.config
        if config.deterministic:
            compute_deterministically()
        if head is not None and head.head.classes != cache.classes:
            raise ScratchError(f"{head.name} knows the classes {', '.join(head.head.classes)}, the data set others")
        made = classifier.build(network, len(cache.classes), config=config, head=head.head if head else None)
        progress.note(_in_words(made, config))
        train, val = (
            open_parts.enter_context(held(cache, numbers_of(cache, split, config=config), file=folder / f"{split}.npy"))
            for split in ("train", "val")
        )
        live = Live(train, cache.recipe.augmentation) if config.augment == "live" else None
        feed = open_parts.enter_context(Feed(train, len(cache.classes), config=config, live=live))
        training = Training(made, feed, val, config, _course(self.identity, config), folder)
        frozen = training.frozen_digest()
        earlier = [] if again else runs.own_states(folder.parent)
        training.resume(earlier)
        with progress.stopping() as stopped:
            with followed(folder, self.name, epochs=config.epochs, progress=progress) as on_epoch:
                training.train(on_epoch, stopped)
            self._write(training, frozen)
        run = draw(runs.Run(self.project.results_folder / self.name))
        return Fitted(run, cache.name, False, training.course.resumed_at, training.course.resumed_from)

    def _write(self, training: Training, frozen: str) -> None:
        cache = self.cache
        with runs.new_run(self.project.results_folder, self.name) as folder:
            savable = training.classifier.savable()
            if training.course.best is not None and training.course.best_epoch < len(training.history):
                _save_model(savable, folder / LAST_FILE)
            epoch = training.take_best()
            if training.frozen_digest() != frozen:
                raise ScratchError("frozen layers changed while others were trained: this run proves nothing")
            _save_model(savable, folder / runs.MODEL_FILE)
            probabilities = training.probabilities(cache.features.blocks(), len(cache.features))
            training.keep_state(folder)
            write_results(
                folder,
                cache,
                config={**self.identity, **self._described()},
                probabilities=probabilities,
                splits=measured(cache, probabilities),
                history=training.history,
                started=self.started,
                timing={
                    "epoch_of_model": epoch,
                    "images_per_s": _rate(training),
                    "shares_s": {name: round(value, 3) for name, value in asdict(training.shares).items()},
                    "frozen": frozen,
                },
                pooled_rows=self._pooled_rows(savable),
            )

    def _pooled_rows(self, savable: Any) -> Callable[[NDArray[np.intp]], NDArray[np.floating[Any]]]:
        """What gives the last feature map of rows, averaged over places."""
        network, _ = at_last_map(Network(savable, (self.cut,)))

        def rows(numbers: NDArray[np.intp]) -> NDArray[np.floating[Any]]:
            parts = []
            for _, block in self.cache.features.blocks(numbers):
                for start in range(0, len(block), self.config.part_rows):
                    pixels = block[start : start + self.config.part_rows].astype(np.float32)
                    values = network.model(pixels, training=False)
                    parts.append(pooled(import_keras().ops.convert_to_numpy(values)))
            return np.concatenate(parts)

        return rows

    def _described(self) -> dict[str, Any]:
        """What config.json says besides, for people and reports."""
        facts = described(self.cache, f"the full graph, {self.config.precision}")
        space = {**self.cache.recipe.to_dict()["space"], **self.identity["network"]}
        return {
            **facts,
            "backbone": self.cut.space.backbone,
            "weights": str(self.cut.weights),
            "recipe": {**facts["recipe"], "space": space},
            "solver": f"keras-{import_keras().backend.backend()}",
        }


def _rate(training: Training) -> float:
    """Images a second, of the epochs trained here, validation and checkpoints left out; 0 where there were none."""
    seconds = training.shares.input + training.shares.train
    return round(training.images / seconds, 3) if seconds else 0.0


def _save_model(model: Any, path: Path) -> None:
    with beside(path) as partial:
        model.save(partial)


def _in_words(made: classifier.Classifier, config: ScratchConfig) -> str:
    n_trained = config.most_blocks(len(made.blocks))
    weights = made.model.count_params()
    if n_trained == len(made.blocks):
        return f"training all of {weights:,} weights"
    names = ", ".join(block.name for block in made.blocks[len(made.blocks) - n_trained :]) or "none"
    return f"training the top and {n_trained} of {len(made.blocks)} blocks ({names}) of {weights:,} weights"
