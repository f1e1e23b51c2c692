"""Files of torch.save, read without running anything that is in them. The only place with torch.

Owns the restricted reading: torch's own unpickler for weights, which refuses every class but
tensors and plain containers. Must not know what a file means.
"""

from __future__ import annotations

import pickle  # for the name of its error; nothing is loaded with it
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eplbd.errors import ConfigError
from eplbd.wholefile import replacing

if TYPE_CHECKING:
    from types import ModuleType

PRIVATE = frozenset({"input_ids", "positions", "extend_seq_lens", "topk_ids_of_layer"})
"""Keys of a dump that hold what users wrote, or say something about it; never handed on."""

_SAFE_SINCE = (2, 6)
"""Before this release the restricted unpickler itself could be made to run code: CVE-2025-32434."""


def read_pt(name: str, path: Path) -> object:
    """The content, tensors as numpy arrays on the CPU, without the keys in `PRIVATE`.

    Raises ConfigError: no torch, no such file, damaged, or more than tensors and plain containers.
    """
    torch = _torch(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what counts is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{name} {path}: refused, nothing in it was run: it holds more than tensors, numbers "
            "and plain containers, or is damaged"
        ) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        MemoryError,
        AssertionError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{name} {path}: cannot be read as a file of torch.save ({reason})"
        ) from error
    return _plain(torch, name, path, content)


def write_pt(path: Path, content: Mapping[str, object]) -> None:
    """Write arrays as tensors, so that the file is there whole or not at all."""
    torch = _torch(path)
    tensors = {
        key: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for key, value in content.items()
    }
    with replacing(path) as file:
        torch.save(tensors, file)


def _plain(torch: ModuleType, name: str, path: Path, value: object) -> object:
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        try:
            array: np.ndarray = tensor.to_dense().contiguous().numpy()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise ConfigError(f"{name} {path}: holds a tensor of {tensor.dtype}") from error
        return array
    if isinstance(value, Mapping):
        return {
            key: _plain(torch, name, path, item)
            for key, item in value.items()
            if key not in PRIVATE
        }
    if isinstance(value, list | tuple):
        return [_plain(torch, name, path, item) for item in value]
    return value


def _torch(path: Path) -> ModuleType:
    try:
        import torch  # noqa: PLC0415  # optional: only .pt files need it
    except ImportError as error:
        raise ConfigError(
            f"{path}: a .pt file needs torch, which is not installed; pip install torch"
        ) from error
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < _SAFE_SINCE:
        raise ConfigError(
            f"{path}: torch {torch.__version__} cannot read .pt files safely (CVE-2025-32434); "
            "install 2.6 or newer"
        )
    return torch
