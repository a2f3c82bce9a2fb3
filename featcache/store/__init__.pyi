from . import ledger as ledger
from ._convert import convert as convert
from ._status import Standing as Standing, status as status, working as working
from ._verify import Problem as Problem, Verified as Verified, verify as verify
from .batches import BUFFER_BYTES as BUFFER_BYTES
from .cache import Cache as Cache, file_of as file_of, open_cache as open_cache
from .catalog import (
    Listed as Listed,
    cache_folder as cache_folder,
    cache_folders as cache_folders,
    find_cache as find_cache,
    find_pulled as find_pulled,
    finished_folders as finished_folders,
    list_caches as list_caches,
)
from .contract import FeatureStore as FeatureStore, Stored as Stored
from .donors import DonorIndex as DonorIndex
from .features import Array as Array, Features as Features, Span as Span
from .formats import layout_begun as layout_begun, open_store as open_store
from .layout import (
    ARRAY_FILE as ARRAY_FILE,
    DATASET_FILE as DATASET_FILE,
    FEATURES_FOLDER as FEATURES_FOLDER,
    FEATURES_HDF5 as FEATURES_HDF5,
    LEASES_FOLDER as LEASES_FOLDER,
    LEDGER_FILE as LEDGER_FILE,
    MANIFEST_FILE as MANIFEST_FILE,
    PARTS_FOLDER as PARTS_FOLDER,
    RECIPE_FILE as RECIPE_FILE,
    REPAIR_LEDGER_FILE as REPAIR_LEDGER_FILE,
    ROWS_FILE as ROWS_FILE,
    Format as Format,
    Layout as Layout,
    layout_for as layout_for,
    layouts_for as layouts_for,
    zarr_shard as zarr_shard,
)
from .manifest import (
    CACHE_FORMAT as CACHE_FORMAT,
    MAX_MANIFEST_BYTES as MAX_MANIFEST_BYTES,
    FileEntry as FileEntry,
    Manifest as Manifest,
    Sha256 as Sha256,
    leads_out as leads_out,
    parse_manifest as parse_manifest,
    read_manifest as read_manifest,
)
from .row_counts import counts_in as counts_in
from .row_keys import (
    Ids as Ids,
    IdsBuilder as IdsBuilder,
    RowKeys as RowKeys,
    are_alike as are_alike,
    ids_of as ids_of,
    order_of as order_of,
    places_in as places_in,
    texts_of as texts_of,
    which_are_in as which_are_in,
)
from .tables import (
    DATASET_COLUMNS as DATASET_COLUMNS,
    Coded as Coded,
    LazyRows as LazyRows,
    RenamedRows as RenamedRows,
    Row as Row,
    chosen_lines as chosen_lines,
    digest_of_lines as digest_of_lines,
    images_in as images_in,
    keys_of as keys_of,
    misnamed_rows as misnamed_rows,
    names_of as names_of,
    read_dataset_copy as read_dataset_copy,
    read_keys as read_keys,
    read_rows as read_rows,
    rows_in as rows_in,
    write_dataset_copy as write_dataset_copy,
    write_lines as write_lines,
    write_rows as write_rows,
)
from .tensorstore_reader import choose_reader as choose_reader
from .writer import (
    CacheWriter as CacheWriter,
    DatasetCopy as DatasetCopy,
    file_entry as file_entry,
    images_of as images_of,
    read_recipe as read_recipe,
    remove_folders as remove_folders,
    tolerance_of as tolerance_of,
    writing as writing,
)
from .zarr_store import ZarrStore as ZarrStore
