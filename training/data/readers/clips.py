# SPDX-License-Identifier: Apache-2.0
"""Where a data set keeps the clip that a row names: as a file, under another folder, or in an archive."""

from __future__ import annotations

import itertools
import os
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from .. import archive
from ..media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaError
from ..problems import FieldErrors, Report
from ..schema import Frames, Media, Video, path_errors

T = TypeVar("T")

# The released AV clips are called <id>.camera_front_wide_120fov.mp4, their rows <id>.mp4.
_AV_VIEW = ".camera_front_wide_120fov"
_SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)


class Clips:
    """The media files of one folder of a data set; listed once, archives only when a file is not beside them.

    Args:
        root: the data set.
        folder: in which rows' paths start; ``root`` or a folder in it.
        report: for archives that cannot be read.
    """

    def __init__(self, root: Path, folder: Path, report: Report) -> None:
        self._root, self._folder, self._report = root, folder, report
        self._files: dict[str, list[Path]] | None = None
        self._members: dict[str, list[tuple[Path, str]]] | None = None

    def media(self, name: str, field: str) -> Media:
        """The clip or picture that a row calls ``name``; where there is none, its path all the same.

        Raises:
            FieldErrors: the name leads out of the data set, or several files could be meant.
        """
        path, member = self.find(name, field)
        if not (member or path).lower().endswith(IMAGE_SUFFIXES):
            return Video(path, member)
        if member:
            raise FieldErrors([(field, f"{name!r} lies in an archive; unpack pictures: `tar -xf {path}`")])
        return Frames((path,), (0,))

    def find(self, name: str, field: str) -> tuple[str, str]:
        """(path relative to the data set, member of the archive at that path or "").

        Raises:
            FieldErrors: see ``media``; or there can be no file of that name.
        """
        errors = [(field, what) for what in path_errors(name)]
        if errors:
            raise FieldErrors(errors)
        if self._is_beside(name, field):
            return self._relative(self._folder / name), ""
        found = self._best(name, field, [(path, self._relative(path)) for path in self._listed(name)])
        # Where the row's own folder is there, a file of that name in another one is another clip.
        beside = (self._folder / name).parent
        if found is not None and (
            not beside.is_dir()
            or found.is_relative_to(beside)
            or _shared_end(name, self._relative(found)) > 1
        ):
            return self._relative(found), ""
        inside = self._best(
            name,
            field,
            [((path, inner), self._place(name, path, inner)) for path, inner in self._archived(name)],
        )
        if inside is not None:
            return self._relative(inside[0]), inside[1]
        return self._relative(self._folder / name), ""

    def _is_beside(self, name: str, field: str) -> bool:
        """Whether the row's own path leads to a file; one too long for any is a problem of that row alone."""
        try:
            return (self._folder / name).is_file()
        except OSError as error:
            shown = f"{name[:40]!r}... of {len(name)} characters" if len(name) > 80 else repr(name)
            what = f"{shown} cannot be looked up ({error.strerror}): give the path of the file"
            raise FieldErrors([(field, what)]) from error

    def _best(self, name: str, field: str, candidates: list[tuple[T, str]]) -> T | None:
        """Of (candidate, its path) the one that shares most of the path's end with ``name``."""
        if not candidates:
            return None
        scored = sorted(
            ((_shared_end(name, shown), shown, found) for found, shown in candidates), key=_by_end
        )
        if len(scored) > 1 and scored[0][0] == scored[1][0]:
            both = f"{scored[0][1]} and {scored[1][1]}"
            raise FieldErrors(
                [(field, f"{name!r} could be {both}: give the path from the data set's folder")]
            )
        return scored[0][2]

    def _listed(self, name: str) -> list[Path]:
        if self._files is None:
            self._files = {}
            for folder, folders, files in os.walk(self._folder):
                folders.sort()
                for file in sorted(files):
                    if file.lower().endswith(_SUFFIXES):
                        _add(self._files, file, Path(folder) / file)
        return self._files.get(PurePosixPath(name).name, [])

    def _archived(self, name: str) -> list[tuple[Path, str]]:
        if self._members is None:
            self._members = {}
            found = {
                Path(folder) / file
                for folder, _, files in os.walk(self._folder)
                for file in files
                if archive.is_archive(Path(folder) / file)
            }
            # Of clips.tar.gz and the clips.tar that was made of it, the one of random access.
            for path in sorted(path for path in found if _unpacked(path) not in found - {path}):
                try:
                    for member, _ in archive.members(path):
                        if not list(path_errors(member)):
                            _add(self._members, PurePosixPath(member).name, (path, member))
                except MediaError as error:
                    self._report.add(path, 0, "", str(error))
        return self._members.get(PurePosixPath(name).name, [])

    def _place(self, name: str, path: Path, inner: str) -> str:
        """Of a member's own path and that beside its archive the one that is more like ``name``."""
        unpacked = (path.parent / inner).relative_to(self._root).as_posix()
        return max(inner, unpacked, key=lambda shown: _shared_end(name, shown))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _unpacked(path: Path) -> Path:
    """The plain archive that ``gunzip`` makes of a compressed one, beside it; of others the path itself."""
    name = path.name
    for suffix, plain in ((".tar.gz", ".tar"), (".tgz", ".tar")):
        if name.lower().endswith(suffix):
            return path.with_name(name[: -len(suffix)] + plain)
    return path


def _add(index: dict[str, list[T]], name: str, found: T) -> None:
    index.setdefault(name, []).append(found)
    if _AV_VIEW in name:
        index.setdefault(name.replace(_AV_VIEW, ""), []).append(found)


def _shared_end(a: str, b: str) -> int:
    pairs = zip(reversed(PurePosixPath(a).parts), reversed(PurePosixPath(b).parts), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _by_end(scored: tuple[int, str, Any]) -> tuple[int, str]:
    return -scored[0], scored[1]
