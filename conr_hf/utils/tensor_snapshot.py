"""`Snapshot`: tensors as they are now, to be put back."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Snapshot:
    """Copies of tensors that will be changed in place."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._copies = [(tensor, tensor.clone()) for tensor in tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the tensors back, in place."""
        for tensor, copy in self._copies:
            tensor.copy_(copy)
