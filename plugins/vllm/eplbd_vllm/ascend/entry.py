"""How a worker of vllm-ascend is joined: which generation it is, and whether that is known.

Owns the decision and its sentences. Imports neither torch nor the engine before a worker asks.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, cast

from eplbd_vllm.ascend.engine import Generation, of_release

if TYPE_CHECKING:
    from eplbd_vllm.ascend.engine import Worker
    from eplbd_vllm.hooks import Visitor
    from eplbd_vllm.settings import Settings

DISTRIBUTION = "vllm-ascend"


def installed() -> str:
    """Version of vllm-ascend; empty where there is none."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return ""


def refusal(*, unverified: bool) -> str:
    """Return why this release is refused; empty if it is not."""
    found = installed()
    if not found:
        return "this NPU is not served by vllm-ascend: there is no adapter for it"
    return of_release(found, unverified=unverified)


def generation_of(worker: Worker) -> Generation | None:
    """Which balancer the worker was started with; None for none."""
    runner = worker.model_runner
    if getattr(runner, "dynamic_eplb", False):
        return Generation.V1
    parallel = worker.vllm_config.parallel_config
    return Generation.V2 if getattr(parallel, "enable_eplb", False) else None


def invite(npu_worker: object, settings: Settings) -> tuple[Visitor | None, str]:
    """Return the guest of a worker whose model was loaded, or why there can be none.

    npu_worker: vllm-ascend's `NPUWorker`, whatever vLLM's own workers look like.
    """
    worker = cast("Worker", npu_worker)
    match generation_of(worker):
        case None:
            return None, (
                "vllm-ascend has no slots to move experts in: start it with "
                '--enable-expert-parallel and --additional-config \'{"eplb_config": '
                '{"dynamic_eplb": true, "num_redundant_experts": N}}\', and DYNAMIC_EPLB=true'
            )
        case Generation.V2:
            return None, (
                "model runner V2 of vllm-ascend reads routing tables that no release could be "
                "tried with: start it with model runner V1 and dynamic_eplb"
            )
        case Generation.V1:
            pass
    from eplbd_vllm.ascend.torch_engine import guest_of

    guest = guest_of(worker, settings)
    reason = guest.attach()
    return (None, reason) if reason else (guest, "")
