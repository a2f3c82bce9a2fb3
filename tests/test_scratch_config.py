"""How whole networks are trained: what a configuration refuses, its rates, its recipes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from featcache.core.errors import ScratchError
from featcache.networks.config import RECIPES, ScratchConfig, from_recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0}, "`lr=0`: expected a number above 0"),
        ({"lr": math.inf}, "`lr=inf`: expected a number"),
        ({"dropout": 1}, "`dropout=1`: expected a number with 0 <= x < 1"),
        ({"stochastic_depth": -0.1}, "`stochastic_depth=-0.1`: expected a number with 0 <= x < 1"),
        ({"clip_norm": -1}, "`clip_norm=-1`: expected a number of at least 0"),
        ({"l2": math.nan}, "`l2=nan`: expected a number of at least 0"),
        ({"batch": 0}, "`batch=0`: expected a whole number of at least 1"),
        ({"batch": 2.0}, "`batch=2.0`: expected a whole number of at least 1"),
        ({"deterministic": 1}, "`deterministic=1`: expected True or False"),
        ({"train_blocks": -1}, "`train_blocks=-1`: expected a whole number of at least 0 or None"),
        ({"batch": 16, "accumulate": 3}, "`batch=16`: expected a multiple of `accumulate=3`"),
        ({"epochs": 3, "warmup_epochs": 3}, "`warmup_epochs=3`: expected fewer than `epochs=3`"),
        ({"nesterov": True}, "`nesterov`: expected a `momentum` above 0"),
        ({"momentum": 0.9, "optimizer": "adamw"}, "`momentum=0.9`: expected 0, since adamw has its own"),
        ({"optimizer": "lbfgs"}, "`optimizer='lbfgs'`: expected sgd or adam or adamw or rmsprop"),
        ({"augment": "some"}, "`augment='some'`: expected planned or live or none"),
        ({"base_rate": 0}, "`base_rate=0`: expected a number with 0 < x <= 1"),
        ({"batchnorm_momentum": 1.0}, "`batchnorm_momentum=1.0`: expected a number with 0 <= x < 1 or None"),
        ({"seed": 2**31}, "`seed=2147483648`"),
    ],
)
def test_what_cannot_be_is_refused_in_words(change: dict[str, object], message: str) -> None:
    with pytest.raises(ScratchError) as caught:
        ScratchConfig(**change)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_the_study_trains_as_it_says() -> None:
    study = RECIPES["study"]
    assert (study.optimizer, study.momentum, study.lr, study.decay) == ("sgd", 0.0, 1e-5, 0.001)
    assert (study.batch, study.epochs, study.top, study.hidden) == (16, 100, "dense", 256)
    assert (study.dropout, study.l1, study.l2, study.weight_decay, study.patience) == (0, 0, 0, 0, 0)
    assert study.lr_at(1000, 275) == pytest.approx(1e-5 / 2)


def test_a_cosine_rises_falls_and_ends_near_zero() -> None:
    config = ScratchConfig(schedule="cosine", warmup_epochs=2, epochs=10, lr=0.1)
    rates = [config.lr_at(update, 5) for update in range(50)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[30] == pytest.approx(0.05)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001


def test_blocks_are_unfrozen_from_the_last_one_on() -> None:
    gradual = ScratchConfig(unfreeze_epochs=2, train_blocks=3)
    assert [gradual.blocks_at(epoch, 17) for epoch in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert ScratchConfig().blocks_at(0, 17) == 17
    assert ScratchConfig(train_blocks=40).blocks_at(5, 17) == 17
    assert ScratchConfig(train_blocks=0).blocks_at(5, 17) == 0


def test_recipes() -> None:
    assert from_recipe("modern", epochs=7, lr=None) == replace(RECIPES["modern"], epochs=7)
    assert ScratchConfig.from_dict(RECIPES["fine-tune"].to_dict()) == RECIPES["fine-tune"]
    with pytest.raises(ScratchError, match="did you mean modern"):
        from_recipe("modem")
