"""States on the disk: read back to the bit, and refused where they are damaged or of something else."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.heads import checkpoint, gram
from featcache.heads.config import HeadConfig
from featcache.heads.gram import GramProblem, State
from featcache.heads.stack import Stack

N, D, CLASSES = 20, 9, 3
CONFIG = HeadConfig((5, 4), 0.3, momentum=0.9, l2=0.01, batch=6, epochs=3)


def problem(config: HeadConfig, n: int = N) -> tuple[GramProblem, Stack]:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((n, D)).astype(config.dtype)
    y = generator.integers(0, CLASSES, n)
    sizes = [D, *config.hidden, CLASSES]
    layers = [
        (generator.standard_normal(pair).astype(config.dtype) * 0.3, np.zeros(pair[1], config.dtype))
        for pair in itertools.pairwise(sizes)
    ]
    (W0, b0), *rest = layers
    weights = np.ones(n, config.dtype)
    half = slice(n // 2)
    return GramProblem(X @ X.T, X @ W0, y, weights, X[half] @ X.T, X[half] @ W0, y[half]), Stack(b0, rest, config)


def trained(config: HeadConfig = CONFIG) -> State:
    posed, stack = problem(config)
    return gram.train(posed, gram.start(posed, stack))


def start(config: HeadConfig = CONFIG, n: int = N) -> State:
    return gram.start(*problem(config, n))


def arrays_of(state: State) -> list[bytes]:
    stack = state.stack
    return [array.tobytes() for array in (state.A, state.V, *stack.arrays(), *stack.velocities)]


@pytest.mark.parametrize("with_best", [True, False])
@pytest.mark.parametrize(
    "config",
    [CONFIG, HeadConfig((), batch=4, epochs=2), replace(CONFIG, dtype="float64"), replace(CONFIG, val_every=2)],
    ids=["momentum", "one layer", "float64", "some NaN"],
)
def test_a_state_comes_back_to_the_bit(tmp_path: Path, config: HeadConfig, with_best: bool) -> None:
    state = trained(config)
    best = trained(replace(config, epochs=1)) if with_best else None
    checkpoint.save(tmp_path / "state.npz", state, best=best, identity="me")
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
    found = checkpoint.load(tmp_path / "state.npz", "me", like=start(config))
    assert found is not None
    for one, other in zip(found, (state, best), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert arrays_of(one) == arrays_of(other)
            assert (one.s, one.u, repr(one.history)) == (other.s, other.u, repr(other.history))


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "nowhere", "me", like=start()) is None
    assert checkpoint.load(tmp_path, "me", like=start()) is None


@pytest.mark.parametrize(
    "other",
    [
        {"hidden": (5,)}, {"hidden": (6, 4)}, {"hidden": (5, 6)}, {"momentum": 0.0, "nesterov": False},
        {"dtype": "float64"},
    ],
    ids=str,
)  # fmt: skip
def test_one_of_another_head_is_none_though_it_says_otherwise(tmp_path: Path, other: dict[str, Any]) -> None:
    """Momentum is the one whose shapes would even do."""
    state, config = trained(), replace(CONFIG, **other)
    checkpoint.save(tmp_path / "state", state, best=state, identity="me")
    assert checkpoint.load(tmp_path / "state", "me", like=start(config)) is None
    checkpoint.save(tmp_path / "state", start(config), best=None, identity="me")
    assert checkpoint.load(tmp_path / "state", "me", like=start()) is None


def test_one_of_another_training_is_none(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "state", trained(), best=None, identity="me")
    assert checkpoint.load(tmp_path / "state", "you", like=start()) is None
    assert checkpoint.load(tmp_path / "state", "me", like=start(n=N + 1)) is None
    assert checkpoint.load(tmp_path / "state", "me", like=start()) is not None


def edited(file: Path, **changes: Any) -> Path:
    with np.load(file) as arrays:
        content = {**arrays, **changes}
    other = file.with_name("edited.npz")
    np.savez(other, **{name: array for name, array in content.items() if array is not None})  # type: ignore[arg-type]
    return other


def test_one_that_was_edited_is_none(tmp_path: Path) -> None:
    file = tmp_path / "state.npz"
    state = trained()
    checkpoint.save(file, state, best=state, identity="me")
    lines = checkpoint._arrays("", state)["history"]
    for changes in (
        {"format": np.array(2)}, {"format": np.array("x")}, {"A": None}, {"best.V": None}, {"history": None},
        {"history": lines[1:]}, {"history": lines[:, :6]}, {"history": lines[:, 0]}, {"history": np.array(["x"])},
        {"su": np.array([1.0])}, {"A": np.array([{}], object)}, {"identity": np.array([{}], object)},
        {"stack0": np.zeros((5, 5), "float32")}, {"velocity3": np.zeros(3, "float32")},
    ):  # fmt: skip
        assert checkpoint.load(edited(file, **changes), "me", like=start()) is None, changes
    assert checkpoint.load(edited(file), "me", like=start()) is not None


def test_a_pickle_in_it_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    state = trained()
    checkpoint.save(tmp_path / "state.npz", state, best=None, identity="me")
    for name in ("A", "identity", "history", "stack0"):
        trap = np.empty(1, object)
        trap[0] = Trap()
        assert checkpoint.load(edited(tmp_path / "state.npz", **{name: trap}), "me", like=start()) is None
    assert not (tmp_path / "sprung").exists()


def test_no_damage_is_trusted(tmp_path: Path) -> None:
    """Cut anywhere, or with a bit flipped: none, or the very state where the bit decides nothing."""
    file, like = tmp_path / "state.npz", start()
    state = trained()
    checkpoint.save(file, state, best=None, identity="me")
    whole, generator = file.read_bytes(), random.Random(0)
    damaged = [whole[: generator.randrange(len(whole))] for _ in range(100)]
    for _ in range(1500):
        place = generator.randrange(len(whole))
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << generator.randrange(8)]) + whole[place + 1 :])
    damaged += [b"", b"PK", b"\x93NUMPY", whole[:4] * 1000, whole[1000:], whole[:2000] + bytes(500) + whole[2500:]]
    refused = 0
    for data in damaged:
        file.write_bytes(data)
        found = checkpoint.load(file, "me", like=like)
        refused += found is None
        assert found is None or arrays_of(found[0]) == arrays_of(state)
    assert refused > len(damaged) / 2


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.npz"
    checkpoint.save(file, trained(), best=None, identity="me")
    before = file.read_bytes()

    def fail(opened: Any, **_: Any) -> None:
        opened.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(file, start(), best=None, identity="me")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
