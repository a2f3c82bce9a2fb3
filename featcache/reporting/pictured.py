"""Mistakes as pictures, and the map of the features."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from featcache.core.errors import RunError
from featcache.core.project import Project
from featcache.reporting import charts
from featcache.reporting.blocks import Block, Card, Gallery, Paragraph, Section
from featcache.reporting.compared import Group
from featcache.reporting.feature_map import feature_map
from featcache.reporting.judging import Mistake, shared_by
from featcache.reporting.pictures import Pictures
from featcache.reporting.records import (
    Problem,
    best_by_validation,
)
from featcache.reporting.text import clean, counted, labels_in_words

_MOST_COMBINATIONS = 6
_MOST_CARDS, _CARD_PX, _POINT_PX = 24, 176, 88


def mistakes(group: Group, pictures: Pictures | None) -> Section | None:
    """The mistakes of the run shown first, as pictures where there are some."""
    shown = group.chosen or group.records[0]
    if shown.name not in group.mistakes:
        return None
    wrong = group.mistakes[shown.name]
    title, place = "Mistakes", f"mistakes-{group.number}"
    if not wrong:
        return Section(title, (Paragraph(f"“{group.label(shown)}” makes none on the plain test images."),), id=place)
    others = [{mistake.image_id for mistake in found} for name, found in group.mistakes.items() if name != shown.name]
    cards = []
    for mistake in wrong[:_MOST_CARDS]:
        jpeg = pictures.jpeg(mistake.image_id, _CARD_PX) if pictures else None
        why = "" if jpeg or pictures is None else pictures.missing.get(mistake.image_id, "")
        cards.append(_card(mistake, jpeg, why=why, same=shared_by(mistake, others), others=len(others)))
    many = f"{len(wrong):,} plain test images" if len(wrong) > 1 else "one plain test image"
    said = f"“{group.label(shown)}” is wrong on {many}. The most confident mistakes come first."
    if len(wrong) > _MOST_CARDS:
        said += f" The first {_MOST_CARDS} are shown; report.xlsx lists all of them."
    blocks: list[Block] = [Paragraph(said)]
    if pictures is None:
        blocks.append(Paragraph("Without the project of these images, there are no pictures of them.", "quiet"))
    blocks.append(Gallery("Mistakes on test, the most confident first", tuple(cards)))
    return Section(title, tuple(blocks), id=place)


def _card(mistake: Mistake, jpeg: bytes | None, *, why: str, same: int, others: int) -> Card:
    label, predicted = clean(mistake.label), clean(mistake.predicted)
    lines = [("is", label), ("predicted", f"{predicted}, {100 * mistake.confidence:.0f} %")]
    if mistake.missed or mistake.added:
        wrong = {"missed": mistake.missed, "too much": mistake.added}
        said = {
            name: ", ".join(f"{clean(one)} ({100 * share:.0f} %)" for one, share in of) for name, of in wrong.items()
        }
        lines = [("is", label), ("predicted", predicted), *((name, words) for name, words in said.items() if words)]
    lines.append(("file", clean(mistake.path)))
    if others:
        lines.append(("also wrong", f"{same} of {counted(others, 'other run')}"))
    if why:
        lines.append(("no picture", clean(why)))
    return Card(jpeg, f"{label}, predicted as {predicted}: {clean(mistake.path)}", tuple(lines))


def _with_labels_in_words(rows: pd.DataFrame, separator: str) -> pd.DataFrame:
    """Combinations of labels as classes of a map: those that are rare are one, since colours are few."""
    said = {name: rows[name].map(lambda text: labels_in_words(text, separator)) for name in ("label", "predicted")}
    frequent = set(said["label"].value_counts().index[:_MOST_COMBINATIONS])
    wrong = (said["label"] != said["predicted"]).to_numpy()
    label = said["label"].where(said["label"].isin(frequent), "another combination")
    return rows.assign(label=label, predicted=said["predicted"].where(wrong, label))


def map_of(
    group: Group, project: Project | None, *, pictures: Pictures | None, problems: list[Problem]
) -> Section | None:
    """The map of a head's features; None where there is none to show, which `problems` explains."""
    heads = [record for record in group.records if record.config.kind == "head" and record.name in group.judgements]
    shown = group.chosen if group.chosen in heads else best_by_validation(heads)
    if shown is None or project is None:
        return None
    try:
        found = feature_map(shown, group.judgements[shown.name], project=project)
    except RunError as error:
        problems.append(Problem(shown.name, str(error).replace(str(project.folder), "the project")))
        return None
    if shown.has_several_labels:
        found = replace(found, rows=_with_labels_in_words(found.rows, shown.config.label_separator))
    small = {}
    for image_id in found.rows["image_id"] if pictures else ():
        if pictures and (jpeg := pictures.jpeg(image_id, _POINT_PX)):
            small[image_id] = jpeg
    said = (
        f"Features of {clean(shown.config.cache_name)}, averaged over places, of {len(found.rows):,} plain images"
        + (f" of {found.of:,}" if found.is_sample else "")
        + ". Images with like features lie close to each other. "
        + ("Point at one, or tap it, to see it." if small else "")
    )
    return Section(
        "Map of the features",
        (
            Paragraph(said),
            *(charts.of_features(found, method, pictures=small, number=group.number) for method in found.places),
        ),
        id=f"map-{group.number}",
    )
