"""verify --repair killed before each of its steps: the cache stays one that is damaged, and the next repair ends it."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from faults import FORMATS, MODEL, Shops, contents, make_project
from workshop import Workshop

from featcache.store._verify import verify
from featcache.store.catalog import finished_folders


@pytest.fixture(scope="module", params=FORMATS)
def damaged(request: pytest.FixtureRequest, shops: Shops, quick: Path) -> tuple[Path, str, dict[str, Any]]:
    """A project without its images, as of pulled caches: one has a flipped bit, the other format has all rows.

    Returns it, the damaged cache's name and what was in that.
    """
    folder = make_project(
        shops.both[0], quick / f"damaged-{request.param}", "--split-counts", "1/1/1", "--views", "2", per_class=3
    )
    for format_ in FORMATS:
        made = shops.both[0].run("command", folder, *MODEL, "--format", format_)
        assert made.code == 0, made
    (cache,) = (
        path for path in finished_folders(folder / "cache") if path.name.endswith("hdf5") == (request.param == "hdf5")
    )
    before = contents(cache)
    features = cache / ("features.h5" if request.param == "hdf5" else "features.zarr/c/0/0/0/0")
    data = bytearray(features.read_bytes())
    data[len(data) // 2] ^= 1
    features.write_bytes(data)
    (cache / "ledger.jsonl").unlink() if request.param == "zarr" else None
    shutil.rmtree(folder / "images")
    (folder / "dataset.csv").unlink()
    return folder, cache.name, before


def test_killed_before_each_step(damaged: tuple[Path, str, dict[str, Any]], shops: Shops, quick: Path) -> None:
    folder, name, before = damaged
    traced, steps = shutil.copytree(folder, quick / f"{folder.name}-traced"), quick / f"{folder.name}.steps"
    done = shops.both[0].run("command", traced, "verify", name, "--repair", fault=("traced", steps))
    assert done.code == 0, done
    n_steps = len(steps.read_text().splitlines())
    assert n_steps > 20
    some = sorted({*random.Random(1).sample(range(n_steps), 9), n_steps - 2, n_steps - 5})

    def trial(shop: Workshop, step: int) -> None:
        mine = shutil.copytree(folder, quick / f"{folder.name}-{step}")
        killed = shop.run("command", mine, "verify", name, "--repair", fault=("killed", step))
        assert killed.code == -signal.SIGKILL, killed
        if step % 4 == 0:
            looked = shop.run("command", mine, "verify")
            sound = verify(mine / "cache" / name).sound
            assert (looked.code, f"{name}: DAMAGED" in looked.out) == (int(not sound), not sound)
        again = shop.run("command", mine, "verify", name, "--repair")
        assert again.code == 0, again
        assert contents(mine / "cache" / name) == before
        shutil.rmtree(mine)

    shops.each(trial, some)
