"""What a training takes: operations, memory and time; which solver takes less, and what would fit where none does."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cache as once
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.backbones import require_keras
from featcache.core import machine
from featcache.core.errors import HeadError
from featcache.core.units import duration, size
from featcache.heads import block, gram, initializers as random, products, source
from featcache.heads.config import Device, HeadConfig, Solver
from featcache.heads.kernel import fits, is_kept
from featcache.heads.stack import Stack
from featcache.heads.steps import NARROW
from featcache.store import Cache

_OPERATIONS_A_WEIGHT = 240
"""What reading and writing the first weights costs an update: 3 passes of 4 bytes, 20 operations a byte of memory."""
_PASSES = {"sgd": 1.0, "rmsprop": 5 / 3, "adam": 7 / 3, "adamw": 7 / 3}
"""Of that, with what the optimizer keeps of each weight."""

_WEIGHT_COPIES = 4
"""Of the first layer: its beginning, what training adds, their sum, and room to compute them in."""
_BUFFER_ROWS = 512
"""Of the Gram matrix, that are gathered at a time."""
_FEATURE_PASSES = 6
"""Norms, first products, Gram matrices, the weights that are formed in the end, and predictions."""
_PROGRAM_BYTES, _KERAS_BYTES = 250 << 20, 500 << 20
_OPERATIONS_A_NARROW = 40
"""What one of the compiled loops over a first layer of few units costs, in operations of a matrix product."""
_BLOCKS_HELD = 4
"""As they are read, and scaled; the one in use, and the next."""
_KERAS_START_S, _KERAS_UPDATE_S = 5.0, 5e-4
"""Loading and compiling; and what an update costs besides its arithmetic."""
_MAPPED_BYTES_A_S = 1e9
_SAMPLE_ROWS, _SAMPLE_SIDE = 256, 768
_READ_ROWS = 32


_EXACT: tuple[Solver, Solver] = ("gram", "block")
"""The solvers of SGD; the first of them where both cost the same."""
_NAMES = {"gram": "the Gram-space solver", "block": "the block solver"}


@dataclass(frozen=True)
class Choice:
    """A solver and, for people, why it.

    device : where its epochs are computed, "cpu" or "gpu"
    """

    solver: Solver
    why: str
    device: Device = "cpu"


@dataclass(frozen=True)
class Expected:
    """What a training is expected to take.

    gram_bytes : of the Gram matrices, 0 for the primal solver; they are on the disk, and in memory if `gram_in_memory`
    gram_kept : whether they lie beside the cache already
    memory_bytes : at the highest, of free_bytes
    before_s, epochs_s : everything but the epochs, and all epochs
    """

    cache: str
    solver: Solver
    why: str
    epochs: int
    gram_bytes: int
    gram_kept: bool
    gram_in_memory: bool
    memory_bytes: int
    free_bytes: int
    before_s: float
    epochs_s: float

    def __str__(self) -> str:
        """Gram space: asked for; Gram matrix 77.0 MB (kept beside the cache), memory about ..."""
        names = {"gram": "Gram space", "block": "block", "primal": "primal"}
        parts = [f"memory about {size(self.memory_bytes)} of {size(self.free_bytes)} free"]
        if self.gram_bytes:
            where = "kept beside the cache" if self.gram_kept else "to be computed, and kept beside the cache"
            used = "" if self.gram_in_memory else ", used from the disk"
            parts.insert(0, f"Gram matrix {size(self.gram_bytes)} ({where}{used})")
        parts.append(f"about {duration(self.before_s)} besides {duration(self.epochs_s)} for {self.epochs} epochs")
        return f"{names[self.solver]}: {self.why}; {', '.join(parts)}"


@dataclass(frozen=True)
class _Problem:
    """N training and M validation rows of D features, H units of the first layer."""

    n_train: int
    n_val: int
    n_inputs: int
    n_classes: int
    config: HeadConfig

    @property
    def units(self) -> int:
        return self.config.hidden[0] if self.config.hidden else self.n_classes

    @property
    def size(self) -> int:
        return np.dtype(self.config.dtype).itemsize

    @property
    def updates(self) -> int:
        return -(-self.n_train // self.config.batch)

    @property
    def gram_bytes(self) -> int:
        return (self.n_train + self.n_val) * self.n_train * self.size

    @property
    def feature_bytes(self) -> int:
        return (self.n_train + self.n_val) * self.n_inputs * self.size

    def pass_operations(self) -> int:
        """Of the Gram matrices."""
        return (self.n_train + 2 * self.n_val) * self.n_train * self.n_inputs

    def operations(self, solver: Solver) -> float:
        """Of a whole training, as it is compared with another solver's."""
        before = self.pass_operations() if solver == "gram" else 0
        return before + self.config.epochs * self.epoch_operations(solver)

    def epoch_operations(self, solver: Solver) -> float:
        """Of the products of an epoch; of Keras, with what it reads and writes besides."""
        if solver == "primal":
            return self.primal_operations()
        several = 2 if self.config.momentum else 1  # of the weights, and of their velocity
        if solver == "gram":
            return 2 * (several * self.n_train + self.n_val) * self.n_train * self.units
        if self.units <= NARROW:
            return (_OPERATIONS_A_NARROW * self.n_train + 2 * self.n_val) * self.n_inputs * self.units
        rows = min(self.block_rows, self.n_train)
        among_themselves = 1.5 * rows if self.config.batch < rows else 0
        a_row = 4 * several * self.units + among_themselves
        return (self.n_train * a_row + 2 * self.n_val * self.units) * self.n_inputs

    def primal_operations(self, passes: float = 1.0) -> float:
        """Of an epoch of Keras."""
        a_weight = 6 * self.n_train + 2 * self.n_val + passes * _OPERATIONS_A_WEIGHT * self.updates
        return a_weight * self.n_inputs * self.units

    @property
    def block_rows(self) -> int:
        return block.block_rows(self.config, self.n_inputs, units=self.units)

    @property
    def held_bytes(self) -> int:
        """Of features that the solver "block" holds in memory, or of the buffers that it streams them through."""
        of_rows = self.n_train * self.n_inputs
        return self.feature_bytes if source.is_shuffled(of_rows) else source.STREAM_BYTES

    def needed(self, solver: Solver) -> tuple[int, int]:
        """Bytes that no training can do without: of each unit, and besides."""
        of_unit, besides = _WEIGHT_COPIES * self.n_inputs, 0
        if solver == "block":
            of_unit *= 2 if self.config.momentum else 1
            besides = _BLOCKS_HELD * self.block_rows * self.n_inputs
        if solver == "gram":
            of_unit += 4 * (self.n_train + self.n_val)
            besides = _BUFFER_ROWS * self.n_train
        return of_unit * self.size, besides * self.size


