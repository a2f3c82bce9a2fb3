from ._segment import SegmentedFolder as SegmentedFolder, segment as segment
from .classical import side_in_red_cells as side_in_red_cells
from .crops import crop_of as crop_of
from .framing import Framing as Framing, Plain as Plain, plain_view as plain_view
from .options import SegmentOptions as SegmentOptions
from .picture import job_of as job_of, segment_picture as segment_picture
from .pictures import (
    LEFT_OUT_COLUMNS as LEFT_OUT_COLUMNS,
    Picture as Picture,
    jpeg as jpeg,
    kept_records as kept_records,
    left_out_row as left_out_row,
    pictures_in as pictures_in,
    record_of as record_of,
    settings_there as settings_there,
    write_csv as write_csv,
    write_record as write_record,
)
