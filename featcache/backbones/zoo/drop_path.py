"""Drop-path: the joins of a FractalNet, which in training leave out some of the paths that meet in them.

Larsson et al. 2017 (arXiv:1605.07648), section 3. A join is the mean of the paths that are left. Each batch is trained
through a subnetwork of its own, in one of two ways:

- local: every join drops each of its paths with probability `rate`; where none were left, one stays, any of them;
- global: one column is drawn for the whole network, and every join passes that column alone. A join within it, where
  the column has no path that ends, passes the mean: what it gives is not used.

At inference a join is the mean of all of its paths.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featcache.backbones.import_keras import import_keras
from featcache.backbones.zoo.copying import copied, same

if TYPE_CHECKING:
    import keras


@functools.cache
def drop_path_join_class() -> Any:
    """The layer `DropPathJoin`, which Keras then knows as "featcache>DropPathJoin"."""
    keras = import_keras()
    ops, random = keras.ops, keras.random

    @keras.saving.register_keras_serializable(package="featcache")
    class DropPathJoin(keras.layers.Layer):  # type: ignore[misc, name-defined]
        """The mean of paths, some of which are dropped in training.

        Parameters
        ----------
        columns : the column that each path belongs to, from 0
        network_columns : how many columns the network has
        rate : probability that local drop-path drops a path
        global_share : part of the batches that are trained through one column
        network_seed : equal for all joins of a network, so that they draw the same column: each of them draws it by
            itself, once a batch
        seed : of the paths that local drop-path drops here
        """

        def __init__(
            self,
            columns: Sequence[int],
            network_columns: int,
            rate: float = 0.15,
            global_share: float = 0.5,
            network_seed: int = 0,
            seed: int = 0,
            **kwargs: Any,
        ) -> None:
            super().__init__(**kwargs)
            self.columns = tuple(columns)
            self.network_columns = network_columns
            self.rate = rate
            self.global_share = global_share
            self.network_seed = network_seed
            self.seed = seed
            self.network_draws = random.SeedGenerator(network_seed)
            self.own_draws = random.SeedGenerator(seed)

        def call(self, inputs: Sequence[Any], training: bool = False) -> Any:
            if not training:
                return sum(inputs[1:], inputs[0]) / len(inputs)
            shares = ops.cast(self.shares(), inputs[0].dtype)
            return sum(shares[place] * path for place, path in enumerate(inputs))

        def shares(self) -> Any:
            """What each path counts in the next batch: shape (paths,), float32, of sum 1."""
            paths = len(self.columns)
            way, column = ops.unstack(random.uniform((2,), dtype="float32", seed=self.network_draws))
            own = random.uniform((paths + 1,), dtype="float32", seed=self.own_draws)
            local = _unless_none(own[:-1] >= self.rate, ops.arange(paths) == ops.cast(own[-1] * paths, "int32"))
            drawn = ops.cast(column * self.network_columns, "int32")
            of_column = _unless_none(ops.convert_to_tensor(self.columns, "int32") == drawn, ops.ones(paths, "bool"))
            kept = ops.cast(ops.where(way < self.global_share, of_column, local), "float32")
            return kept / ops.sum(kept)

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape[0]

        def get_config(self) -> dict[str, Any]:
            own = ("columns", "network_columns", "rate", "global_share", "network_seed", "seed")
            return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def _unless_none(chosen: Any, otherwise: Any) -> Any:
        return ops.where(ops.any(chosen), chosen, otherwise)

    return DropPathJoin


def without_drop_path(model: keras.Model) -> keras.Model:
    """A copy of `model` whose joins are Keras' own means: equal at inference, and loaded where featcache is not.

    A model without joins is returned as it is.
    """
    join = drop_path_join_class()
    if not any(isinstance(layer, join) for layer in model._flatten_layers(include_self=False, recursive=True)):
        return model

    def clone(layer: Any) -> Any:
        return import_keras().layers.Average(name=layer.name) if isinstance(layer, join) else same(layer)

    return copied(model, clone)
