"""index.html of a slide: the differential count with its intervals, and the fields with links to annotated pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2

from featcache.core.errors import ImageError
from featcache.counting.drawing import colour_of
from featcache.counting.fields import PICTURES
from featcache.images import read_bytes, read_picture
from featcache.reporting import blocks, charts, clean, counted, page, shorten
from featcache.segmentation import jpeg

_SHOWN, _THUMB_PX = 12, 360
_MOST_LEFT_OUT = 300
MEANING = (
    "Between: the true number of cells of a class in these fields lies between these numbers, with a probability of "
    "95 %. The interval holds what the run takes for another class, and cells that were missed or found in error. It "
    "can lie beside the number that was named so, if the run is known to take other classes for this one.",
    "Share: of the blood that these fields are a sample of, so that few cells make it wide. Fields count as clusters.",
)
RESTS_ON = (
    "The intervals hold for smears that are stained and photographed like the images that the run was tested on. They "
    "do not know what another microscope does to the run, nor classes that it was never shown: many cells that are "
    "unlike the training images say so."
)


def of(done: Mapping[str, Any], folder: Path, *, crops: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The page as HTML.

    done : as of `Counted.to_dict`; crops : how cells were cut out; names : of the annotated picture of each image
    """
    classes = list(done["total"])
    fields = sorted(done["images"], key=lambda field: (-field["unsure"], -field["cells"], field["image"]))
    sections = [
        blocks.Section("Differential count", tuple(_differential(done, classes)), id="answer-1"),
        blocks.Section("Fields to look at first", tuple(_first(fields, folder, names)), id="first"),
        blocks.Section("All fields", (_table_of(fields, classes, folder, names),), id="fields"),
        *_left_out(done),
        blocks.Section("How it was counted", (_how(done, crops),), id="how"),
    ]
    about = (
        f"{counted(done['cells'], 'white cell')} in {counted(done['fields'], 'field')}, named by {clean(done['run'])}"
    )
    return page.render(blocks.Report("White cells of a slide", about, tuple(sections)))


def _differential(done: Mapping[str, Any], classes: Sequence[str]) -> list[blocks.Block]:
    facts = {
        "white cells": f"{done['cells']:,}",
        "fields": f"{done['fields']:,}",
        "unsure cells": f"{done['unsure']:,}",
        "unlike the training images": f"{done['unlike']:,}",
        "fields without a cell": f"{len(done['fields_without_cells']):,}",
    }
    rows = []
    for label in classes:
        one = done["total"][label]
        share = f"{_percent(one['share_low'])}–{_percent(one['share_high'])}"
        of_named = _percent(one["n"] / done["cells"]) if done["cells"] else ""
        rows.append((clean(label), f"{one['n']:,}", f"{one['low']:,}–{one['high']:,}", of_named, share))
    headers = ("class", "named so", "between (95 %)", "of the cells, %", "share between (95 %), %")
    foot = (("all", f"{done['cells']:,}", "", "100" if done["cells"] else "", ""),)
    table = blocks.Table(headers, tuple(rows), n_text=1, title="Differential count, with 95 % intervals", foot=foot)
    said = [blocks.Paragraph(text, "quiet") for text in (*MEANING, RESTS_ON)]
    return [blocks.Facts(tuple(facts.items()), large=True), _chart(done, classes), table, *said]


def _chart(done: Mapping[str, Any], classes: Sequence[str]) -> blocks.Chart:
    """The number of each class, its interval as a line, what was named as a point."""
    values: list[dict[str, Any]] = [
        {"class": shorten(label, 40), **{name: done["total"][label][name] for name in ("n", "low", "high")}}
        for label in classes
    ]
    names = [value["class"] for value in values]
    y = {"field": "class", "type": "nominal", "sort": names, "axis": None}
    x = {"type": "quantitative", "title": "cells in these fields", "axis": {"tickMinStep": 1, "tickCount": 5}}
    scale = {"domain": names, "range": [colour_of(label, classes) for label in classes]}
    colour = {"field": "class", "type": "nominal", "scale": scale, "legend": None}
    tips = [
        {"field": "class", "type": "nominal"},
        *({"field": name, "type": "quantitative", "format": ","} for name in ("n", "low", "high")),
    ]
    above = {
        "mark": {"type": "text", "align": "left", "dy": -12, "fontSize": 12},
        "encoding": {"x": {"value": 0}, "text": {"field": "class", "type": "nominal"}},
    }
    line = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "color": colour}
    layers = [
        above,
        {"mark": {"type": "rule", "strokeWidth": 3}, "encoding": line},
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {"x": {**x, "field": "n"}, "color": colour, "tooltip": tips},
        },
    ]
    said = "; ".join(f"{value['class']} {value['n']}, {value['low']} to {value['high']}" for value in values)
    spec = {
        "$schema": charts.SCHEMA,
        "data": {"values": values},
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "height": {"step": 42},
        "encoding": {"y": y},
        "layer": layers,
    }
    title = "Cells of each class: as named (point), and between which numbers the true one lies (line)"
    return blocks.Chart("differential", title, f"Cells of each class with 95 % intervals: {said}", spec)


