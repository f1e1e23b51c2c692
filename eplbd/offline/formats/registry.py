"""Which formats there are, and which one a file has.

Owns the list, the guess from name and content, and the refusal where a guess would be a gamble.
Must not know what is inside a format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eplbd.errors import ConfigError
from eplbd.offline.formats import ascend, deepseek, native, omni, sglang, trtllm
from eplbd.offline.formats.content import Kind, Reader, Writer, read_text
from eplbd.offline.formats.torch_files import read_pt
from eplbd.sources import near
from eplbd.traces.recording import META


@dataclass(frozen=True, slots=True)
class Format:
    """One format. suffixes: of its files; empty for a directory. says: one line for people."""

    name: str
    kind: Kind
    suffixes: tuple[str, ...]
    says: str
    read: Reader | None = None
    write: Writer | None = None


FORMATS = {
    one.name: one
    for one in (
        Format(
            "trace",
            "trace",
            (".npz",),
            "eplbd's trace in one file",
            native.read_trace,
            native.write_trace,
        ),
        Format(
            "recording",
            "trace",
            (),
            "what `mode = record` writes: a directory with meta.json and chunks",
            native.read_recording,
        ),
        Format(
            "placement",
            "placement",
            (".npz",),
            "eplbd's placement in one file",
            native.read_placement,
            native.write_placement,
        ),
        Format(
            ascend.NAME,
            "placement",
            (".json",),
            "vllm-ascend's expert map (`expert_map_path`)",
            ascend.read,
            ascend.write,
        ),
        Format(
            sglang.STAT,
            "trace",
            (".pt",),
            "SGLang's recorder mode `stat`; needs torch and --topk",
            sglang.read_stat,
            sglang.write_stat,
        ),
        Format(
            sglang.PASSES,
            "trace",
            (".pt", ""),
            "SGLang's recorder modes `per_pass` and `per_token`, a file or a directory of all "
            "ranks'; needs torch and --topk",
            sglang.read_passes,
        ),
        Format(
            sglang.LOCATION,
            "placement",
            (".json", ".pt"),
            "SGLang's `--init-expert-location`",
            None,
            sglang.write_location,
        ),
        Format(
            trtllm.MAP,
            "placement",
            (".yaml", ".yml"),
            "TensorRT-LLM's load balancer; needs --ranks to read",
            trtllm.read_map,
            trtllm.write_map,
        ),
        Format(
            trtllm.STATISTICS,
            "trace",
            (),
            "TensorRT-LLM's statistics, a directory with meta_info.json",
            trtllm.read_statistics,
        ),
        Format(
            deepseek.NAME,
            "trace",
            (".pt", ".npy"),
            "a load tensor [layers, experts] as DeepSeek's EPLB takes it; needs --topk",
            deepseek.read,
        ),
        Format(
            omni.NAME,
            "placement",
            (".npy",),
            "OmniPlacement's 0/1 array; writing loses the order of slots",
            omni.read,
            omni.write,
        ),
    )
}


def source(path: Path, named: str | None) -> Format:
    """The format to read `path` with: the named one, or what name and content show.

    Raises ConfigError: unknown, only written, or not to be told.
    """
    name = named or _shown(path)
    if name is None:
        known = ", ".join(one.name for one in FORMATS.values() if one.read)
        raise ConfigError(f"{path}: its format does not show; give --from, one of {known}")
    chosen = _named(name)
    if chosen.read is None:
        raise ConfigError(f"format {chosen.name} is only written, not read")
    return chosen


def target(path: Path, named: str | None, kind: Kind) -> Format:
    """The format to write `path` in: the named one, or the only one that its suffix allows.

    Raises ConfigError: unknown, only read, of the other kind, or several would do.
    """
    fitting = [
        one.name
        for one in FORMATS.values()
        if one.write and one.kind == kind and path.suffix in one.suffixes
    ]
    if named is None and len(fitting) != 1:
        known = fitting or [one.name for one in FORMATS.values() if one.write and one.kind == kind]
        raise ConfigError(f"{path}: in which format? Give --to, one of {', '.join(known)}")
    chosen = _named(named or fitting[0])
    if chosen.write is None:
        raise ConfigError(f"format {chosen.name} is only read, not written")
    if chosen.kind != kind:
        raise ConfigError(f"format {chosen.name} holds a {chosen.kind}; the input is a {kind}")
    return chosen


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(
            f"unknown format `{name}`{near(name, FORMATS)}; known: {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def _shown(path: Path) -> str | None:
    """The name of the format that `path` shows, if it shows any."""
    looks = {
        ".npz": _archive,
        ".json": _json,
        ".yaml": lambda _: trtllm.MAP,
        ".yml": lambda _: trtllm.MAP,
        ".npy": _single,
        ".pt": _torch,
    }
    look = _directory if path.is_dir() else looks.get(path.suffix, lambda _: None)
    return look(path)


def _json(path: Path) -> str | None:
    return ascend.NAME if '"layer_list"' in read_text("input", path) else None


def _directory(path: Path) -> str | None:
    if (path / META).exists():
        return "recording"
    if (path / "meta_info.json").exists():
        return trtllm.STATISTICS
    return sglang.PASSES if any(path.glob("*.pt")) else None


def _archive(path: Path) -> str | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = set(archive.files)
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected an npz file") from error
    return "trace" if "heat" in names else "placement" if "slots" in names else None


def _single(path: Path) -> str | None:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected an npy file") from error
    return {2: deepseek.NAME, 3: omni.NAME}.get(array.ndim)


def _torch(path: Path) -> str | None:
    found = read_pt("input", path)
    if isinstance(found, np.ndarray):
        return deepseek.NAME
    keys = set(found) if isinstance(found, Mapping) else set()
    return sglang.STAT if "logical_count" in keys else sglang.PASSES if "records" in keys else None
