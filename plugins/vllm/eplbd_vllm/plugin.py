"""The entry point: what vLLM calls in each of its processes before it reads its configuration.

Owns the decision whether to do anything, and the promise that a fault of ours is one line in the
log and plain serving. Opens nothing: a worker's guest does, once a model was loaded. Called several
times in one process and in processes that never load a model.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from eplbd_vllm import conditions, hooks
from eplbd_vllm.ascend import entry as ascend
from eplbd_vllm.faults import sentence
from eplbd_vllm.settings import disabled, from_environment

if TYPE_CHECKING:
    from eplbd_vllm.hooks import Visitor
    from eplbd_vllm.upstream import MoeModel, Worker

log = logging.getLogger("vllm.eplbd")

_PLAIN = "eplbd: serving without it: %s"


def register() -> None:
    """Prepare this process; the entry point in `vllm.general_plugins`."""
    if disabled(os.environ):
        return
    try:
        _register()
    except Exception as error:  # noqa: BLE001 - a supervisor: the engine serves without us
        log.warning(_PLAIN, sentence(error))


def _register() -> None:
    import vllm
    from vllm.platforms import current_platform
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    unverified = os.environ.get(conditions.UNVERIFIED, "") == "1"
    if current_platform.device_type == "npu":
        refused = ascend.refusal(unverified=unverified)
    else:
        refused = conditions.of_release(vllm.__version__, unverified=unverified)
    if refused:
        log.warning(_PLAIN, refused)
        return
    _log_with(logging.getLogger("vllm"))
    if current_platform.is_cpu():
        from eplbd_vllm import torch_cpu_gaps

        filled = torch_cpu_gaps.fill()
        log.debug("gaps of vLLM %s on CPU filled: %s", vllm.__version__, ", ".join(filled))
    hooks.install(WorkerWrapperBase, invite)


def _log_with(engine: logging.Logger) -> None:
    """What the agent's threads say belongs into the engine's log, and there once."""
    ours = logging.getLogger("eplbd")
    for handler in engine.handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
    ours.setLevel(engine.level)
    ours.propagate = not ours.handlers


def invite(worker: Worker) -> Visitor | None:
    """Return the guest of a worker whose model was loaded; None where there can be none."""
    try:
        return _invite(worker)
    except Exception as error:  # noqa: BLE001 - a supervisor: the engine serves without us
        _say(worker, sentence(error))
        return None


def _invite(worker: Worker) -> Visitor | None:
    from vllm.platforms import current_platform

    if current_platform.device_type == "npu":
        visitor, reason = ascend.invite(worker, from_environment(os.environ))
        if reason:
            _say(worker, reason)
        return visitor
    from vllm.model_executor.models.interfaces import (
        get_mixture_of_experts_model,
    )

    model: MoeModel | None = get_mixture_of_experts_model(worker.get_model())
    if model is not None and current_platform.is_cpu():
        from eplbd_vllm import torch_cpu_gaps

        torch_cpu_gaps.give_state(worker, model)
    reason = conditions.of_configuration(worker.vllm_config, model)
    if reason or model is None:
        _say(worker, reason)
        return None
    from vllm.distributed.parallel_state import get_ep_group

    from eplbd_vllm.torch_upstream import guest_of

    settings = from_environment(os.environ)
    guest = guest_of(worker, model, settings, get_ep_group())
    reason = guest.attach()
    if reason:
        _say(worker, reason)
        return None
    return guest


def _say(worker: Worker, reason: str) -> None:
    """One line per engine, not one per rank."""
    if worker.rank == 0 and worker.vllm_config.parallel_config.data_parallel_rank == 0:
        log.warning(_PLAIN, reason)
