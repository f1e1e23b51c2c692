"""What vllm-ascend imports and this machine lacks: CANN's torch_npu, and vLLM.

Whatever is asked of such a module exists, and does nothing: a class that anything may derive from.
Real are only vllm-ascend's own sources, and what is spelled out here: the few functions of vLLM and
of torch_npu on whose results they depend, on CPU tensors. For a process of its own: nothing of this
may meet a real vLLM.
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LACKING = frozenset(
    {
        "acl", "cloudpickle", "compressed_tensors", "einops", "fastapi", "huggingface_hub",
        "mooncake", "pandas", "PIL", "pydantic", "ray", "regex", "requests", "safetensors", "scipy",
        "torch_npu", "torchair", "torchvision", "tqdm", "transformers", "triton", "vllm",
        "xgrammar",
    }
)  # fmt: skip
UNWANTED = ("vllm_ascend.patch",)
"""Of vllm-ascend itself: what rewrites vLLM."""

FRACTAL_NZ = 29
_ND = 2


Foreign = Any
"""Whatever one asks of a package that is not here."""


class _Anything(type):
    """Class of classes that have every attribute and can be called, derived from and indexed."""

    def __getattr__(cls, name: str) -> Foreign:
        if name.startswith("__"):
            raise AttributeError(name)
        return thing(name)

    def __or__(cls, _: object) -> Foreign:
        return cls

    def __ror__(cls, _: object) -> Foreign:
        return cls

    def __getitem__(cls, _: object) -> Foreign:
        return cls


def _accept(*_: object, **__: object) -> None:
    """Be made from anything."""


def _call(_: object, *arguments: object, **keywords: object) -> object:
    """As a decorator, return what is decorated."""
    if len(arguments) == 1 and not keywords and callable(arguments[0]):
        return arguments[0]
    return thing("result")()


def _attribute(_: object, name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    return thing(name)()


def thing(name: str) -> Foreign:
    """A class by that name."""
    return _Anything(name, (), {"__init__": _accept, "__call__": _call, "__getattr__": _attribute})


class StubModule(types.ModuleType):
    """A module that has everything."""

    def __getattr__(self, name: str) -> Foreign:
        if name.startswith("__"):
            raise AttributeError(name)
        made = thing(name)
        setattr(self, name, made)
        return made


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> ModuleSpec | None:
        lacking = fullname.partition(".")[0] in LACKING or fullname.startswith(UNWANTED)
        return ModuleSpec(fullname, self, is_package=True) if lacking else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = StubModule(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        for name, value in _SPELLED_OUT.get(module.__name__, {}).items():
            setattr(module, name, value)


class FractalNz(Tensor):
    """A tensor in the private layout: here, each matrix's bytes back to front.

    Its shape is that of its contents, its memory is not. A view of it is refused, as no view of a
    real one is what it seems.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Foreign:
        if getattr(func, "__name__", "") in {"view", "reshape", "as_strided", "flatten", "permute"}:
            raise RuntimeError("a tensor in a private format has no view")
        return super().__torch_function__(func, tuple(types), tuple(args), dict(kwargs or {}))  # type: ignore[no-untyped-call]


def _mirrored(tensor: Tensor) -> Tensor:
    """Each matrix's bytes back to front; twice is nothing."""
    flat = tensor.contiguous().view(torch.uint8).reshape(*tensor.shape[:-2], -1)
    return flat.flip(-1).contiguous().view(tensor.dtype).reshape(tensor.shape)


def npu_format_cast(tensor: Tensor, acl_format: int) -> Tensor:
    """See torch_npu."""
    plain = tensor.as_subclass(Tensor)
    if (acl_format == FRACTAL_NZ) == isinstance(tensor, FractalNz):
        return tensor
    return _mirrored(plain).as_subclass(FractalNz if acl_format == FRACTAL_NZ else Tensor)


def get_npu_format(tensor: Tensor) -> int:
    """See torch_npu."""
    return FRACTAL_NZ if isinstance(tensor, FractalNz) else _ND


class FusedMoE(torch.nn.Module):
    """Of vLLM's what `AscendFusedMoE` reads of it."""

    def __init__(self, **given: Foreign) -> None:
        super().__init__()
        for name, value in given["upstream"].items():
            setattr(self, name, value)


class _MoeMethod:
    """`FusedMoEMethodBase`."""

    supports_eplb = True

    def __init__(self, moe: object = None) -> None:
        self.moe = moe

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Nothing."""


class UnquantizedFusedMoEMethod(_MoeMethod):
    """vLLM's weights of unquantised experts."""

    def _maybe_pad_weight(self, weight: Tensor) -> Tensor:
        return weight

    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **_: object,
    ) -> None:
        """Make w13 and w2."""
        size = intermediate_size_per_partition
        shapes = {
            "w13_weight": (num_experts, 2 * size, hidden_size),
            "w2_weight": (num_experts, hidden_size, size),
        }
        for name, shape in shapes.items():
            weight = torch.empty(shape, dtype=params_dtype)
            layer.register_parameter(name, torch.nn.Parameter(weight, requires_grad=False))


class _Logger(logging.Logger):
    """vLLM's has these as well."""

    def info_once(self, *_: object, **__: object) -> None:
        """Nothing."""

    warning_once = debug_once = info_once


CONTEXT = types.SimpleNamespace(
    in_profile_run=False, eplb_heat_collection_status=True, input_ids=None, all_moe_layers=None
)
"""vLLM's forward context."""

CURRENT = types.SimpleNamespace()
"""vLLM's current configuration, and the groups of this rank."""

_LAYER = "vllm.model_executor.layers.fused_moe"
_SPELLED_OUT: dict[str, dict[str, Any]] = {
    "vllm": {"__version__": "0.23.0"},
    "vllm.envs": {"VLLM_USE_V2_MODEL_RUNNER": False},
    "vllm.logger": {"logger": _Logger("vllm"), "init_logger": _Logger},
    "vllm.config": {"get_current_vllm_config": lambda: CURRENT.config},
    "vllm.forward_context": {"get_forward_context": lambda: CONTEXT},
    "vllm.distributed": {
        "get_ep_group": lambda: CURRENT.group,
        "get_tp_group": lambda: CURRENT.group,
        "get_dp_group": lambda: CURRENT.group,
        "get_tensor_model_parallel_world_size": lambda: 1,
    },
    "vllm.distributed.parallel_state": {"get_ep_group": lambda: CURRENT.group},
    f"{_LAYER}.layer": {
        "FusedMoE": FusedMoE,
        "UnquantizedFusedMoEMethod": UnquantizedFusedMoEMethod,
    },
    _LAYER: {"FusedMoEMethodBase": _MoeMethod},
    "torch_npu": {
        "npu_format_cast": npu_format_cast,
        "get_npu_format": get_npu_format,
        "npu_convert_weight_to_int4pack": lambda weight: weight[:, ::8].contiguous(),
    },
    "scipy": {"__version__": "1.15.0"},
}


def install(source: Path) -> None:
    """Let `vllm_ascend` be imported from `source`."""
    sys.meta_path.insert(0, _Finder())
    sys.path.insert(0, str(source))
    built = types.ModuleType("vllm_ascend._build_info")
    vars(built)["__device_type__"] = "A3"
    sys.modules[built.__name__] = built
    npu = StubModule("torch.npu")
    vars(npu)["empty_cache"] = _accept
    vars(torch)["npu"] = npu
    torch.Tensor.npu = lambda self: self  # type: ignore[attr-defined]