def choose_solver(
    n_train: int,
    n_val: int,
    *,
    n_inputs: int,
    n_classes: int,
    config: HeadConfig,
    asked: Solver = "auto",
    device: Device = "cpu",
) -> Choice:
    """Gram space or blocks, by counting operations and memory; Keras for what they do not support; `asked` decides if
    it is not "auto".

    A Gram matrix that does not fit into memory is used from the disk, and features are then streamed: it takes longer.
    device : "auto" is an accelerator where JAX finds one; the primal solver's is Keras' own choice

    Raises HeadError where not even the weights fit, saying what would, and where there is no accelerator that was asked
    for; MissingPackageError where only the primal solver would do and Keras, which it uses, is not installed.
    """
    problem = _Problem(n_train, n_val, n_inputs, n_classes, config)
    free = machine.available_bytes() * 0.8
    choice = _chosen(problem, asked, free)
    _refuse_too_large(problem, choice.solver, free)
    return replace(choice, device=_device(choice.solver, device))


def _device(solver: Solver, asked: Device) -> Device:
    from featcache.heads.accelerated import gpu, has_gpu

    if asked == "gpu" and solver == "primal":
        raise HeadError(
            "`device='gpu'` is for the solvers gram and block: the primal solver computes where Keras does",
            "Leave out `device`",
        )
    if asked == "gpu":
        gpu()
    return "gpu" if asked == "gpu" or (asked == "auto" and solver != "primal" and has_gpu()) else "cpu"


