"""Checksums of tensors, computed where the tensors are.

Owns the arithmetic. It must not know experts, transfers or when a checksum is compared.

The bytes of a tensor, padded with zeros, form a matrix of 64-bit words, 1,024 to a row; the short
rest is a row of its own. Its row sums R and column sums C (modulo 2**64) are folded into five
words: the total of R, and for R and for C the sums over i of (i+1) * low half and (i+1) * high half
of element i. Detected for certain are

- any change within one 64-bit word: the total moves;
- any exchange of two unequal words, half words or bytes: the total moves, or the exchange adds d to
  one word and takes d from another. Then R changes in two places, or else (both in one row) C does;
  there the low halves change by a and b, neither 0, with a = -b or both of one sign; where d is a
  multiple of 2**32, the high halves do. Weighted with two different positions they never cancel.

Two reductions and no temporary of the tensor's size: the textbook sum(x), sum(i * x) over 32-bit
words needs one to widen the words, and measured a tenth of the speed on a CPU. A 32-bit
accumulator (zlib.crc32) would have to leave the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORDS = 5
"""int64 per checksum."""

_COLUMNS = 1024
_ROW_BYTES = _COLUMNS * 8
_PIECE_ROWS = 128
_HALF = 0xFFFF_FFFF


class Checksums:
    """Checksums of one set of tensors, of `sizes` bytes each, on `device`.

    Keeps its temporaries; for one thread, on one stream at a time. unaligned: some tensor may start
    at no multiple of eight bytes; such tensors go through a temporary of at most 1 MiB.
    """

    def __init__(
        self, sizes: tuple[int, ...], device: torch.device, *, unaligned: bool = True
    ) -> None:
        self._rows = [size // _ROW_BYTES for size in sizes]
        width = max([*self._rows, _COLUMNS - 1]) + 1
        count = len(sizes)
        # [tensor, R or C, element]; the short rest's row sum is the last element of R.
        self._sums = torch.zeros((count, 2, width), dtype=torch.int64, device=device)
        self._rests = torch.zeros((count, _ROW_BYTES), dtype=torch.uint8, device=device)
        self._weights = torch.arange(1, width + 1, dtype=torch.int64, device=device)
        rows = min(_PIECE_ROWS if unaligned else 1, max(self._rows))
        self._piece = torch.empty(rows * _ROW_BYTES, dtype=torch.uint8, device=device)

    @property
    def nbytes(self) -> int:
        """Memory of the temporaries."""
        kept = (self._sums, self._rests, self._weights, self._piece)
        return sum(tensor.nbytes for tensor in kept)

    def compute(self, parts: list[Tensor]) -> Tensor:
        """Return `[tensors, WORDS]` int64 for `parts`, flat uint8 tensors of the sizes given."""
        self._sums.zero_()
        self._rests.zero_()
        for index, part in enumerate(parts):
            body = self._rows[index] * _ROW_BYTES
            if body:
                self._add_rows(index, part[:body])
            if body < part.numel():
                self._rests[index, : part.numel() - body].copy_(part[body:])
        rests = self._rests.view(torch.int64)
        self._sums[:, 1, :_COLUMNS] += rests
        self._sums[:, 0, -1] = rests.sum(1)
        low = (self._sums & _HALF).mul_(self._weights).sum(2)
        high = ((self._sums >> 32) & _HALF).mul_(self._weights).sum(2)
        return torch.cat([self._sums[:, 0].sum(1, keepdim=True), low, high], dim=1)

    def _add_rows(self, index: int, body: Tensor) -> None:
        """Sum whole rows; a tensor that does not start at a multiple of eight goes by pieces."""
        # torch asks for the offset in the storage, the processor for the address.
        aligned = body.storage_offset() % 8 == 0 and body.data_ptr() % 8 == 0
        step = body.numel() if aligned else self._piece.numel()
        for start in range(0, body.numel(), step):
            piece = body[start : start + step]
            if not aligned:
                piece = self._piece[: piece.numel()].copy_(piece)
            words = piece.view(torch.int64).view(-1, _COLUMNS)
            row = start // _ROW_BYTES
            torch.sum(words, 1, out=self._sums[index, 0, row : row + len(words)])
            self._sums[index, 1, :_COLUMNS] += words.sum(0)
