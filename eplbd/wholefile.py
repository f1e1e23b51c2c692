"""Files that are there whole or not at all: written beside their place, then renamed into it.

Owns the draft, its way to the disk and its removal. Must not know what is written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A draft that takes the place of `path` when the block ends, once it is on the disk.

    Where the block or the disk fails, what was there is still there, and the draft is gone. The
    draft is called as the file, with `.new` behind it. Raises OSError.
    """
    draft = path.with_name(f"{path.name}.new")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        # Half a draft is worth nothing, and a full disk wants the room back.
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
