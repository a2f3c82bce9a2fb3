from . import keys as keys
from ._index import index as index
from ._pull import (
    ask_remotes as ask_remotes,
    open_of_project as open_of_project,
    open_on_remote as open_on_remote,
    pull as pull,
)
from ._push import (
    Planned as Planned,
    find_pushable as find_pushable,
    pack as pack,
    plan_push as plan_push,
    push as push,
)
from ._remote_status import how_far as how_far, status_on as status_on
from .catalog import Listed as Listed
from .keys import (
    Signed as Signed,
    check_signature as check_signature,
    config_folder as config_folder,
    own_config_folder as own_config_folder,
)
from .options import Part as Part, PushOptions as PushOptions
from .receive import Pulled as Pulled
from .record import FOLDERS as FOLDERS, Record as Record, Signature as Signature
from .remote import (
    USER_FILE as USER_FILE,
    Target as Target,
    add_remote as add_remote,
    find_remote as find_remote,
    find_removable as find_removable,
    is_remote as is_remote,
    list_remote as list_remote,
    open_named as open_named,
    remotes_of as remotes_of,
    remove_from_remote as remove_from_remote,
    remove_remote as remove_remote,
    resolve as resolve,
    trust_of as trust_of,
    trusted_keys as trusted_keys,
    verify_on_remote as verify_on_remote,
)
from .remote_donors import RemoteDonors as RemoteDonors
from .remote_folder import (
    Site as Site,
    finished_on as finished_on,
    open_folder as open_folder,
    refuse_format as refuse_format,
    refuse_unfit as refuse_unfit,
)
from .remote_labels import relabel_on as relabel_on
from .remote_writer import RemoteWriter as RemoteWriter
from .send import Pushed as Pushed
