"""The real vllm-ascend, as the package index has it: fetched once, checked, unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

NAME = "vllm_ascend-0.23.0.post1"
SHA256 = "a3b9f4a5dd7aa50c37e03d1f35937c4ae5aeacc49b734cac74d59ce5757738e1"
DOWNLOAD_S = 240.0
"""15 MB, and pip has the source archive describe itself; twenty seconds."""


def fetched(folder: Path) -> Path:
    """The unpacked source archive below `folder`; skips the test where it cannot be had."""
    unpacked = folder / NAME
    if not (unpacked / "vllm_ascend" / "__init__.py").is_file():
        _download(folder)
        with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return unpacked


def _download(folder: Path) -> None:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"vllm-ascend=={NAME.rpartition('-')[2]} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
    command += ["--no-build-isolation", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
    # So that it describes itself without a device's compiler.
    environment = {**os.environ, "COMPILE_CUSTOM_KERNELS": "0", "SOC_VERSION": "ascend910b1"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{NAME} did not come from the package index within {DOWNLOAD_S} s")
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.strip()]
        assert "do not match the hashes" not in done.stderr, done.stderr
        pytest.skip(f"{NAME} cannot be had from the package index: {told[-1] if told else '?'}")
