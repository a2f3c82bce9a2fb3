from ._segment_folder import SegmentedFolder as SegmentedFolder, segment_folder as segment_folder
from .contract import (
    CYTOPLASM as CYTOPLASM,
    NUCLEUS as NUCLEUS,
    Cell as Cell,
    Segmenter as Segmenter,
)
from .crops import around as around, crop_of as crop_of, widened as widened
from .density import background_of as background_of
from .fitted import (
    CLASSES as CLASSES,
    COPY as COPY,
    MOST_CHANNELS as MOST_CHANNELS,
    SIDES_PX as SIDES_PX,
    PixelClassifier as PixelClassifier,
    SegmenterFile as SegmenterFile,
)
from .fitted_segmenter import PixelSegmenter as PixelSegmenter
from .framing import (
    GIVEN as GIVEN,
    CellCut as CellCut,
    Framing as Framing,
    Plain as Plain,
    plain_view as plain_view,
)
from .given import GivenMask as GivenMask, read_mask as read_mask
from .instances import InstanceSegmenter as InstanceSegmenter, Objects as Objects
from .labelling import Known as Known
from .options import Background as Background, SegmentOptions as SegmentOptions
from .picture import SEGMENTERS as SEGMENTERS, job_of as job_of, segment_picture as segment_picture
from .pictures import (
    LEFT_OUT_COLUMNS as LEFT_OUT_COLUMNS,
    Picture as Picture,
    jpeg as jpeg,
    kept_records as kept_records,
    left_out_row as left_out_row,
    pictures_in as pictures_in,
    record_of as record_of,
    settings_there as settings_there,
    with_white as with_white,
    write_csv as write_csv,
    write_record as write_record,
)
from .pixel_values import COLOURS as COLOURS, Floats as Floats, colours_of as colours_of, values_of as values_of
from .ruler import ruler_of as ruler_of, segment_field as segment_field, sides_of as sides_of