def _chosen(problem: _Problem, asked: Solver, free: float) -> Choice:
    refused = problem.config.sgd_refuses
    if refused and asked in ("gram", "block"):
        raise HeadError(f"{_NAMES[asked]} does not support {refused}", "Set `solver='primal'`")
    if refused or asked == "primal":
        require_keras(refused or "the primal solver")
    if refused and asked == "auto":
        return Choice("primal", f"the solvers gram and block do not support {refused}")
    if asked != "auto":
        return Choice(asked, "asked for")
    costs = {solver: problem.operations(solver) for solver in _EXACT}
    cheaper, other = sorted(_EXACT, key=lambda solver: costs[solver])
    if cheaper == "gram" and problem.gram_bytes >= free:
        return Choice(other, f"gram needs {problem.gram_bytes / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free")
    ratio = costs[other] / costs[cheaper]
    return Choice(cheaper, f"{ratio:.{0 if ratio >= 10 else 1}f} times fewer operations than {other}")


def _refuse_too_large(problem: _Problem, solver: Solver, free: float) -> None:
    """Raise HeadError where the weights do not fit into memory."""
    of_unit, besides = problem.needed(solver)
    needed = of_unit * problem.units + besides
    if needed < free:
        return
    would: list[str] = []
    if solver == "gram":
        of_block, of_rows = problem.needed("block")
        would += ["`solver='block'`"] if of_block * problem.units + of_rows < free else []
    most = int((free - besides - 1) // of_unit)
    if most >= 1 and problem.config.hidden:
        would.append(f"`hidden=({most},)` or fewer units")
    hint = f"This would fit: {' or '.join(would)}" if would else "Use pooled features: extract with `pooling='avg'`"
    raise HeadError(
        f"the {solver} solver needs {needed / 2**30:.1f} GiB for {problem.units} units on {problem.n_inputs} features "
        f"and {problem.n_train} + {problem.n_val} rows, and {free / 2**30:.1f} GiB are free",
        hint,
    )


def expect(cache: Cache, config: HeadConfig, *, choice: Choice) -> Expected:
    """What a training on a cache is expected to take, by a small product, a few steps and a few rows read: under 1 s.

    Raises CacheError where those rows cannot be read.
    """
    train, val = cache.numbers("train"), cache.numbers("val")
    problem = _Problem(len(train), len(val), products.width(cache.features), len(cache.classes), config)
    rate, free = _operations_a_s(config.dtype), machine.available_bytes()
    weights = problem.n_inputs * problem.units
    passes_s = _FEATURE_PASSES * len(cache.features) * _read_s_a_row(cache)
    passes_s += 6 * len(cache.features) * weights / rate  # first products, the weights formed, predictions
    of_unit, besides = problem.needed(choice.solver)
    memory = _PROGRAM_BYTES + of_unit * problem.units + besides
    if choice.solver == "primal":
        held = problem.feature_bytes if problem.feature_bytes < 0.8 * free else products.HELD_BYTES
        copies = 1 + 3 * (_PASSES[config.optimizer] - 1) / 2
        epoch_s = problem.primal_operations(_PASSES[config.optimizer]) / rate + problem.updates * _KERAS_UPDATE_S
        memory += held + _KERAS_BYTES + int(copies * weights * problem.size)
        before_s = _KERAS_START_S + passes_s
        return Expected(
            cache=cache.name,
            solver="primal",
            why=choice.why,
            epochs=config.epochs,
            gram_bytes=0,
            gram_kept=False,
            gram_in_memory=False,
            memory_bytes=memory,
            free_bytes=free,
            before_s=before_s,
            epochs_s=config.epochs * epoch_s,
        )
    if choice.solver == "block":
        streams = not source.is_shuffled(problem.n_train * problem.n_inputs)
        reading_s = len(train) * _read_s_a_row(cache) if streams else 0.0
        return Expected(
            cache=cache.name,
            solver="block",
            why=choice.why,
            epochs=config.epochs,
            gram_bytes=0,
            gram_kept=False,
            gram_in_memory=False,
            memory_bytes=memory + problem.held_bytes,
            free_bytes=free,
            before_s=passes_s,
            epochs_s=config.epochs * max(_epoch_s(problem, "block", rate), reading_s),
        )
    kept = all(is_kept(cache, rows, right=train, dtype=config.dtype) for rows in (train, val))
    in_memory = fits((len(train), len(train)), config.dtype)
    held = min(products.HELD_BYTES, problem.feature_bytes, free // 4)
    memory += (problem.gram_bytes if in_memory else 0) + (0 if kept else held)
    before_s = passes_s + (0 if kept else problem.pass_operations() / rate)
    epoch_s = _epoch_s(problem, "gram", rate) + (0 if in_memory else problem.gram_bytes / _MAPPED_BYTES_A_S)
    return Expected(
        cache=cache.name,
        solver="gram",
        why=choice.why,
        epochs=config.epochs,
        gram_bytes=problem.gram_bytes,
        gram_kept=kept,
        gram_in_memory=in_memory,
        memory_bytes=memory,
        free_bytes=free,
        before_s=before_s,
        epochs_s=config.epochs * epoch_s,
    )


def expect_rows(
    n_train: int, n_val: int, *, n_inputs: int, n_classes: int, config: HeadConfig, asked: Solver = "auto"
) -> tuple[float, int]:
    """Seconds of a training whose cache is not there yet, and bytes of the Gram matrices that it keeps: roughly.

    Raises what `choose_solver` raises.
    """
    choice = choose_solver(n_train, n_val, n_inputs=n_inputs, n_classes=n_classes, config=config, asked=asked)
    problem, rate = _Problem(n_train, n_val, n_inputs, n_classes, config), _operations_a_s(config.dtype)
    before_s = _FEATURE_PASSES * problem.feature_bytes / _MAPPED_BYTES_A_S
    before_s += 6 * (n_train + n_val) * n_inputs * problem.units / rate
    if choice.solver == "primal":
        epoch_s = problem.primal_operations(_PASSES[config.optimizer]) / rate + problem.updates * _KERAS_UPDATE_S
        return _KERAS_START_S + before_s + config.epochs * epoch_s, 0
    before_s += problem.pass_operations() / rate if choice.solver == "gram" else 0
    gram_bytes = problem.gram_bytes if choice.solver == "gram" else 0
    return before_s + config.epochs * _epoch_s(problem, choice.solver, rate), gram_bytes


def _epoch_s(problem: _Problem, solver: Solver, rate: float) -> float:
    """Of the products, at the rate of this machine, and of the minibatches in between."""
    steps_s = problem.n_train / _SAMPLE_ROWS * _sample_epoch_s(problem.config, problem.n_classes)
    return problem.epoch_operations(solver) / rate + steps_s


@once
def _operations_a_s(dtype: str) -> float:
    """Of this machine, by one small matrix product; the best of a few."""
    X: NDArray[Any] = np.ones((_SAMPLE_SIDE, _SAMPLE_SIDE), dtype)
    seconds = min(_seconds(lambda: X @ X) for _ in range(3))
    return float(2 * _SAMPLE_SIDE**3 / seconds)


def _sample_epoch_s(config: HeadConfig, n_classes: int) -> float:
    """Of a training of these settings on few rows, whose Gram matrix costs next to nothing."""
    n = _SAMPLE_ROWS
    config = replace(
        config, epochs=2, batch=min(config.batch, n), lr=1e-9, schedule="constant", optimizer="sgd", l1=0.0, patience=0
    )
    units = config.hidden[0] if config.hidden else n_classes
    (_, bias), *rest = random.initial_weights(config, 1, n_classes=n_classes)
    K, P0 = np.zeros((n, n), config.dtype), np.ones((n, units), config.dtype)
    none, y = slice(0), np.arange(n) % n_classes
    problem = gram.GramProblem(
        K=K, P0=P0, y=y, weights=np.ones(n, config.dtype), K_val=K[none], P0_val=P0[none], y_val=y[none]
    )
    state = gram.train(problem, gram.start(problem, Stack(bias, rest, config)))
    return min(entry.seconds for entry in state.history)


def _read_s_a_row(cache: Cache) -> float:
    """By reading the first few rows."""
    rows = cache.numbers("train")[:_READ_ROWS]
    return min(_seconds(lambda: list(cache.features.blocks(rows))) for _ in range(2)) / len(rows)


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)
