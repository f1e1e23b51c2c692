"""Npz files of plain arrays, read strictly and written whole.

Owns the refusals that every format shares: no pickle, nothing damaged, nothing that would fill the
memory, no array missing or unknown. Must not know what the arrays mean.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from eplbd.errors import ConfigError
from eplbd.wholefile import replacing

MAX_BYTES = 16 << 30
"""Largest content of one file, unpacked. A few kilobytes of zeros can claim more than any memory
has."""

Arrays = dict[str, NDArray[np.generic]]


def fault(kind: str, path: Path, found: str, expected: str) -> ConfigError:
    """The one form of every refusal: which file, what is wrong with it, what was expected."""
    return ConfigError(f"{kind} {path}: {found}; expected {expected}")


def read_arrays(
    kind: str, path: Path, names: Collection[str], optional: Collection[str] = ()
) -> Arrays:
    """The arrays of an npz file, by name.

    Args:
        kind: what the file is called in errors.
        path: the file.
        names: arrays that it must hold.
        optional: arrays that it may hold; what is in neither is left unread.

    Raises:
        ConfigError: naming the file, what is wrong with it and what was expected.
    """
    # The file is opened here because numpy leaves it open where its contents are damaged.
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, NpzFile):
                raise fault(kind, path, "is a single array", "an npz file")
            missing = ", ".join(name for name in names if name not in archive)
            if missing:
                raise fault(kind, path, f"has no {missing}", f"the arrays {', '.join(names)}")
            _check_size(kind, path, archive.zip)
            wanted = [*names, *(name for name in optional if name in archive)]
            return {name: archive[name] for name in wanted}
    except FileNotFoundError:
        raise fault(kind, path, "does not exist", "an npz file") from None
    except (OSError, BadZipFile, EOFError, ValueError, MemoryError, zlib.error) as error:
        found = f"cannot be read ({error})"
        raise fault(kind, path, found, "an npz file of plain arrays") from error


def write_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> int:
    """Write an npz file so that it is there whole or not at all; returns its bytes.

    Raises OSError; the draft is gone then.
    """
    with replacing(path) as file:
        # numpy types its own keywords alike.
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
    return path.stat().st_size


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all. Raises OSError."""
    with replacing(path) as file:
        file.write(text.encode())


def _check_size(kind: str, path: Path, archive: ZipFile | None) -> None:
    size = sum(member.file_size for member in archive.infolist()) if archive else 0
    if size > MAX_BYTES:
        raise fault(kind, path, f"unpacks to {size} bytes", f"at most {MAX_BYTES}")