def _first(fields: Sequence[Mapping[str, Any]], folder: Path, names: Mapping[str, str]) -> list[blocks.Block]:
    cards = []
    for field in [field for field in fields if field["cells"]][:_SHOWN]:
        of_class = ", ".join(f"{n} {clean(label)}" for label, n in field["classes"].items() if n)
        lines = (("field", shorten(field["image"], 40)), ("cells", of_class), ("unsure", f"{field['unsure']:,}"))
        alt = f"{shorten(field['image'], 40)} with its cells marked: {of_class}"
        cards.append(blocks.Card(_thumb(folder / _place(field, names)), alt, lines))
    note = (
        "Those with most unsure cells, then with most cells. A solid box is around each cell, with its class. Unsure "
        "cells have a dashed box and a question mark; thin grey boxes are around what was left out."
    )
    if not cards:
        return [blocks.Paragraph("No field has a white cell.")]
    return [blocks.Paragraph(note), blocks.Gallery("Fields to look at first", tuple(cards))]


def _thumb(path: Path) -> bytes | None:
    try:
        pixels = read_picture(read_bytes(path)).pixels
    except (ImageError, OSError):
        return None
    scale = min(_THUMB_PX / max(pixels.shape[:2]), 1)
    size = [max(round(scale * side), 1) for side in pixels.shape[1::-1]]
    return jpeg(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), 80)


def _place(field: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return f"{PICTURES}/{names[field['image']]}.jpg"


def _table_of(
    fields: Sequence[Mapping[str, Any]], classes: Sequence[str], folder: Path, names: Mapping[str, str]
) -> blocks.Table:
    """A line a field, linked to its annotated picture."""
    headers = ("field", "cells", *(clean(label) for label in classes), "unsure", "unlike", "cut by the border")
    numbers = ("unsure", "unlike", "at_border")
    rows = tuple(
        (
            clean(field["image"]),
            f"{field['cells']:,}",
            *(f"{n:,}" for n in field["classes"].values()),
            *(f"{field[name]:,}" for name in numbers),
        )
        for field in fields
    )
    places = [_place(field, names) for field in fields]
    links = tuple(quote(place) if (folder / place).is_file() else "" for place in places)
    return blocks.Table(headers, rows, n_text=1, title="Fields, with links to their annotated pictures", links=links)


def _left_out(done: Mapping[str, Any]) -> list[blocks.Section]:
    found = done["left_out"]
    if not found:
        return []
    rows = tuple((clean(item["image"]), clean(item["reason"]), _corner(item)) for item in found[:_MOST_LEFT_OUT])
    title = "What was left out, and what should be known of a field"
    if len(found) > len(rows):
        title += f"; the first {len(rows)} of {len(found):,}, all of them in left_out.csv"
    table = blocks.Table(("field", "why", "where"), rows, n_text=3, title=title)
    return [blocks.Section("Left out", (table,), id="left-out")]


def _corner(item: Mapping[str, Any]) -> str:
    return (
        "" if item["x_min"] is None else f"x {item['x_min']} to {item['x_max']}, y {item['y_min']} to {item['y_max']}"
    )


def _how(done: Mapping[str, Any], crops: Mapping[str, Any]) -> blocks.Items:
    shape = "square, " if crops["square"] else ""
    source = (
        "as measured in the run's training images"
        if crops["is_measured"]
        else "a default: the run's images are not here"
    )
    lines = {
        "Run": clean(done["run"]),
        "What the run takes for another class": f"known from {done['based_on']}",
        "Crops": f"{shape}with a margin of {100 * crops['margin']:.0f} % of the cell's longer side ({source})",
        "Tables": "cells.csv (each cell), counts.csv (each field), left_out.csv, count.json",
    }
    return blocks.Items(tuple(lines.values()), tuple(lines))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
