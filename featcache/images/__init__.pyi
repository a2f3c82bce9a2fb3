from .decode import (
    is_image_name as is_image_name,
    may_be_wide as may_be_wide,
    read_bytes as read_bytes,
    read_picture as read_picture,
)
from .folders import (
    descend as descend,
    files_below as files_below,
    has_images as has_images,
    is_file as is_file,
    is_images_folder as is_images_folder,
    look as look,
    names_of as names_of,
    seen as seen,
    visible_folders as visible_folders,
)
from .identity import (
    MAX_SIDE_PX as MAX_SIDE_PX,
    Box as Box,
    identity_of as identity_of,
    image_id_of as image_id_of,
    sides_px as sides_px,
)
from .inputs import OF_ARRAY as OF_ARRAY, Item as Item, identity_of_pixels as identity_of_pixels, items_of as items_of
from .physical import UNKNOWN as UNKNOWN, PixelSize as PixelSize
from .pixels import FLOATING as FLOATING, RULES as RULES
from .scanning import (
    STAMPS_FILE as STAMPS_FILE,
    ImageFile as ImageFile,
    brightest_of as brightest_of,
    on_depths as on_depths,
    remarks_on as remarks_on,
    said_of_white as said_of_white,
    scan as scan,
    white_of as white_of,
)
from .squares import (
    Pixels as Pixels,
    cut_and_resize as cut_and_resize,
    in_box as in_box,
    room_of_window as room_of_window,
    window as window,
)
from .stains import NORMALISERS as NORMALISERS
from .views import (
    ADDED_PARAMETERS as ADDED_PARAMETERS,
    ViewParameters as ViewParameters,
    contact_sheet as contact_sheet,
    named_parameters as named_parameters,
    png_of as png_of,
    render as render,
    view_parameters as view_parameters,
)
