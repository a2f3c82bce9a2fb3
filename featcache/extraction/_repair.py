"""Repair of a cache: what is damaged is made again from what is sound, and nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from featcache.backbones import PIXELS, Cut, Engine, NetworkSpec, model_of
from featcache.core.errors import CacheError, FeatcacheError
from featcache.core.files import PARTIAL_SUFFIX, write_json
from featcache.core.leases import Leases
from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project
from featcache.core.recipe import Recipe, WeightsSource, cache_digest, cache_name, row_id
from featcache.datasets import Dataset, current_dataset, plan_views
from featcache.extraction.one_pass import Target, extract as extract_rows
from featcache.extraction.opening import network_of
from featcache.extraction.options import ExtractOptions
from featcache.extraction.plan import plan_extraction
from featcache.extraction.rows import rows_of
from featcache.extraction.segmenters import cutting_again
from featcache.segmentation import Segmenter, SegmenterFile
from featcache.store import (
    ARRAY_FILE,
    DATASET_FILE,
    FEATURES_HDF5,
    LEASES_FOLDER,
    LEDGER_FILE,
    MANIFEST_FILE,
    PARTS_FOLDER,
    RECIPE_FILE,
    REPAIR_LEDGER_FILE,
    ROWS_FILE,
    CacheWriter,
    DonorIndex,
    FeatureStore,
    FileEntry,
    Format,
    Layout,
    Manifest,
    Row,
    Stored,
    Verified,
    file_entry,
    file_of,
    images_in,
    images_of,
    layout_begun,
    layouts_for,
    leads_out,
    ledger,
    open_store,
    parse_manifest,
    read_dataset_copy,
    read_recipe,
    read_rows,
    remove_folders,
    rows_in,
    write_rows,
    writing,
)


def repair(
    project: Project,
    found: Verified,
    *,
    weights: str | None = None,
    progress: Progress = SILENT,
) -> int:
    """Make again what `verify` found damaged. Returns the number of rows that were computed.

    Recipe and rows must be sound or follow from the project as it is. Raises CacheError where they do not, or where
    images of damaged rows are not at hand: the cache is left as it was then.
    """
    folder, manifest = found.folder, _manifest(found.folder)
    damaged = {problem.file for problem in found.problems} & {MANIFEST_FILE, *(manifest.files if manifest else ())}
    format_ = manifest.array.format if manifest else _format(folder)
    recipe, rows = _contents(folder, manifest) or _planned(project, folder, manifest, weights)
    dataset = _dataset(project, folder, manifest, damaged, rows)
    provenance = manifest.provenance if manifest else {}

    @cache
    def network() -> tuple[Cut, Callable[[], Engine]]:
        return network_of(recipe.space, provenance, weights=weights, memory=project.cache_folder)

    @cache
    def segmenter() -> Segmenter | None:
        segmentation = recipe.space.segmentation
        copy = SegmenterFile.kept(provenance, segmentation, where=folder.name)
        return cutting_again(project, segmentation, copy=copy, where=folder.name, weights=weights, progress=progress)

    row_shape = manifest.array.layout.row_shape if manifest else network()[0].feature_shape
    reach = DonorIndex([folder.parent], recipe.space, row_shape=row_shape, but=folder)
    reach.look_for(rows)
    at_hand = _project_images(project)
    layout = _layout(folder, manifest, rows, row_shape, dtype=recipe.space.dtype, format_=format_)
    store = open_store(format_, folder, layout=layout)
    if manifest is None:
        same_rows = _are_rows_of(folder, rows)
    else:
        same_rows = ROWS_FILE not in damaged or _gives(rows, manifest.files[ROWS_FILE])
    kept = _kept(store, manifest, damaged, found.damaged_shards) if same_rows else []
    lost = set(range(store.layout.n_shards)) - {record.shard for record in kept}
    lost -= set(ledger.read(folder / REPAIR_LEDGER_FILE))  # what an interrupted repair has made
    to_compute = [row for shard in lost for row in rows[slice(*store.layout.span(shard))] if not reach.holds(row)]
    gone = {row.image_id for row in to_compute} - {image.image_id for image in at_hand.images}
    if gone:
        raise CacheError(f"{folder.name}: {len(gone)} images of damaged rows are not at hand: {min(gone)[:16]}.., ...")
    if to_compute:
        _ = network()[1](), segmenter()  # what cannot be had is said while the cache still is as it was
    with writing(folder):
        _make_ready(folder, recipe, rows, damaged, same_rows)
    # What NaN the cache held, it was allowed to hold.
    made_anew = CacheWriter(
        folder.parent,
        recipe,
        rows=rows,
        row_shape=row_shape,
        format_=format_,
        allow_nonfinite=True,
        kept=kept,
        layout=layout,
    )
    with progress.stopping() as stopped, made_anew as writer:
        with progress.begin(f"repairing {folder.name}", len(rows)) as advance:
            advance(writer.rows_done)
            target = Target(writer, lambda: network()[1](), reach=reach)
            (counts,) = extract_rows([target], at_hand, on_rows=advance, stopped=stopped, segmenter=segmenter).counts
        if writer.missing:
            raise KeyboardInterrupt
        own_labels = manifest is not None and DATASET_FILE not in damaged  # the same copy, maybe of a larger data set
        digest = manifest.dataset_digest if manifest and own_labels else ""
        writer.finish(dataset, {**provenance, "repaired": sorted(damaged)}, dataset_digest=digest)
    return counts.computed


def _layout(
    folder: Path,
    manifest: Manifest | None,
    rows: Sequence[Row],
    row_shape: tuple[int, ...],
    *,
    dtype: str,
    format_: Format,
) -> Layout:
    """How the array is cut: as the cache was made, where that is one of the ways that caches are cut."""
    ways = layouts_for(len(rows), row_shape, dtype=dtype, format_=format_)
    if manifest is not None and manifest.array.layout in ways:
        return manifest.array.layout
    return layout_begun(folder, len(rows), row_shape=row_shape, dtype=dtype, format_=format_)


def sweep(folder: Path) -> None:
    """Remove what a repair left in a sound cache, that was killed when all was done."""
    if Leases(folder / LEASES_FOLDER).others():
        return
    with writing(folder):
        (folder / REPAIR_LEDGER_FILE).unlink(missing_ok=True)
        for leftover in (folder / LEASES_FOLDER, folder / PARTS_FOLDER):
            shutil.rmtree(leftover, ignore_errors=True)
        for file in folder.rglob(f".*{PARTIAL_SUFFIX}*"):
            file.unlink(missing_ok=True)


def _manifest(folder: Path) -> Manifest | None:
    try:
        return parse_manifest(folder)
    except CacheError:
        return None


def _format(folder: Path) -> Format:
    return "hdf5" if folder.name.endswith("-hdf5") else "zarr"


def _contents(folder: Path, manifest: Manifest | None) -> tuple[Recipe, list[Row]] | None:
    """Recipe and rows as they lie in the cache, if they are those that it is named by."""
    try:
        recipe = read_recipe(folder)
        rows = rows_in(read_rows(folder / ROWS_FILE))
    except CacheError:
        return None
    digest = cache_digest(recipe, ((row.image_id, row.view) for row in rows))
    named = (
        digest == manifest.digest
        if manifest
        else folder.name == cache_name(recipe.space.backbone, digest, format_=_format(folder))
    )
    right = all(row.row_id == row_id(recipe.space, row.image_id, parameters=row.parameters) for row in rows)
    return (recipe, rows) if named and right else None


def _planned(
    project: Project, folder: Path, manifest: Manifest | None, weights: str | None
) -> tuple[Recipe, Sequence[Row]]:
    """Recipe and rows as the project gives them now, if those are the cache's."""
    format_ = manifest.array.format if manifest else _format(folder)
    try:
        recipe = read_recipe(folder)
    except CacheError:
        model = model_of(folder.name.removesuffix("-hdf5").rpartition("-")[0])
        made_with = WeightsSource.read(str(manifest.provenance.get("weights", "")) if manifest else "")
        source = weights or ("random" if made_with.kind == "random" else "imagenet")
        network = NetworkSpec(model, source, made_with.seed)
        dtypes = [{}] if model == PIXELS else [{"dtype": "float32"}, {"dtype": "float16"}]
        for dtype in dtypes:
            storage = {"format": format_, **dtype}
            (plan,) = plan_extraction(project, [network], options=ExtractOptions(storage=storage))
            if plan.name == folder.name:
                return plan.recipe, plan.rows
    else:
        images = current_dataset(project)[0].images
        rows = rows_of(images, plan_views(images, project.settings.views), recipe=recipe)
        digest = cache_digest(recipe, ((row.image_id, row.view) for row in rows))
        if folder.name == cache_name(recipe.space.backbone, digest, format_=format_):
            return recipe, rows
    raise CacheError(
        f"{folder.name}: {RECIPE_FILE} or {ROWS_FILE} is damaged, and featcache.toml as it is now gives another cache: "
        "run the extract command that made it, which mends it"
    )


