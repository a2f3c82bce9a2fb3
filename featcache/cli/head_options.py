"""Options of the commands that train heads, and what they make of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featcache.cli.interrupts import TERMINAL
from featcache.cli.output import say

if TYPE_CHECKING:
    from featcache.core.project import Project
    from featcache.heads import HeadConfig
    from featcache.store import Cache

Command = TypeVar("Command", bound=Callable[..., Any])

cache_option = click.option(
    "--cache",
    "cache_name",
    metavar="NAME",
    help="A cache's name, how it begins, or REMOTE/NAME.  [default: the newest]",
)
preset_option = click.option(
    "--preset",
    type=click.Choice(["default", "study"]),
    default="default",
    show_default=True,
    help="Settings to start from: ours, or those of the published study.",
)
solver_option = click.option(
    "--solver",
    type=click.Choice(["auto", "gram", "primal"]),
    default="auto",
    show_default=True,
    help="Gram space, Keras (primal), or whichever takes less time.",
)
_FRACTION = click.FloatRange(0, 1, max_open=True)
_HEAD: dict[str, Any] = {
    "epochs": click.option("--epochs", type=click.IntRange(1), help="Passes over the training rows.  [default: 100]"),
    "hidden": click.option(
        "--hidden", metavar="UNITS[,UNITS]", help="Of the hidden layers; 0 for none.  [default: 256]"
    ),
    "dropout": click.option("--dropout", type=_FRACTION, help="Behind each hidden layer.  [default: 0.5]"),
    "lr": click.option("--lr", type=float, help="Learning rate.  [default: 0.001; study: 1e-5]"),
    "l2": click.option("--l2", metavar="X[,X]", help="L2 penalty of every layer, or of each.  [default: 0]"),
    "momentum": click.option("--momentum", type=_FRACTION, help="Of SGD.  [default: 0]"),
    "batch": click.option("--batch", type=click.IntRange(1), help="Rows an update.  [default: 16]"),
}
_MORE: dict[str, Any] = {
    "nesterov": click.option("--nesterov", is_flag=True, default=None, help="Nesterov's momentum."),
    "l1": click.option("--l1", type=float, help="L1 penalty of every layer.  [default: 0]"),
    "optimizer": click.option(
        "--optimizer",
        type=click.Choice(["sgd", "adam", "adamw", "rmsprop"]),
        help="Gram space knows sgd.  [default: sgd]",
    ),
    "weight_decay": click.option("--weight-decay", type=float, help="Of adamw.  [default: 0.004]"),
    "schedule": click.option(
        "--schedule",
        type=click.Choice(["inverse-time", "constant", "cosine", "step"]),
        help="How the learning rate falls.  [default: inverse-time]",
    ),
    "decay": click.option("--decay", type=float, help="Inverse-time decay an update.  [default: 0; study: 0.001]"),
    "step_epochs": click.option("--step-epochs", type=click.IntRange(1), help="Epochs a step.  [default: 1000]"),
    "step_factor": click.option("--step-factor", type=float, help="Of the rate, a step.  [default: 0.5]"),
    "activation": click.option(
        "--activation",
        type=click.Choice(["relu", "elu", "tanh", "sigmoid", "linear"]),
        help="Of the hidden layers.  [default: relu]",
    ),
    "output": click.option(
        "--output",
        type=click.Choice(["softmax", "sigmoid"]),
        help="One class of all, or each class for itself.  [default: softmax]",
    ),
    "label_smoothing": click.option("--label-smoothing", type=_FRACTION, help="Of the targets.  [default: 0]"),
    "scale": click.option(
        "--scale", type=click.Choice(["auto", "none"]), help="Features to one norm.  [default: auto]"
    ),
    "class_weights": click.option(
        "--class-weights", type=click.Choice(["balanced", "none"]), help="Of the loss.  [default: balanced]"
    ),
    "monitor": click.option(
        "--monitor",
        type=click.Choice(["val_loss", "val_accuracy", "loss", "accuracy"]),
        help="What --patience and --restore-best look at.  [default: val_loss]",
    ),
    "patience": click.option(
        "--patience",
        type=click.IntRange(0),
        help="End when --monitor is no better for so many epochs; 0: never.  [default: 0]",
    ),
    "restore_best": click.option(
        "--restore-best", is_flag=True, default=None, help="Keep the weights of the best epoch, not of the last."
    ),
    "val_every": click.option("--val-every", type=click.IntRange(1), help="Epochs between looks at val.  [default: 1]"),
    "seed": click.option("--seed", type=click.IntRange(0), help="Of weights, order and dropout.  [default: 0]"),
    "dtype": click.option(
        "--dtype", type=click.Choice(["float32", "float64"]), help="Of the arithmetic.  [default: float32]"
    ),
}
SWEPT = tuple(_HEAD)


def head_options(command: Command) -> Command:
    """Every setting of a head."""
    for option in reversed((preset_option, *_HEAD.values(), *_MORE.values())):
        command = option(command)
    return command


def swept_options(command: Command) -> Command:
    """The settings of a head that a sweep varies, each as a list; and the others as they are."""
    lists = [click.option(f"--{name}", metavar="X[,X]", help=f"Values of {name} to try.") for name in SWEPT]
    for option in reversed((preset_option, *lists, *_MORE.values())):
        command = option(command)
    return command


def given_head(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that were given, as `HeadConfig` takes them."""
    given = {name: values[name] for name in (*_HEAD, *_MORE) if values.get(name) is not None}
    if isinstance(given.get("hidden"), str):
        given["hidden"] = units(given["hidden"])
    if isinstance(given.get("l2"), str):
        given["l2"] = _factors(given["l2"])
    return given


