"""What cutting cells out and changing colours is worth, within one laboratory and from one to another.

python benchmarks/laboratories.py [--data ../shared/data] [--weights ../shared/weights] [--into FOLDER]
                                  [--models NAME ...] [--part masked|transfer|adapt|all]

masked    cross-validation (5 folds, 5 repeats, by group) on the white cells of bccd: cells as they are, cut out, and
          cut out before white or black; the difference from cells as they are, with its interval over groups
transfer  heads trained on one of bccd, pbc and white_cells_masked, judged by all cells of the two others: balanced
          accuracy over the classes that both have, with each `align` of `evaluate`. No label of
          the other laboratory is used
adapt     the same after `adapt` with 5, 10 and 20 labelled cells a class of the other laboratory

Heads are logistic regressions on features averaged over places. Finished caches and runs in --into are used again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common import print_machine

import featcache as fc
from featcache.core.progress import SILENT

_JITTER = {
    **{"stain": 0.25, "hue_deg": 10.0, "contrast": 0.25, "saturation": 0.3, "blur": 0.01, "zoom": 0.15},
    "rotation_deg": 180.0,
}
_WHITE = {"fill_modes": ("constant",), "fill_value": 255}
_WEIGHTS = {
    "mobilenetv2": "mobilenet_v2_1.0_224_notop.h5",
    "resnet50": "resnet50_pruned_notop.h5",
    "densenet121": "densenet121_imagenet_notop.weights.h5",
}
"""Files in --weights; other models take those that are installed."""


@dataclass(frozen=True)
class Setting:
    """Values for [views] and [augmentation]."""

    name: str
    views: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, Any] = field(default_factory=dict)


AS_THEY_ARE = Setting("as they are")
MASKED = (
    AS_THEY_ARE,
    Setting("cut out", {"segment": "stain"}),
    Setting("on white", {"segment": "stain", "background": "white"}, _WHITE),
    Setting("on black", {"segment": "stain", "background": "black"}, {"fill_modes": ("constant",)}),
)
TRANSFER = (
    AS_THEY_ARE,
    Setting("jitter", {}, _JITTER),
    *MASKED[1:3],
    Setting("cut, Reinhard", {"segment": "stain", "normalise": "reinhard"}),
    Setting("cut, Macenko", {"segment": "stain", "normalise": "macenko"}),
    Setting("cut, jitter", {"segment": "stain"}, _JITTER),
    Setting("cut, jitter, Reinhard", {"segment": "stain", "normalise": "reinhard"}, _JITTER),
    Setting("cut, jitter, Macenko", {"segment": "stain", "normalise": "macenko"}, _JITTER),
)


ALIGN: tuple[Literal["none", "mean", "scale"], ...] = ("none", "mean", "scale")


@dataclass(frozen=True)
class Laboratory:
    """Labelled cells, and how `init` reads them."""

    name: str
    source: Path
    reading: Mapping[str, Any] = field(default_factory=dict)
    splitting: Mapping[str, Any] = field(default_factory=dict)


def laboratories(data: Path) -> Iterator[Laboratory]:
    """Those that are in a folder."""
    listed = {"path_column": "image", "label_column": "label", "box_columns": ("none",)}
    for found in (
        Laboratory("bccd", data / "bccd"),
        Laboratory("pbc", data / "pbc/labels.csv", listed),
        Laboratory(
            "white_cells_masked",
            data / "white_cells_masked/labels.csv",
            {**listed, "without": ("basophil",)},
            {"split_column": "none"},
        ),
    ):
        if found.source.exists():
            yield found


class Bench:
    """Caches and runs by laboratory, model and setting."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self._folder, self._weights = folder, weights

    def weights(self, model: str) -> str | None:
        """The file of a model's weights; None for those that are installed."""
        return str(self._weights / _WEIGHTS[model]) if model in _WEIGHTS else None

    def cache(self, laboratory: Laboratory, model: str, *, setting: Setting, views: int) -> fc.Cache:
        """Features averaged over places."""
        project = fc.init(
            laboratory.source,
            self._folder / laboratory.name,
            progress=SILENT,
            **dict(laboratory.reading),
            **dict(laboratory.splitting),
        )
        made: fc.Cache = fc.extract(
            project,
            model,
            weights=self.weights(model) or "imagenet",
            pooling="avg",
            views={"train": views, **setting.views},
            augmentation=setting.augmentation,
            progress=SILENT,
        )
        return made


