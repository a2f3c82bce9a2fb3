"""verify: read a cache, repair what is damaged, and compute rows again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.core.progress import SILENT, Progress
from featcache.core.project import Project, find_project
from featcache.extraction._recompute import Recomputed, recompute as recompute_rows, verify_cache
from featcache.extraction._repair import repair as repair_cache, sweep
from featcache.store import Verified

_SHOWN = 5


@dataclass(frozen=True)
class Checked(Verified):
    """What `verify` found and did.

    damage : what was found before a repair; None where nothing was repaired
    repaired_rows : rows that the repair computed; None where nothing was repaired
    recomputed : rows that were computed again; None where none were
    """

    damage: Verified | None = None
    repaired_rows: int | None = None
    recomputed: Recomputed | None = None


def verify(
    folder: Path,
    *,
    project: Project | None = None,
    repair: bool = False,
    recompute: int = 0,
    weights: str | None = None,
    seed: int | None = None,
    progress: Progress = SILENT,
) -> Checked:
    """Read every byte of a cache; see `repair` and `recompute` for the rest. A damaged cache is not computed again.

    project : whose images are rendered; None for the one that the cache lies in
    """
    found, damage, repaired_rows, recomputed = verify_cache(folder, progress=progress), None, None, None
    if repair and not found.sound:
        files = sorted({problem.file or problem.what for problem in found.problems})
        more = ", ..." if len(files) > _SHOWN else ""
        progress.note(f"repairing {found.name}: {', '.join(files[:_SHOWN])}{more}")
        repaired_rows = repair_cache(project or find_project(folder), found, weights=weights, progress=progress)
        found, damage = verify_cache(folder, progress=progress), found
    if repair and found.sound:
        sweep(folder)
    if recompute and found.sound:
        recomputed = recompute_rows(
            project or find_project(folder), folder, n_rows=recompute, weights=weights, seed=seed
        )
    return Checked(**vars(found), damage=damage, repaired_rows=repaired_rows, recomputed=recomputed)
