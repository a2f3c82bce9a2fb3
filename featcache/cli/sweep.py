"""featcache sweep"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featcache.cli.head_options import cache_option, given_head, labelled_cache, points_of, solver_option, swept_options
from featcache.cli.interrupts import TERMINAL
from featcache.cli.options import json_option, open_project, project_option
from featcache.cli.output import percent, print_json, print_table, say, shown

_SHOWN = 15


@click.command("sweep")
@cache_option
@swept_options
@click.option("--random", "n_random", type=click.IntRange(1), help="Try so many combinations drawn at random, not all.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Heads of each combination.")
@solver_option
@project_option
@json_option
def command(
    cache_name: str | None,
    preset: str,
    n_random: int | None,
    seeds: int,
    solver: Any,
    folder: Path,
    as_json: bool,
    **values: Any,
) -> None:
    """Train many heads on one cache and keep the one that is best on validation.

    Lists of values span a grid: --lr 0.0003,0.001,0.003 --hidden 128,256,256+64 (two layers) --dropout 0,0.5.
    Every head shares one Gram matrix. The best value of --monitor in each head's course decides; test rows are
    looked at once, with the winner's best epoch.
    """
    from featcache.heads import from_preset, grid, random_points, sweep

    space = points_of(values)
    config = from_preset(preset, **given_head({name: value for name, value in values.items() if name not in space}))
    points = random_points(space, n_random, seed=config.seed) if n_random else grid(space)
    project = open_project(folder)
    cache = labelled_cache(project, cache_name, as_json=as_json)
    done = sweep(
        cache, project.results_folder, config=config, points=points, seeds=seeds, solver=solver, progress=TERMINAL
    )
    run = done.winner.run
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
    say(f"the best on validation, looked at on test once: {percent(test['accuracy'])} % ({run.name})")
    say(f"sweep: {shown(done.folder)}")
