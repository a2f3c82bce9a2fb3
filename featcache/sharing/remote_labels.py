"""Other labels for a cache that was made on a remote: they lie beside those of before; a later record names them."""

from __future__ import annotations

from pathlib import Path

from featcache.datasets import Dataset
from featcache.remotes import Remote
from featcache.sharing.bundle import bundle_there
from featcache.sharing.catalog import Entry
from featcache.sharing.commit import Attribution, commit, record_of
from featcache.sharing.reading import RemoteCache
from featcache.store import DATASET_FILE, MANIFEST_FILE, ROWS_FILE, counts_in, file_entry, images_of, write_dataset_copy


def relabel_on(store: Remote, entry: Entry, *, dataset: Dataset, parent: Path) -> bool:
    """Give a cache the labels, splits, groups and paths of `dataset`. Returns whether they differed.

    What was signed, or pushed without names, stays as it is: its owner pushes other labels.

    parent : local folder of caches
    """
    record = entry.record
    if record.about.get("dataset") == dataset.digest or record.private or record.signature is not None:
        return False
    with RemoteCache(store, record, parent=parent) as cache:
        copy = cache.folder / DATASET_FILE
        write_dataset_copy(copy, images_of(dataset, set(cache.keys.image_ids())))
        manifest = cache.manifest.with_labels(
            file_entry(copy),
            dataset_digest=dataset.digest,
            separator=dataset.label_separator,
            counts=counts_in(cache.folder / ROWS_FILE, copy),
        )
        bundle = bundle_there(manifest, cache.recipe, place=record.root)
        store.put(f"{bundle.labels}/{DATASET_FILE}", copy.read_bytes())
        store.put(f"{bundle.labels}/{MANIFEST_FILE}", bundle.manifest)
    words = Attribution(record.licence, record.contact)
    return commit(store, record_of(bundle, record.generation + 1, chunks=record.chunks, key=None, words=words))