def _project_images(project: Project) -> Dataset:
    try:
        return current_dataset(project)[0]
    except FeatcacheError:  # a cache without its images: what needs none of them can still be mended
        return Dataset((), project.images)


def _dataset(
    project: Project, folder: Path, manifest: Manifest | None, damaged: set[str], rows: Sequence[Row]
) -> Dataset:
    """Labels and splits: the cache's own copy where it is known to be sound, else the project's.

    Where the project cannot give them and nobody knows whether the copy is sound, the copy is taken.
    """
    image_ids = {row.image_id for row in rows}
    if not (manifest and DATASET_FILE not in damaged):
        try:
            dataset = current_dataset(project)[0]
            images_of(dataset, image_ids)  # whether it names each of them
            return dataset
        except FeatcacheError:
            if manifest or not (folder / DATASET_FILE).is_file():
                raise
    copy = file_of(folder, manifest, name=DATASET_FILE) if manifest else folder / DATASET_FILE
    separator = str(manifest.provenance.get("label_separator", "")) if manifest else ""
    dataset = Dataset(images_in(read_dataset_copy(copy)), project.images, label_separator=separator)
    images_of(dataset, image_ids)
    return dataset


def _gives(rows: Sequence[Row], entry: FileEntry) -> bool:
    """Whether a table of these rows is the file that the manifest promises: then their order is right too."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / ROWS_FILE, rows)
        return file_entry(Path(folder) / ROWS_FILE) == entry


def _kept(
    store: FeatureStore, manifest: Manifest | None, damaged: set[str], damaged_shards: Sequence[int]
) -> list[ledger.ShardRecord]:
    """The shards that need not be made again."""
    if manifest is None:
        found = _recorded(store)
    elif store.layout != manifest.array.layout:
        found = []  # cut in a way that is not that of the cache to be
    else:
        found = _sound_shards(store, manifest, damaged)
    return [record for record in found if record.shard not in damaged_shards]


def _sound_shards(store: FeatureStore, manifest: Manifest, damaged: set[str]) -> list[ledger.ShardRecord]:
    """Shards that are what the manifest says, where a shard is a file; else what it or a sound ledger vouches for."""
    if store.format == "zarr":
        sound = {shard: manifest.files[name] for name, shard in store.files().items() if name not in damaged}
        return [_record(store, shard, entry) for shard, entry in sound.items() if shard is not None]
    if LEDGER_FILE not in damaged or (store.folder / REPAIR_LEDGER_FILE).is_file():  # a repair may have renewed it
        return _recorded(store)
    if FEATURES_HDF5 in damaged:
        return []
    found = ((shard, store.stored(shard)) for shard in range(store.layout.n_shards))
    return [_record(store, shard, stored) for shard, stored in found if stored]


def _recorded(store: FeatureStore) -> list[ledger.ShardRecord]:
    """Shards that are what the ledger says."""
    recorded = ledger.read(store.folder / LEDGER_FILE)
    found = ((shard, store.stored(shard)) for shard in range(store.layout.n_shards))
    records = (_record(store, shard, stored) for shard, stored in found if stored)
    return [record for record in records if record == recorded.get(record.shard)]


def _record(store: FeatureStore, shard: int, stored: Stored | FileEntry) -> ledger.ShardRecord:
    return ledger.ShardRecord(shard, *store.layout.span(shard), stored.bytes, stored.sha256)


def _remove_link(folder: Path, name: str) -> None:
    """Remove what leads out of the cache on the way to one of its files, so that nothing is written there."""
    while leads_out(folder, name):
        places = [folder / name, *(folder / name).parents]
        next(place for place in reversed(places) if place.is_symlink() and folder in place.parents).unlink()


def _make_ready(folder: Path, recipe: Recipe, rows: Sequence[Row], damaged: set[str], same_rows: bool) -> None:
    """Renew the small files from what is sound. The manifest stays: until the repair is done it says what is damaged.

    same_rows : whether the rows are numbered as those that the shards hold
    """
    for name in damaged:
        _remove_link(folder, name)
    remove_folders(folder, (*damaged, REPAIR_LEDGER_FILE))
    if RECIPE_FILE in damaged:
        write_json(folder / RECIPE_FILE, recipe.to_dict())
    if ROWS_FILE in damaged or not same_rows:
        if not same_rows:
            (folder / LEDGER_FILE).unlink(missing_ok=True)
        if not _are_rows_of(folder, rows):
            (folder / REPAIR_LEDGER_FILE).unlink(missing_ok=True)
        write_rows(folder / ROWS_FILE, rows)
    if ARRAY_FILE in damaged:
        (folder / ARRAY_FILE).unlink(missing_ok=True)
    (folder / REPAIR_LEDGER_FILE).touch()


def _are_rows_of(folder: Path, rows: Sequence[Row]) -> bool:
    try:
        return rows_in(read_rows(folder / ROWS_FILE)) == list(rows)
    except CacheError:
        return False
