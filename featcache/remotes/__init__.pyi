from .contract import (
    BLOCK_BYTES as BLOCK_BYTES,
    Item as Item,
    NoRangesError as NoRangesError,
    PausedError as PausedError,
    Remote as Remote,
    StalledError as StalledError,
    read as read,
    refuse_writing as refuse_writing,
)
from .folder import FolderRemote as FolderRemote
from .packs import PackWriter as PackWriter
from .patient import Patient as Patient
from .urls import (
    PACK_SUFFIX as PACK_SUFFIX,
    open_remote as open_remote,
    parse_url as parse_url,
    place_of as place_of,
    presentable as presentable,
)
from .web import INDEX_FILE as INDEX_FILE, INDEX_FORMAT as INDEX_FORMAT
