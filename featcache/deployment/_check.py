"""check: whether this machine gives the probabilities that a bundle promises."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.core.errors import RunError
from featcache.core.progress import Progress
from featcache.core.shown import shown
from featcache.deployment._export import MOST_DIFFERENCE
from featcache.images import read_picture
from featcache.prediction import Bundle, Predictor, expected_of
from featcache.sharing import keys, trusted_keys


@dataclass(frozen=True)
class Checked:
    """What a bundle gave on this machine.

    Attributes
    ----------
    sound : whether every file is as it was made, and every probability within 1e-4 of what it was then
    rows : how many images were computed
    largest_difference : in probability
    runtime : what computed them: "onnxruntime" or "openvino"
    run : name of the run
    signed : "trusted", "unknown" (a key that is not trusted here), "unchecked" (cryptography is not installed), "none"
    signed_by : who signed it
    """

    sound: bool
    rows: int
    largest_difference: float
    runtime: str
    run: str
    signed: str
    signed_by: str

    def to_dict(self) -> dict[str, Any]:
        """The same as a value for JSON."""
        return asdict(self)


def check(bundle: str | Path, *, require_signed: bool = False, progress: Progress | None = None) -> Checked:
    """Read every file of a bundle, compute its images here, and compare.

    Parameters
    ----------
    bundle : file of a bundle
    require_signed : refuse one that no trusted key has signed
    progress : told how far it is

    Returns
    -------
    Checked: `sound`, `rows`, `largest_difference`

    Raises
    ------
    RunError : it is no bundle, was changed, or cut short
    TrustError : its signature does not fit, or `require_signed`
    MissingPackageError : no runtime for ONNX models is installed

    Examples
    --------
    See `bundle`.
    """
    progress = shown(progress)
    opened = Bundle.read(Path(bundle))
    signed = keys.check_signature(opened.record, trusted_keys(), require=require_signed)
    with progress.begin(f"checking {opened.name}", len(opened.record.files)) as advance:
        for name in opened.record.files:
            opened.data(name)
            advance(1)
    rows = expected_of(opened)
    pictures = [read_picture(opened.data(row["file"])).pixels for row in rows]
    side = opened.recipe.space.input_size_px
    if any(picture.shape != (side, side, 3) for picture in pictures):
        raise RunError(f"{opened.path}: its images are not of {side}x{side} px", "Get the bundle again")
    pixels = np.stack(pictures)
    expected = np.array([[row["probabilities"][label] for label in opened.record.classes] for row in rows])
    predictor = Predictor.of(opened, progress=progress)
    engine = opened.engine()
    found = engine.outputs(pixels, "probabilities")
    by_head = predictor.probabilities_and_distances(predictor.engine.features(pixels)[0])[:, :-1]
    largest = float(max(np.abs(found - expected).max(), np.abs(by_head - expected).max()))
    return Checked(
        sound=largest <= MOST_DIFFERENCE,
        rows=len(rows),
        largest_difference=largest,
        runtime=engine.name,
        run=opened.name,
        signed=signed.state,
        signed_by=signed.by,
    )