def masked(bench: Bench, laboratory: Laboratory, models: list[str]) -> None:
    """Cross-validation of cells as they are and cut out."""
    print("| model | head | cells | balanced accuracy, % | difference, points |\n|---|---|---|---|---|", flush=True)
    for model in models:
        for head in ("logreg", "dense"):
            first = None
            for setting in MASKED:
                cache = bench.cache(laboratory, model, setting=setting, views=4)
                run = fc.cross_validate(cache, head=head, folds=5, repeats=5, progress=SILENT)
                found, difference = run.metrics["measures"]["balanced_accuracy"], ""
                if first is not None:
                    table = run.compare(first).set_index("measure").loc["balanced_accuracy"]
                    difference = (
                        f"{100 * table['difference']:+.1f} ({100 * table['low']:+.1f} to {100 * table['high']:+.1f})"
                    )
                first = first or run
                shown = f"{100 * found['mean']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"
                print(f"| {model} | {head} | {setting.name} | {shown} | {difference} |", flush=True)


def transfer(bench: Bench, all_of: list[Laboratory], models: list[str], *, labels: tuple[int, ...] = ()) -> None:
    """Heads of one laboratory on the cells of the others; with `labels`, after so many a class of these."""
    columns = [f"{count} labels" for count in labels] or [f"align {align}" for align in ALIGN]
    print(f"| from | to | model | setting | {' | '.join(columns)} |\n|{'---|' * (4 + len(columns))}", flush=True)
    of_setting: dict[str, list[list[float]]] = {}
    for laboratory in all_of:
        for model in models:
            for setting in [TRANSFER[0], TRANSFER[2], TRANSFER[6]] if labels else TRANSFER:
                cache = bench.cache(laboratory, model, setting=setting, views=8)
                run = fc.fit_head(cache, head="logreg", progress=SILENT)
                for other in all_of:
                    if other is not laboratory:
                        cells = _judged(bench, run, other, model, labels)
                        print(
                            f"| {laboratory.name} | {other.name} | {model} | {setting.name} | {' | '.join(cells)} |",
                            flush=True,
                        )
                        if all(cells):
                            of_setting.setdefault(setting.name, []).append([float(cell.split()[0]) for cell in cells])
    for name, rows in of_setting.items():
        means = (f"{sum(column) / len(rows):.0f}" for column in zip(*rows, strict=True))
        print(f"| mean | of {len(rows)} | | {name} | {' | '.join(means)} |", flush=True)


def _judged(bench: Bench, run: fc.Run, other: Laboratory, model: str, labels: tuple[int, ...]) -> list[str]:
    weights = bench.weights(model)
    if not labels:
        reading = dict(other.reading)
        found = [
            fc.evaluate(run, other.source, weights=weights, align=align, progress=SILENT, **reading) for align in ALIGN
        ]
        return [_shown(one.measures) for one in found]
    after = [
        fc.adapt(run, other.source, per_class=count, weights=weights, progress=SILENT, **dict(other.reading)).after
        for count in labels
    ]
    return [_shown(one) if one else "" for one in after]


def _shown(measures: Mapping[str, Any]) -> str:
    low, high = measures["intervals"]["balanced_accuracy"]
    return f"{100 * measures['balanced_accuracy']:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights"))
    parser.add_argument("--into", type=Path)
    parser.add_argument("--models", nargs="+", default=["mobilenetv2", "efficientnet-lite0", "resnet50"])
    parser.add_argument("--part", choices=("masked", "transfer", "adapt", "all"), default="all")
    args = parser.parse_args()
    print_machine()
    found = list(laboratories(args.data))
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args.into or Path(temporary), args.weights)
        if args.part in ("masked", "all"):
            masked(bench, found[0], args.models)
        if args.part in ("transfer", "all"):
            transfer(bench, found, args.models)
        if args.part in ("adapt", "all"):
            transfer(bench, found, args.models, labels=(5, 10, 20))


if __name__ == "__main__":
    main()
