"""Several labels an image, in one text: the labels sorted, with a separator between them.

The separator alone says that an image has none of the labels; "" says that nobody has labelled it. Where the separator
is "", an image has one label, and the text is it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

DEFAULT_SEPARATOR = ";"
_USUAL_SEPARATORS = (";", "|", ",", "+", "/", "&")


def labels_in(text: str, separator: str) -> tuple[str, ...]:
    """The labels of an image, sorted, each once."""
    if not separator:
        return (text,) if text else ()
    return tuple(sorted({label for part in text.split(separator) if (label := part.strip())}))


def joined(labels: Iterable[str], separator: str) -> str:
    """Labels of an image as one text; of none the separator alone."""
    return separator.join(sorted(set(labels))) or separator


def tidied(text: str, separator: str) -> str:
    """The same labels as `joined` writes them; "" stays, and so does all without a separator."""
    if not separator:
        return text
    return joined(labels_in(text, separator), separator) if text.strip() else ""


def rewritten(text: str, earlier: str, *, separator: str) -> str:
    """The same labels with another separator than the earlier one; with none they are one label."""
    labels = labels_in(text, earlier or separator)
    if not separator:
        return earlier.join(labels)
    return joined(labels, separator) if text else ""


def encoded(texts: Sequence[str], separator: str, *, classes: Sequence[str]) -> NDArray[np.int64]:
    """Class numbers (n,), or with a separator an indicator (n, classes) of 0 and 1; -1 where there is no label."""
    numbers = {label: number for number, label in enumerate(classes)}
    if not separator:
        return np.array([numbers.get(text, -1) for text in texts], np.int64)
    found = np.zeros((len(texts), len(classes)), np.int64)
    for row, text in zip(found, texts, strict=True):
        if not text:
            row[:] = -1
        row[[numbers[label] for label in labels_in(text, separator) if label in numbers]] = 1
    return found


def without_labels(text: str, excluded: Collection[str], *, separator: str) -> str | None:
    """The labels of an image without some; None where it has one label, and that is one of them."""
    if not separator:
        return None if text in excluded else text
    return joined(set(labels_in(text, separator)) - set(excluded), separator) if text else ""


def likely_separator(labels: Iterable[str]) -> str:
    """What may stand between several labels of an image, or "".

    A semicolon or bar in a label is enough; of what names have in them too, a part that is found in another text.
    """
    texts = set(labels)
    for separator in _USUAL_SEPARATORS:
        lists = [parts for text in texts if len(parts := labels_in(text, separator)) > 1]
        times = Counter(part for text in texts for part in labels_in(text, separator))
        if lists and (separator in ";|" or any(times[part] > 1 for parts in lists for part in parts)):
            return separator
    return ""
