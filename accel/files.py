"""Files that are written whole or not at all, and targets that are proved before a long run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def writable(folder: Path) -> Path:
    """Make `folder` if need be, and prove that files can be written to it.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "probe", keep=False) as probe:
        probe.touch()
    return folder


def writable_file(path: Path) -> Path:
    """Prove that `path` can be written, and make its folder if need be; nothing in it changes.

    Raises:
        OSError: it cannot, or it is a directory.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if path.is_file() or not path.exists():
        writable(path.resolve().parent)
    return path


@contextmanager
def atomic(path: Path, keep: bool = True) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` on leaving without an exception.

    After an exception or an interrupt nothing is left, and an older file stays as it was.
    """
    part = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield part
        if keep:
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write `text` whole or not at all; a link's target, and a device as it is, are written to."""
    if path.exists() and not path.is_file():
        path.write_text(text)
    else:
        with atomic(path.resolve()) as part:
            part.write_text(text)
    return path
