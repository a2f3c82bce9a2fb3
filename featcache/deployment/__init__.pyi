from ._bundle import Bundled as Bundled, bundle as bundle
from ._check import Checked as Checked, check as check
from ._export import Exported as Exported, export as export
