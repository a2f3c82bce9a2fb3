"""Doubt on real smears: how well other pictures are told from white cells, and how often sets hold the true class.

python benchmarks/doubt.py [--smears ../shared/data/bccd] [--hands ../shared/data/sign_digits/images]
                           [--model efficientnet-lite0] [--weights imagenet] [--splits 50]

White cells are the boxes `WBC` of BCCD, one smear a group. Other pictures: red cells of the same smears, generated
noise, photographs of hands. Each split is drawn by smear: 50 % train, 25 % validation, 25 % held out; a head is trained
on each, and what it says of the held-out cells is counted.
"""

from __future__ import annotations

import argparse
import csv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
from common import print_machine
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import featcache as fc
from featcache.doubt import Doubt, Likeness, reliability
from featcache.images.decode import decode

Images = NDArray[np.uint8]
_SIDE_PX = 224
_LEAST_PX = 20


def square(image: Images) -> Images:
    return np.asarray(cv2.resize(image, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA), np.uint8)


def cells(smears: Path) -> tuple[list[Images], list[str], list[str], list[Images]]:
    """White cells with one label, their labels and smears; and a red cell of each smear."""
    with (smears / "labels.csv").open(encoding="utf-8") as file:
        labels = {row["image"]: row["label"] for row in csv.DictReader(file)}
    white: list[Images] = []
    names: list[str] = []
    groups: list[str] = []
    red: list[Images] = []
    rng = np.random.default_rng(0)
    for annotation in sorted((smears / "annotations").glob("*.xml")):
        label = labels.get(f"{annotation.stem}.jpg", "")
        image = decode((smears / "images" / f"{annotation.stem}.jpg").read_bytes())
        reds = []
        for found in ElementTree.parse(annotation).iter("object"):  # noqa: S314
            corners = [float(found.findtext(f"bndbox/{name}", "0")) for name in ("xmin", "ymin", "xmax", "ymax")]
            left, top, right, bottom = (max(int(value), 0) for value in corners)
            crop = image[top:bottom, left:right]
            if min(crop.shape[:2]) < _LEAST_PX:
                continue
            if found.findtext("name") == "RBC":
                reds.append(crop)
            elif found.findtext("name") == "WBC" and label and "," not in label:
                white.append(square(crop))
                names.append(label)
                groups.append(annotation.stem)
        if reds:
            red.append(square(reds[rng.integers(len(reds))]))
    return white, names, groups, red


def noise() -> list[Images]:
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 256, (_SIDE_PX, _SIDE_PX, 3), np.uint8) for _ in range(100)]
    return made[:50] + [np.asarray(cv2.GaussianBlur(one, (0, 0), 8), np.uint8) for one in made[50:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smears", type=Path, default=Path("../shared/data/bccd"))
    parser.add_argument("--hands", type=Path, default=Path("../shared/data/sign_digits/images"))
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--splits", type=int, default=50)
    asked = parser.parse_args()
    print_machine()
    if not asked.smears.is_dir():
        print(f"doubt: {asked.smears} is not there: nothing measured")
        return
    white, names, groups, red = cells(asked.smears)
    others = {"red cells": red, "noise": noise()}
    if asked.hands.is_dir():
        files = sorted(asked.hands.rglob("*.[jJ][pP][gG]"))[:100]
        others["hands"] = [square(decode(file.read_bytes())) for file in files]
    network = fc.FeatureExtractor(asked.model, weights=asked.weights, pooling="avg").fit()
    X = network.transform(np.stack(white)).astype(np.float64)
    elsewhere = {name: network.transform(np.stack(images)).astype(np.float64) for name, images in others.items()}
    classes, y = np.unique(names, return_inverse=True)
    _, of_group = np.unique(groups, return_inverse=True)
    auroc: dict[str, list[float]] = {name: [] for name in others}
    alarms, coverage, sizes, before, after, n_val = [], [], [], [], [], []
    seed = -1
    while len(alarms) < asked.splits:
        seed += 1
        rng = np.random.default_rng(seed)
        place = rng.permutation(of_group.max() + 1)[of_group] / (of_group.max() + 1)
        train, val, held = place < 0.5, (place >= 0.5) & (place < 0.75), place >= 0.75
        if len(np.unique(y[train])) < len(classes):
            continue  # the rarest class has no smear to be trained on
        head = fc.HeadClassifier(epochs=30, random_state=seed).fit(X[train], y[train])
        likeness = Likeness.of(X[train])
        doubt = Doubt.of(head.predict_proba(X[val]), y[val], groups=of_group[val], likeness=likeness, features=X[val])
        p = head.predict_proba(X[held])
        inside = doubt.sets(p, 0.9)
        coverage.append(float(inside[np.arange(len(p)), y[held]].mean()))
        sizes.append(float(inside.sum(axis=1).mean()))
        distances = doubt.distances_of(X[held])
        alarms.append(float(doubt.unlike(distances, 0.05).mean()))
        n_val.append(int(val.sum()))
        before.append(reliability(p, y[held])["calibration_error"])
        after.append(reliability(doubt.calibrated(p), y[held])["calibration_error"])
        for name, features in elsewhere.items():
            far = doubt.distances_of(features)
            truth = np.repeat([0, 1], [len(distances), len(far)])
            auroc[name].append(float(roc_auc_score(truth, np.concatenate([distances, far]))))
    print(f"{asked.model}: {len(X)} white cells of {len(classes)} classes, {np.mean(n_val):.0f} of them for validation")
    for name, found in auroc.items():
        print(f"AUROC of {name} ({len(others[name])}): {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    deviation = np.std(alarms) / np.sqrt(len(alarms))
    print(f"false alarms at 0.05: {np.mean(alarms):.3f} (mean of splits, standard error {deviation:.3f})")
    print(f"coverage at 0.9: {np.mean(coverage):.3f}, {np.mean(sizes):.2f} classes in a set")
    print(f"calibration error: {np.mean(before):.3f} before, {np.mean(after):.3f} after")


if __name__ == "__main__":
    main()
