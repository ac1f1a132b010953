"""`StepUndo`: a step that is skipped leaves nothing behind."""

from torch import Tensor, nn

from conr_hf.training.objective.objective import Objective
from conr_hf.utils.snapshot import Snapshot


class StepUndo:
    """
    What a step changes before its gradients are used, as it is now: buffers of the model, such as the running
    statistics of batch norm, and the sums that smooth features and that are logged.

    Args:
        model (`nn.Module`): The model.
        objective ([`~conr_hf.training.objective.objective.Objective`]): What it minimises.
        loss (`torch.Tensor`): The sum of losses since they were last logged; it is added to in place.
    """

    def __init__(self, model: nn.Module, objective: Objective, loss: Tensor) -> None:
        self._tensors = Snapshot((*model.buffers(), loss))
        self._objective, self._sums = objective, objective.sums()

    def undo(self) -> None:
        """Puts it back."""
        self._tensors.restore()
        self._objective.put_back(self._sums)
