"""How far two computations of the same features are from each other, as a share of what is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def deviations(
    new: NDArray[Any], old: NDArray[Any], *, relative: float = 0.0, absolute: float = 0.0, norm: float | None = None
) -> NDArray[np.float64]:
    """How far rows (n, ...) are off, (n,): 1 is all that is allowed; inf for what is no number on one side only.

    Allowed is |new - old| <= relative * |old| + absolute * max |old|, the maximum over the row; or, with `norm`,
    ||new - old|| <= norm * ||old|| of the row.
    """
    old, new = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (old, new))
    same = (old == new) | (np.isnan(old) & np.isnan(new))
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf; and where nothing is allowed
        off, size = np.where(same, 0.0, np.abs(new - old)), np.nan_to_num(np.abs(old))
        if norm is None:
            allowed = relative * size + absolute * size.max(axis=1, keepdims=True)
        else:
            off, size = (np.linalg.norm(rows, axis=1, keepdims=True) for rows in (off, size))
            allowed = norm * size
        share = off / np.maximum(allowed, np.finfo(np.float64).tiny)
    return np.asarray(np.nan_to_num(share, nan=np.inf, posinf=np.inf).max(axis=1))
