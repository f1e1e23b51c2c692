"""Tensors in Ascend's private layouts: their contents as plain bytes, and back.

Owns the one fact about an NPU that the rest may not forget: a tensor that was cast to FRACTAL_NZ
keeps its shape and strides while its memory is in 16 x 32 byte fractals, padded. torch_npu's `view`
of such a tensor aliases that memory without converting it, and `as_strided` converts into a copy
("don't perform inplace operations on the returned value"): neither is the contents, and what is
written to either is wrong or lost. W8A8 and W4A8 weights are kept so.

So contents are read through a cast to the base format. They are written by making, ahead of the
commit, a tensor of the same shape, dtype and format, which `copy_` then brings over as one copy of
memory: the very operation by which vllm-ascend itself replaces an expert.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from eplbd.worker.torch_experts import PlainImages

BASE_FORMATS = frozenset({-1, 0, 1, 2, 27, 30})
"""ACL_FORMAT_UNDEFINED, _NCHW, _NHWC, _ND, _NDHWC and _NCDHW: memory is contents."""

_ND = 2


class Npu(Protocol):
    """The functions of `torch_npu` that know formats."""

    def get_npu_format(self, tensor: Tensor) -> int:
        """Number of the tensor's format."""
        ...

    def npu_format_cast(self, tensor: Tensor, acl_format: int) -> Tensor:
        """Return a tensor of the same contents in another format."""
        ...


class NpuImages:
    """See `Images`; on tensors in base formats this is `PlainImages`."""

    def __init__(self, npu: Npu) -> None:
        self._npu, self._plain = npu, PlainImages()

    def is_private(self, tensor: Tensor) -> bool:
        """Whether memory is something else than contents."""
        return self._npu.get_npu_format(tensor) not in BASE_FORMATS

    def read(self, tensor: Tensor) -> Tensor:
        """See `Images`."""
        if not self.is_private(tensor):
            return self._plain.read(tensor)
        return self._plain.read(self._npu.npu_format_cast(tensor.detach(), _ND).contiguous())

    def write(self, tensor: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Images`."""
        if not self.is_private(tensor):
            return self._plain.write(tensor, image)
        # Cloned: the cast wants memory of its own, not a window into a staging buffer.
        contents = image.clone().view(tensor.dtype).view(tensor.shape)
        acl_format = self._npu.get_npu_format(tensor)
        return tensor.detach(), self._npu.npu_format_cast(contents, acl_format)


def memory_of(tensor: Tensor) -> Tensor:
    """Return the view of a stacked tensor in which each slot is one run of memory, if there is one.

    tensor: `[slots, ...]`. Kernels take some weights transposed, as views of memory that was not
    moved; the slots of such a view are strided, those of the memory are not.
    """
    order = sorted(range(1, tensor.ndim), key=tensor.stride().__getitem__, reverse=True)
    straight = tensor.permute(0, *order)
    return straight if straight.is_contiguous() else tensor
