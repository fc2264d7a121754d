"""Losses on the logits of a clean and of an adversarial image, and what attacks raise, each for each sample.

TRADES: Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan. "Theoretically Principled Trade-off between Robustness and Accuracy".
ICML 2019, arXiv 1901.08573. MART: Wang, Zou, Yi, Bailey, Ma, Gu. "Improving Adversarial Robustness Requires Revisiting
Misclassified Examples". ICLR 2020. DLR: Croce, Hein. "Reliable Evaluation of Adversarial Robustness with an Ensemble of
Diverse Parameter-free Attacks". ICML 2020, arXiv 2003.01690. Constants are those of the official code.

Shape legend: B samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from kernels.margin_softmax import class_labels


def trades_kl(logits_clean_BC: Tensor, logits_adversarial_BC: Tensor) -> Tensor:
    """``KL(softmax(clean) || softmax(adversarial))``; nothing is detached.

    With q of the clean and q' of the adversarial logits z', the gradient is ``q' - q`` for z' and
    ``q (log(q / q') - KL)`` for z. Finite for any finite logits, also where a probability underflows.

    Args:
        logits_clean_BC: ``[B, C]``.
        logits_adversarial_BC: ``[B, C]``.

    Returns:
        ``[B]`` in at least float32.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> trades_kl(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor([0.1201])
    """
    clean_BC, adversarial_BC = _both(logits_clean_BC, logits_adversarial_BC)
    log_q_BC = clean_BC.log_softmax(1)
    return (log_q_BC.exp() * (log_q_BC - adversarial_BC.log_softmax(1))).sum(1)


def mart_terms(logits_clean_BC: Tensor, logits_adversarial_BC: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """The boosted cross-entropy and the weighted divergence of MART, without its beta; nothing is detached.

    With q of the clean and q' of the adversarial logits:

    - ``-log q'_y - log(1.0001 - max_{k != y} q'_k + 1e-12)``
    - ``sum_k q_k (log q_k - log(q'_k + 1e-12)) (1.0000001 - q_y)``

    Args:
        logits_clean_BC: ``[B, C]``.
        logits_adversarial_BC: ``[B, C]``.
        labels_B: ``[B]`` classes.

    Returns:
        Two ``[B]`` in at least float32.

    Raises:
        ValueError: shapes that differ, labels that are no classes, or a single class.

    Example:
        >>> mart_terms(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
        (tensor([1.3861]), tensor([0.]))
    """
    clean_BC, adversarial_BC = _both(logits_clean_BC, logits_adversarial_BC)
    labels_B = class_labels(labels_B, clean_BC)
    q_adversarial_BC = adversarial_BC.softmax(1)
    boosted_B = cross_entropy(adversarial_BC, labels_B, reduction="none")
    boosted_B = boosted_B - (1.0001 - _largest_other(q_adversarial_BC, labels_B) + 1e-12).log()
    log_q_BC = clean_BC.log_softmax(1)
    q_BC = log_q_BC.exp()
    kl_B = (q_BC * (log_q_BC - (q_adversarial_BC + 1e-12).log())).sum(1)
    return boosted_B, kl_B * (1.0000001 - _of_class(q_BC, labels_B))


def margin(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """``max_{k != y} z_k - z_y``: positive where the sample is misclassified. An attack raises it (CW).

    Args:
        logits_BC: ``[B, C]``, or probabilities (the margin of MAIL).
        labels_B: ``[B]`` classes.

    Returns:
        ``[B]`` in at least float32.

    Raises:
        ValueError: labels that are no classes, or a single class.

    Example:
        >>> margin(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    logits_BC = _wide(logits_BC)
    labels_B = class_labels(labels_B, logits_BC)
    return _largest_other(logits_BC, labels_B) - _of_class(logits_BC, labels_B)


def margin_targeted(logits_BC: Tensor, labels_B: Tensor, targets_B: Tensor) -> Tensor:
    """``z_t - z_y``: the margin towards one class, ``[B]`` in at least float32.

    Example:
        >>> margin_targeted(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]), torch.tensor([1]))
        tensor([-2.])
    """
    logits_BC = _wide(logits_BC)
    labels_B, targets_B = class_labels(labels_B, logits_BC), class_labels(targets_B, logits_BC)
    return _of_class(logits_BC, targets_B) - _of_class(logits_BC, labels_B)


def dlr(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Difference of logits ratio, which an attack raises: ``(max_{k != y} z_k - z_y) / (z_(1) - z_(3) + 1e-12)``.

    ``z_(i)`` is the i-th largest logit. The ratio changes neither with a shift nor with a scale of the logits, so that
    no confidence makes its gradient vanish. With two classes there is no third logit, and it is the ``margin``.

    Args:
        logits_BC: ``[B, C]``.
        labels_B: ``[B]`` classes.

    Returns:
        ``[B]`` in at least float32; where the three largest logits are tied and y is behind them, huge but finite.

    Raises:
        ValueError: labels that are no classes, or a single class.

    Example:
        >>> dlr(torch.tensor([[4.0, 1.0, 2.0, 0.0]]), torch.tensor([0]))
        tensor([-0.6667])
    """
    behind_B = margin(logits_BC, labels_B)
    if logits_BC.shape[1] < 3:
        return behind_B
    top_B3 = logits_BC.to(behind_B.dtype).topk(3, 1).values
    return behind_B / (top_B3[:, 0] - top_B3[:, 2] + 1e-12)


def dlr_targeted(logits_BC: Tensor, labels_B: Tensor, targets_B: Tensor) -> Tensor:
    """DLR towards a class t, raised: ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12)``.

    With fewer than four classes there is no fourth logit, and it is the margin ``z_t - z_y``.

    Args:
        logits_BC: ``[B, C]``.
        labels_B: ``[B]`` classes.
        targets_B: ``[B]`` the classes to be reached.

    Returns:
        ``[B]`` in at least float32.

    Raises:
        ValueError: labels or targets that are no classes.

    Example:
        >>> dlr_targeted(torch.tensor([[4.0, 1.0, 2.0, 0.0]]), torch.tensor([0]), torch.tensor([2]))
        tensor([-0.5714])
    """
    behind_B = margin_targeted(logits_BC, labels_B, targets_B)
    if logits_BC.shape[1] < 4:
        return behind_B
    top_B4 = _wide(logits_BC).topk(4, 1).values
    return behind_B / (top_B4[:, 0] - (top_B4[:, 2] + top_B4[:, 3]) / 2 + 1e-12)


def _largest_other(scores_BC: Tensor, labels_B: Tensor) -> Tensor:
    """``[B]`` the largest score but that of the label; tied ones share its gradient."""
    if scores_BC.shape[1] < 2:
        raise ValueError(f"scores of shape {list(scores_BC.shape)}; another class is needed, so give at least two")
    return scores_BC.scatter(1, labels_B[:, None], -torch.inf).amax(1)


def _of_class(scores_BC: Tensor, labels_B: Tensor) -> Tensor:
    return scores_BC.gather(1, labels_B[:, None])[:, 0]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _both(clean_BC: Tensor, adversarial_BC: Tensor) -> tuple[Tensor, Tensor]:
    if clean_BC.shape != adversarial_BC.shape or clean_BC.ndim != 2:
        raise ValueError(
            f"clean and adversarial logits must have one shape [B, C], got {list(clean_BC.shape)} and "
            f"{list(adversarial_BC.shape)}"
        )
    return _wide(clean_BC), _wide(adversarial_BC)
