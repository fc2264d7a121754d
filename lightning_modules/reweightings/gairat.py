"""GAIRAT: weights by the distance to the decision boundary.

Zhang, Zhu, Niu, Han, Sugiyama, Kankanhalli. "Geometry-aware Instance-reweighted Adversarial Training". ICLR 2021, arXiv
2010.01736. Official code: zjfheart/Geometry-aware-Instance-reweighted-Adversarial-Training.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from kernels.batch import Batch, Output, Step
from lightning_modules.part import Context
from lightning_modules.reweightings.base import BatchWeights

Function = Literal["tanh", "sigmoid", "discrete"]


class GAIRAT(BatchWeights):
    """``w_i / sum_j w_j``: samples that the attack flips sooner lie nearer to the boundary, and weigh more.

    kappa_i, ``Batch.survived_steps``, is at the start of how many of the attack's K steps the sample was still
    classified right. ``w = (1 + tanh(lam + 5 (K/2 - kappa) / (K/2))) / 2`` (see ``gairat_weights``).

    Such weights raise the accuracy under PGD, which they are made from, and not that under AutoAttack; the paper's
    authors say that the gain is lost under other attacks without extra data. Report AutoAttack beside it.

    Args:
        function: ``tanh``; the official code has ``sigmoid`` and ``discrete`` as well.
        lam: lambda; higher is closer to uniform weights.
        steps: K, which must be that of the attack; None takes it from there.
        start_epoch: 0-based; uniform before it. Officially epoch 60 of 120.
    """

    needs = frozenset({"survived_steps"})

    def __init__(
        self,
        *,
        function: Literal["tanh", "sigmoid", "discrete"] = "tanh",
        lam: Annotated[float, "finite"] = -1.0,
        steps: Annotated[int, "x >= 1"] | None = None,
        start_epoch: Annotated[int, "x >= 0"] = 0,
    ) -> None:
        super().__init__(start_epoch=start_epoch)
        self.function, self.lam, self.steps = function, lam, steps

    def setup(self, context: Context) -> None:
        """Take the number of steps from the attack, or compare it.

        Raises:
            ValueError: there are two different numbers, or none.
        """
        super().setup(context)
        attacks = context.attack_steps
        if self.steps is None and not attacks:
            raise ValueError(
                f"reweighting.steps=null takes the number of steps from the attack, which is {attacks}; set "
                "attack.steps to at least 1, or reweighting.steps where no attack is composed with it"
            )
        if self.steps is not None and attacks not in (None, self.steps):
            raise ValueError(
                f"reweighting.steps={self.steps} differs from the {attacks} steps of the attack, which kappa counts; "
                f"set it to {attacks}, or to null, which takes it from there"
            )
        self.steps = self.steps or attacks

    def weigh(self, losses: dict[str, Tensor], outputs: dict[str, Output], batch: Batch, step: Step) -> Tensor:
        if batch.survived_steps is None or self.steps is None:
            raise ValueError(
                "GAIRAT reads how many steps of an attack each sample withstood (Batch.survived_steps), and how many "
                "there were (steps, or setup); one of them is missing"
            )
        weight_B = gairat_weights(batch.survived_steps, self.steps, self.lam, self.function)
        return weight_B / len(weight_B)


def gairat_weights(survived_B: Tensor, steps: int, lam: float = -1.0, function: Function = "tanh") -> Tensor:
    """Weights of mean 1, from the number of attack steps that each sample withstood.

    ``tanh``: ``(1 + tanh(a)) / 2`` and ``sigmoid``: ``sigmoid(a)``, both with ``a = lam + 5 (K/2 - kappa) / (K/2)``;
    ``discrete``: ``1 - kappa / (K + 1)``. Then divided by the mean of the batch. The official code rounds K/2 down,
    which differs for odd K; here it is K/2, as in the paper.

    Args:
        survived_B: kappa, ``[B]`` in 0 .. K; B >= 1.
        steps: K.
        lam: lambda; infinity is uniform, which is plain adversarial training.
        function: of the three.

    Returns:
        ``[B]`` in float64.
    """
    kappa_B = survived_B.double()
    if function == "discrete":
        weight_B = 1 - kappa_B / (steps + 1)
        return weight_B / weight_B.mean()
    argument_B = lam + 5 * (steps / 2 - kappa_B) / (steps / 2)
    # (1 + tanh(a)) / 2 = sigmoid(2 a); a softmax of its logarithm keeps the ratios of weights that would underflow.
    return len(kappa_B) * logsigmoid(2 * argument_B if function == "tanh" else argument_B).softmax(0)
