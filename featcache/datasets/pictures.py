"""The pictures of a folder by name: which of them a list or an annotation means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from featcache.datasets.annotations import Annotated
from featcache.datasets.candidates import composed


class Pictures:
    """Pictures below a folder. Names compare in the Unicode form NFC; one without an ending means any."""

    def __init__(self, folder: Path, paths: Iterable[Path]) -> None:
        self._folder = folder
        self.paths = list(paths)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            for key in {composed(path.name), composed(path.stem)}:
                self._by_name[key].append(path)

    def named(self, name: str) -> list[Path]:
        """All that a name may mean: 'a/1.png', '1.png' or '1'; folders that it names must be those of the picture."""
        parts = [part for part in PurePosixPath(composed(name.strip().replace("\\", "/"))).parts if part != "/"]
        if not parts:
            return []
        found = self._by_name.get(parts[-1], [])
        exact = [path for path in found if composed(path.name) == parts[-1]] or found
        inside = [path for path in exact if _folders(path)[-len(parts) + 1 :] == parts[:-1]] if parts[1:] else []
        return inside or exact

    def annotated_by(self, annotation: Annotated) -> Sequence[Path]:
        """The pictures that an annotation may be of: those of its own name come first, then the one it names."""
        if annotation.of is not None:
            return [annotation.of]
        if annotation.is_one_of_many:
            return self.named(annotation.picture)
        found = self._nearest(self.named(annotation.file.stem), annotation.file)
        if len(found) > 1:
            found = [path for path in found if composed(path.name) == composed(annotation.picture)] or found
        return found or self._nearest(self.named(annotation.picture), annotation.file)

    def _nearest(self, found: Sequence[Path], file: Path) -> Sequence[Path]:
        """Those that lie beside the annotation; or in the folder of the same place among the pictures' folders."""
        place = self._place(file)
        closer: tuple[Callable[[Path], bool], ...] = (
            lambda path: path.parent == file.parent,
            lambda path: self._place(path)[1:] == place[1:],
            lambda path: bool(place[1:]) and self._place(path)[-1:] == place[-1:],
        )
        for is_close in closer if len(found) > 1 else ():
            if near := [path for path in found if is_close(path)]:
                return near
        return found

    def _place(self, path: Path) -> list[str]:
        return [composed(part) for part in path.relative_to(self._folder).parts[:-1]]


def _folders(path: Path) -> list[str]:
    return [composed(part) for part in path.parts[:-1]]