def head_of(preset: str, values: dict[str, Any]) -> HeadConfig:
    """The head that the options describe."""
    from featcache.heads import from_preset

    return from_preset(preset, **given_head(values))


def preset_head(preset: str) -> dict[str, Any]:
    """The settings that a preset changes."""
    from featcache.heads import PRESETS

    before = vars(PRESETS["default"])
    return {name: value for name, value in vars(PRESETS[preset]).items() if value != before[name]}


def points_of(values: dict[str, Any]) -> dict[str, list[Any]]:
    """The lists of values that a sweep varies."""
    kinds: dict[str, Callable[[str], Any]] = {
        "epochs": int,
        "batch": int,
        "hidden": lambda text: units(text.replace("+", ",")),
    }
    space = {}
    for name in SWEPT:
        if values.get(name) is not None:
            try:
                space[name] = [kinds.get(name, float)(part) for part in values[name].split(",")]
            except ValueError:
                raise click.BadParameter(
                    f"{values[name]!r}: expected values like 0.001,0.003", param_hint=f"--{name}"
                ) from None
    return space


def units(text: str) -> tuple[int, ...]:
    """ "256,64" -> (256, 64); "0" -> ()"""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers like 256 or 256,64", param_hint="--hidden") from None
    return () if numbers == (0,) else numbers


def _factors(text: str) -> float | tuple[float, ...]:
    try:
        factors = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers like 0.001 or 0.001,0", param_hint="--l2") from None
    return factors[0] if len(factors) == 1 else factors


def chosen_cache(project: Project, name: str | None, *, as_json: bool) -> Cache:
    """See `featcache.heads.choose_cache`; of several, a person at a terminal is asked."""
    from featcache.heads import candidates, choose_cache

    if name is not None and _on_remote(project, name):
        from featcache.sharing import open_on_remote

        return open_on_remote(name, project)
    if name is None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json:
        caches = candidates(project)
        if len(caches) > 1:
            for number, cache in enumerate(caches, start=1):
                say(f"{number}  {cache.name}  {cache.features.shape}")
            return caches[click.prompt("which cache", type=click.IntRange(1, len(caches)), default=1) - 1]
    return choose_cache(project, name, progress=TERMINAL)


def labelled_cache(project: Project, name: str | None, *, as_json: bool) -> Cache:
    """`chosen_cache` with the labels that dataset.csv gives now, which is said where they are others."""
    from featcache.training import with_current_labels

    found = with_current_labels(project, chosen_cache(project, name, as_json=as_json))
    for remark in found.remarks:
        say(remark, as_json)
    return found.cache


def _on_remote(project: Project, name: str) -> bool:
    """Whether a name means a cache on a remote; nothing of remotes is loaded for one that cannot."""
    if "/" not in name and not name.endswith(".zip"):
        return False
    from featcache.sharing import is_remote

    return is_remote(name, project)
