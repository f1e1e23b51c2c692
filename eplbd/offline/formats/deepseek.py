"""The load tensor that DeepSeek's EPLB takes, `[layers, experts]`, in a `.pt` or `.npy` file."""

from __future__ import annotations

from pathlib import Path

from eplbd.offline.formats.content import Content, Context
from eplbd.offline.formats.native import one_window, read_load
from eplbd.offline.formats.torch_files import read_pt

NAME = "deepseek-load"


def read(path: Path, context: Context) -> Content:
    """A trace of one window."""
    if path.suffix == ".npy":
        return read_load(path, context)
    return one_window(NAME, path, read_pt(NAME, path), context)
