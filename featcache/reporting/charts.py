"""Figures of a report as Vega-Lite specifications: plain records, drawn in the page, and here without scripts.

Colours are Okabe & Ito's, which colour-blind readers can tell apart; shapes and dashes tell the same again.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from featcache.reporting.blocks import Chart
from featcache.reporting.feature_map import FeatureMap
from featcache.reporting.labels import kind_of
from featcache.reporting.records import Calibration, RunRecord
from featcache.reporting.text import clean, counted, number as written, shorten
from featcache.reporting.vega import FONT

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A7A7A", "#B8A800")
_AXIS_OF_EPOCHS = {"tickMinStep": 1, "tickCount": 5, "grid": False, "labelOverlap": True}
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 4])
_LEGEND = {"orient": "bottom", "direction": "vertical", "columns": 1, "symbolLimit": 40}
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
MOST_LINES = 30
_BUCKETS = 150
_MOST_LABELLED, _FEW_LINES = 60, 12

Spec = dict[str, Any]


def theme(*, dark: bool) -> Spec:
    """Colours of axes and words."""
    ink, quiet, grid = ("#E3E6EA", "#A9B1BA", "#3A4149") if dark else ("#1F2328", "#57606A", "#E1E4E8")
    words = {"labelColor": ink, "titleColor": quiet, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "aria": False,  # each chart has one text that says what it shows
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {**words, "gridColor": grid, "domainColor": quiet, "tickColor": quiet, "titleFontWeight": "normal"},
        "legend": {**words, "symbolStrokeWidth": 2.5, "labelLimit": 240},
        "title": {"color": ink, "anchor": "start", "fontSize": 13},
        "text": {"color": ink},
        "rule": {"color": quiet},
    }


def accuracies(records: Sequence[RunRecord], labels: Mapping[str, str], *, number: int = 1) -> Chart:
    """Accuracy of each run on test with its interval, the majority-class baseline as a line."""
    ranked = sorted(records, key=lambda record: -record.test.accuracy)[:_MOST_LABELLED]
    values: list[Spec] = []
    for record in ranked:
        low, high = record.test.intervals.get("accuracy", (record.test.accuracy,) * 2)
        label = labels[record.name]
        values.append(
            {"run": label, "kind": kind_of(record), "accuracy": record.test.accuracy, "low": low, "high": high}
        )
    base, accuracy = ranked[0].test.majority, ranked[0].accuracy_is
    order = [value["run"] for value in values]
    y = {"field": "run", "type": "nominal", "sort": order, "axis": None}
    x = {
        "type": "quantitative",
        "title": f"{accuracy} on test",
        "axis": {"format": ".0%", "tickCount": 5},
        "scale": {"domain": [0, 1]},
    }
    layers: list[Spec] = [
        _label_above("run"),
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}}},
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
            "encoding": {
                "x": {**x, "field": "accuracy"},
                **_told_by("kind", [value["kind"] for value in values]),
                "tooltip": [_tip("run"), _tip("accuracy", ".1%"), _tip("low", ".1%"), _tip("high", ".1%")],
            },
        },
    ]
    if base is not None:
        layers.append(
            {
                "data": {"values": [{"base": base}]},
                "mark": {"type": "rule", "strokeDash": [4, 3]},
                "encoding": {"x": {"field": "base", "type": "quantitative"}, "y": None},
            }
        )
    spec = {**_of(values), "height": _step_px(len(values)) * len(values), "encoding": {"y": y}, "layer": layers}
    told = "; ".join(f"{value['run']}: {value['accuracy']:.0%}" for value in values[:8])
    alt = f"{accuracy.capitalize()} on test of {counted(len(values), 'run')} with 95 % intervals. {told}"
    always = "always the most frequent combination of labels" if ranked[0].has_several_labels else ""
    note = f". The dashed line is {always or 'the majority-class baseline'}" if base is not None else ""
    return Chart(f"accuracy{_ending(number)}", f"{accuracy.capitalize()} on test, with 95 % intervals{note}", alt, spec)


def curves(
    histories: Mapping[str, pd.DataFrame],
    *,
    about: Mapping[str, tuple[str, str]],
    accuracy_is: str = "accuracy",
    number: int = 1,
) -> list[Chart]:
    """One chart for each of loss and accuracy on training and validation: a line for each run.

    about : of each label its network, told by colour, and what was trained, told by dashes
    accuracy_is : what accuracy is called
    """
    called = {"accuracy": accuracy_is}
    return [
        chart
        for measure in ("loss", "accuracy")
        for column, where in ((measure, "training"), (f"val_{measure}", "validation"))
        if (
            chart := _curves(
                histories,
                measure,
                called=called.get(measure, measure),
                column=column,
                where=where,
                about=about,
                ending=_ending(number),
            )
        )
    ]


def _curves(
    histories: Mapping[str, pd.DataFrame],
    measure: str,
    *,
    called: str,
    column: str,
    where: str,
    about: Mapping[str, tuple[str, str]],
    ending: str,
) -> Chart | None:
    lines: list[Spec] = []
    ends: list[tuple[str, float]] = []
    for label, history in histories.items():
        x, y = thinned(history["epoch"].to_numpy(np.float64), history[column].to_numpy(np.float64))
        if not len(x):
            continue
        network, mode = about[label]
        epochs = [round(float(value), 1) for value in x]
        lines.append({"run": label, "network": network, "mode": mode, "epoch": epochs, "value": [_short(v) for v in y]})
        ends.append((label, float(y[-1])))
    if not lines:
        return None
    lengths = [line["epoch"][-1] for line in lines]
    positive = min(min(line["value"]) for line in lines) > 0
    wide = max(max(line["value"]) for line in lines) > 50 * min(min(line["value"]) for line in lines)
    scale: Spec = {"zero": False, "nice": True}
    if measure == "loss" and positive and wide:
        scale = {"type": "log"}
    x_scale: Spec = {"type": "log"} if max(lengths) > 10 * min(lengths) else {"nice": False, "zero": False}
    by_network = _told_by("network", [line["network"] for line in lines])
    encoding: Spec = {
        "x": {"field": "epoch", "type": "quantitative", "scale": x_scale, "axis": _AXIS_OF_EPOCHS},
        "y": {
            "field": "value",
            "type": "quantitative",
            "scale": scale,
            "title": f"{called} on {where}",
            "axis": {"tickCount": 5, "format": ".0%" if measure == "accuracy" else "~g"},
        },
        "detail": {"field": "run"},
        "color": by_network["color"],
        "strokeDash": {
            "field": "mode",
            "title": "trained",
            "sort": _known([line["mode"] for line in lines]),
            "scale": {"range": list(_DASHES)},
            "legend": _LEGEND,
        },
        "opacity": {"condition": {"param": "picked", "value": 1}, "value": 0.12},
        "tooltip": [_tip("run"), _tip("epoch"), _tip("value", ".4~g")],
    }
    spec = {
        **_of(lines),
        "transform": [{"flatten": ["epoch", "value"]}],
        "height": 280,
        "params": [{"name": "picked", "select": {"type": "point", "fields": ["network"]}, "bind": "legend"}],
        "mark": {"type": "line", "strokeWidth": 2, "point": max(len(line["epoch"]) for line in lines) <= 12},
        "encoding": encoding,
    }
    told = "; ".join(f"{label}: {written(float(value))}" for label, value in ends[:8])
    title = f"{called.capitalize()} on {where} per epoch"
    return Chart(
        f"{measure}-{where}{ending}", title, f"{title} of {counted(len(lines), 'run')}. At the end: {told}", spec
    )


def thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most 300 points of a line, with the lowest and highest of each stretch; what is no number is left out."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(y) <= 2 * _BUCKETS:
        return x, y
    parts = np.array_split(np.arange(len(y)), _BUCKETS - 1)
    kept = {0, len(y) - 1} | {int(part[pick(y[part])]) for part in parts for pick in (np.argmin, np.argmax)}
    order = np.array(sorted(kept))
    return x[order], y[order]


def calibration(found: Calibration, name: str) -> Chart | None:
    """How often what is said with a confidence is right, on test; before the temperature is used and after."""
    if found.test is None:
        return None
    values = [
        {"when": when, "confidence": one.confidence, "accuracy": one.accuracy, "images": one.rows}
        for when, of in (("as trained", found.test.before), ("with temperature", found.test.after))
        for one in of.bins
    ]
    x = {"type": "quantitative", "scale": {"domain": [0, 1]}, "axis": {"format": ".0%", "tickCount": 5}}
    spec = {
        **_of(values),
        "height": 260,
        "layer": [
            {
                "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
                "mark": {"type": "line", "strokeDash": [4, 3], "color": "#7A7A7A"},
                "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
            },
            {
                "mark": {"type": "point", "filled": True, "opacity": 0.9},
                "encoding": {
                    "x": {**x, "field": "confidence", "title": "confidence"},
                    "y": {**x, "field": "accuracy", "title": "how often that is right"},
                    **_told_by("when", ["as trained", "with temperature"], title=None),
                    "size": {
                        "field": "images",
                        "type": "quantitative",
                        "legend": None,
                        "scale": {"range": [40, 400]},
                    },
                    "tooltip": [_tip("when"), _tip("confidence", ".0%"), _tip("accuracy", ".0%"), _tip("images")],
                },
            },
        ],
    }
    before, after = (of.calibration_error for of in (found.test.before, found.test.after))
    alt = (
        f"Calibration on {counted(found.test.before.rows, 'test image')}: expected calibration error "
        f"{written(before, 2)} as trained, {written(after, 2)} with temperature {written(found.temperature, 2)}"
    )
    title = "Calibration on test: points on the dashed line are as often right as they are sure"
    return Chart(f"calibration-{name}", title, alt, spec)


def of_features(found: FeatureMap, method: str, *, pictures: Mapping[str, bytes], number: int = 1) -> Chart:
    """The map of features: a point an image, its class by colour and shape; mistakes on test have a ring."""
    places, rows = found.places[method], found.rows
    split = {"train": "train", "val": "validation", "test": "test"}
    values = []
    for (x, y), row in zip(places, rows.to_dict("records"), strict=True):
        wrong = row["split"] == "test" and row["predicted"] != row["label"]
        value = {
            "x": _short(x),
            "y": _short(y),
            "class": clean(row["label"]),
            "split": split.get(str(row["split"]), "none"),
            "predicted": clean(row["predicted"]),
            "path": clean(row["path"]),
            "wrong": wrong,
        }
        if jpeg := pictures.get(str(row["image_id"])):
            value["image"] = f"data:image/jpeg;base64,{b64encode(jpeg).decode()}"
        values.append(value)
    quiet = {"labels": False, "ticks": False, "grid": False}
    place = {
        axis: {"field": axis, "type": "quantitative", "scale": {"zero": False}, "axis": quiet, "title": f"{method} {n}"}
        for n, axis in enumerate("xy", start=1)
    }
    shown = ["class", "predicted", "split", "path", *(["image"] if pictures else [])]
    points = {
        "mark": {"type": "point", "filled": True, "size": 70},
        "encoding": {
            **_told_by("class", [value["class"] for value in values]),
            "opacity": {"condition": {"test": "datum.split == 'test'", "value": 1}, "value": 0.45},
            "tooltip": [_tip(name) for name in shown],
        },
    }
    rings = {
        "transform": [{"filter": "datum.wrong"}],
        "mark": {"type": "point", "size": 260, "shape": "circle", "strokeWidth": 2, "color": "#D62728"},
        "encoding": {"tooltip": [_tip(name) for name in shown]},
    }
    spec = {**_of(values), "height": 380, "encoding": place, "layer": [points, rings]}
    wrong = sum(value["wrong"] for value in values)
    title = f"Map of the features ({method}): test images in full colour, mistakes ringed"
    alt = f"{title}. {counted(len(values), 'image')}, {wrong} of them mistakes"
    return Chart(f"map-{method.lower()}{_ending(number)}", title, alt, spec)


def sweep(table: pd.DataFrame, measure: str, *, name: str) -> Chart:
    """Mean and spread of each combination of a sweep, the best first."""
    shown = table[np.isfinite(table[measure])].head(30)
    fields = [column for column in table.columns if column not in (measure, "spread", "epoch", "diverged")]
    values: list[Spec] = [
        {
            "setting": shorten(", ".join(f"{field} {line[field]}" for field in fields), 60),
            "mean": float(line[measure]),
            "low": float(line[measure] - line["spread"]),
            "high": float(line[measure] + line["spread"]),
        }
        for line in shown.to_dict("records")
    ]
    x = {"type": "quantitative", "scale": {"zero": False}, "title": f"{measure}: mean and standard deviation"}
    spec = {
        **_of(values),
        "height": _step_px(len(values)) * len(values),
        "encoding": {"y": {"field": "setting", "type": "nominal", "sort": None, "axis": None}},
        "layer": [
            _label_above("setting"),
            {"mark": "rule", "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}}},
            {
                "mark": {"type": "point", "filled": True, "size": 70, "color": PALETTE[0], "opacity": 1},
                "encoding": {"x": {**x, "field": "mean"}, "tooltip": [_tip("setting"), _tip("mean", ".4~g")]},
            },
        ],
    }
    best = values[0]
    alt = f"{counted(len(values), 'combination')} of {name}; the best: {best['setting']}, {written(best['mean'])}"
    return Chart(name, f"Sweep {name}", alt, spec)


def _of(values: Sequence[Mapping[str, Any]]) -> Spec:
    fit = {"type": "fit-x", "contains": "padding"}
    return {"$schema": SCHEMA, "data": {"values": list(values)}, "width": "container", "autosize": fit}


def _told_by(field: str, values: Sequence[str], *, title: str | None = "") -> Spec:
    """A field by colour and by shape, in the order in which its values come."""
    known = _known(values)
    shared = {"field": field, "type": "nominal", "sort": known, "title": field if title == "" else title}
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(known))]
    shapes = [_SHAPES[place % len(_SHAPES)] for place in range(len(known))]
    return {
        "color": {**shared, "scale": {"domain": known, "range": colours}, "legend": _LEGEND},
        "shape": {**shared, "scale": {"domain": known, "range": shapes}, "legend": _LEGEND},
    }


def _label_above(field: str) -> Spec:
    """What a line is called, above it, since beside it there is no room on a phone."""
    return {
        "mark": {"type": "text", "align": "left", "dy": -10, "fontSize": 11},
        "encoding": {"x": {"value": 0}, "text": {"field": field, "type": "nominal"}},
    }


def _step_px(n_lines: int) -> int:
    return 40 if n_lines <= _FEW_LINES else 28


def _known(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _tip(field: str, form: str = "") -> Spec:
    kind = "quantitative" if form else "nominal"
    return {"field": field, "type": kind, **({"format": form} if form else {})}


def _ending(number: int) -> str:
    return "" if number == 1 else f"-{number}"


def _short(value: float) -> float:
    return float(f"{value:.5g}")
