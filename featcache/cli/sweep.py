"""featcache sweep"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featcache.cli.command import Command, option
from featcache.cli.head_options import SWEPT, asked_cache, cache_option, solver_option, swept_options
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import percent, print_json, print_table, say, shown
from featcache.cli.settings import given

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 15
_STANDARD_ERRORS = 2
"""Up to which a difference of means may be chance."""


@click.command("sweep", cls=Command)
@cache_option
@swept_options
@option(
    "--random",
    "n_random",
    type=click.IntRange(1),
    group="Settings to try",
    help="Try this many random combinations instead of all.",
)
@option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, group="Run", help="Heads to train per combination."
)
@solver_option
@project_option
@json_option
def command(
    cache: str | None,
    preset: str,
    n_random: int | None,
    seeds: int,
    solver: Any,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Train many heads on one cache, and keep the best one on the validation rows.

    Give several values of a setting: --lr 0.0003,0.001,0.003 --hidden 128,256,256+64 (two layers) --dropout
    0,0.5. All combinations are trained on one Gram matrix. The best value of --monitor in each training
    decides. The test rows are evaluated once, with the winner.
    """
    from featcache.api import sweep
    from featcache.heads import HeadConfig, from_preset, random_points

    space = {name: values[name] for name in SWEPT if values[name] is not None}
    settings = {name: value for name, value in given(values, HeadConfig).items() if name not in space}
    config = from_preset(preset, **settings)
    project = open_project(folder)
    run = sweep(
        project,
        random_points(space, n_random, seed=config.seed) if n_random else space,
        cache=asked_cache(project, cache, as_json=as_json),
        preset=preset,
        solver=solver,
        seeds=seeds,
        progress=TERMINAL,
        **settings,
    )
    done = run.fitted
    if as_json:
        print_json(
            {
                "sweep": done.folder.name,
                "path": str(done.folder),
                "heads": [
                    {k: None if v != v else v for k, v in line.items()} for line in done.table.to_dict("records")
                ],
                "winner": run.name,
                **{split: run.metrics[split] for split in ("train", "val", "test")},
            }
        )
        return
    fields = [name for name in space if len(space[name]) > 1]
    rows = [
        [
            *(str(line[name]) for name in fields),
            *(
                ["diverged", "", ""]
                if line["diverged"]
                else [f"{line[config.monitor]:.4f}", f"{line['spread']:.4f}", str(line["epoch"])]
            ),
        ]
        for line in done.table.head(_SHOWN).to_dict("records")
    ]
    print_table([*fields, f"{config.monitor}, mean of {seeds}", "std", "epoch"], rows)
    if len(done.table) > _SHOWN:
        say(f"... and {len(done.table) - _SHOWN} more in {shown(done.folder)}/heads.csv")
    test = run.metrics["test"]
    _say_chance(done.table, config.monitor, seeds)
    low, high = (percent(end, of=test["groups"]) for end in test["intervals"]["accuracy"])
    say(
        f"best on validation, evaluated on test once: {percent(test['accuracy'], of=test['groups'])} % "
        f"({low} to {high} % with 95 % confidence) ({run.name})"
    )
    say(f"sweep: {shown(done.folder)}")


def _say_chance(table: pd.DataFrame, monitor: str, seeds: int) -> None:
    """How many combinations are no worse than the best but by chance."""
    sound = table[table["diverged"] == 0]
    if len(sound) < 2:
        return
    if seeds == 1:
        say("one seed each: small differences may be chance; --seeds 5 tells")
        return
    best, others = sound.iloc[0], sound.iloc[1:]
    error = ((others["spread"] ** 2 + best["spread"] ** 2) / seeds) ** 0.5
    alike = int(((others[monitor] - best[monitor]).abs() <= _STANDARD_ERRORS * error).sum())
    if alike:
        say(f"not distinguishable from the best over {seeds} seeds: {alike} of the other {len(others)} combinations")
