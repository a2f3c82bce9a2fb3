"""Options of the commands that train whole networks, and what they make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featcache.cli.options import MODES, json_option, project_option, view_count_options

if TYPE_CHECKING:
    from featcache.backbones import NetworkSpec
    from featcache.networks import ScratchConfig

Command = TypeVar("Command", bound=Callable[..., Any])

_FRACTION = click.FloatRange(0, 1, max_open=True)

_NETWORK = (
    click.option("--model", required=True, metavar="NAME", help="A backbone, a .keras or .h5 file, MODULE:FUNCTION."),
    click.option("--input-size", "input_size_px", type=click.IntRange(1), help="Side of the input, px."),
    click.option(
        "--preprocess",
        "preprocessing",
        type=click.Choice(["model", *MODES]),
        default="model",
        show_default=True,
        help="How pixels are scaled: as the network was trained, or another way.",
    ),
    click.option(
        "--devices", type=click.IntRange(1), default=1, show_default=True, help="Spread batches over so many (JAX)."
    ),
    click.option("--unsafe", is_flag=True, help="Let code from a model's file run."),
)
_TRAINING: dict[str, Any] = {
    "epochs": click.option("--epochs", type=click.IntRange(1), help="Passes over the training rows."),
    "batch": click.option("--batch", type=click.IntRange(1), help="Rows an update."),
    "accumulate": click.option(
        "--accumulate", type=click.IntRange(1), help="Compute each batch in so many parts, where memory is short."
    ),
    "optimizer": click.option(
        "--optimizer", type=click.Choice(["sgd", "adam", "adamw", "rmsprop"]), help="Keras' optimizer of that name."
    ),
    "lr": click.option("--lr", type=float, help="Learning rate of the top, and of all where all is trained alike."),
    "schedule": click.option(
        "--schedule", type=click.Choice(["inverse-time", "constant", "cosine"]), help="How the rate falls."
    ),
    "decay": click.option("--decay", type=float, help="Inverse-time decay an update."),
    "warmup_epochs": click.option("--warmup", "warmup_epochs", type=click.IntRange(0), help="Epochs of a rising rate."),
    "momentum": click.option("--momentum", type=_FRACTION, help="Of SGD."),
    "nesterov": click.option("--nesterov", is_flag=True, default=None, help="Nesterov's momentum."),
    "weight_decay": click.option("--weight-decay", type=float, help="Decoupled, of kernels."),
    "l1": click.option("--l1", type=float, help="L1 penalty of trained kernels."),
    "l2": click.option("--l2", type=float, help="L2 penalty of trained kernels."),
    "dropout": click.option("--dropout", type=_FRACTION, help="Before the last layer."),
    "stochastic_depth": click.option(
        "--stochastic-depth", type=_FRACTION, help="Probability to leave out the last residual branch."
    ),
    "label_smoothing": click.option("--label-smoothing", type=_FRACTION, help="Of the targets."),
    "class_weights": click.option("--class-weights", type=click.Choice(["balanced", "none"]), help="Of the loss."),
    "clip_norm": click.option("--clip", "clip_norm", type=float, help="Largest norm of the gradients; 0 for none."),
    "augment": click.option(
        "--augment",
        type=click.Choice(["planned", "live", "none"]),
        help="The planned views in every epoch, views drawn anew for each, or the plain ones alone.",
    ),
    "top": click.option("--top", type=click.Choice(["avg", "dense"]), help="Mean and one layer, or the study's head."),
    "hidden": click.option("--hidden", type=click.IntRange(1), help="Units of --top dense."),
    "monitor": click.option(
        "--monitor",
        type=click.Choice(["val_loss", "val_accuracy", "loss", "accuracy"]),
        help="What --patience and --restore-best look at.",
    ),
    "patience": click.option("--patience", type=click.IntRange(0), help="End when it is no better for so many epochs."),
    "restore_best": click.option(
        "--restore-best/--keep-last", default=None, help="Keep the model of the best epoch, or of the last."
    ),
    "val_every": click.option("--val-every", type=click.IntRange(1), help="Epochs between looks at val."),
    "precision": click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Of the network's arithmetic; weights and loss stay float32.",
    ),
    "deterministic": click.option(
        "--deterministic", is_flag=True, default=None, help="The same bits every time on one machine."
    ),
    "seed": click.option("--seed", type=click.IntRange(0), help="Of weights, order and dropout.  [default: 0]"),
}
_FINE_TUNING: dict[str, Any] = {
    "train_blocks": click.option("--train-blocks", type=click.IntRange(0), help="Train so many of the last blocks."),
    "batchnorm": click.option(
        "--batchnorm", type=click.Choice(["train", "frozen"]), help="Batch normalisation of trained blocks."
    ),
    "batchnorm_momentum": click.option(
        "--batchnorm-momentum", type=_FRACTION, help="Of its running statistics; Keras' 0.99 is for long epochs."
    ),
    "base_rate": click.option("--base-rate", type=float, help="Rate of the last block, as a fraction of the top's."),
    "rate_decay": click.option("--rate-decay", type=float, help="Factor of the rate from block to block before."),
    "unfreeze_epochs": click.option(
        "--unfreeze-epochs", type=click.IntRange(0), help="One block more each so many epochs, the last ones first."
    ),
}
_RUN = (
    click.option("--head", metavar="RUN", help="Begin with the top of this run of fit-head on the same features."),
    click.option("--again", is_flag=True, help="Train from the start even if this very run is there already."),
    click.option("--dry-run", is_flag=True, help="Say what it would take, and train nothing."),
    project_option,
    json_option,
)
_RECIPES = ("study", "modern", "fine-tune")


def recipe_option(default: str) -> Callable[[Command], Command]:
    """--recipe, the settings that the others change."""
    return click.option(
        "--recipe",
        type=click.Choice(_RECIPES),
        default=default,
        show_default=True,
        help="Settings to start from: the published study's, today's, or those for fine-tuning.",
    )


def scratch_options(command: Command) -> Command:
    """The network, every setting of its training, the views, and what to do with the run."""
    for option in reversed((*_NETWORK, *_TRAINING.values(), *_FINE_TUNING.values(), view_count_options, *_RUN)):
        command = option(command)
    return command


def scratch_of(recipe: str, values: dict[str, Any]) -> ScratchConfig:
    """The training that the options describe."""
    from featcache.networks import from_recipe

    return from_recipe(recipe, **{name: values[name] for name in (*_TRAINING, *_FINE_TUNING)})


def network_of(weights: str, values: dict[str, Any]) -> NetworkSpec:
    """The network that the options describe."""
    from featcache.backbones import NetworkSpec

    names = ("model", "input_size_px", "preprocessing", "unsafe")
    return NetworkSpec(weights=weights, **{name: values[name] for name in names})
