"""Linear networks, whose worst images are known in closed form, and how tests attack a network."""

import torch
from torch import nn

from kernels.batch import Batch, Output
from lightning_modules.attacks.base import Draw
from lightning_modules.attacks.victim import attacked


class LinearVictim(nn.Module):
    """Logits are linear in the image, and zero where it is grey."""

    def __init__(self, classes, size=4, seed=0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, 3 * size * size, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight.to(dtype))
        self.bias = nn.Parameter((-0.5 * weight.sum(1)).to(dtype))

    def forward(self, image):
        return Output(logits=image.flatten(1) @ self.weight.T + self.bias)

    def right(self, image):
        """A batch of these images with the predicted classes."""
        label = self(image).logits.detach().argmax(1)
        return Batch(image, label, torch.arange(len(image)))


def images(count, size=4, seed=1, low=0.0, high=1.0, dtype=torch.float64):
    drawn = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + (high - low) * drawn).to(dtype)


def found_by(attack, network, batch, seed=0):
    """The images, and the victim with its counts."""
    with attacked(network, bf16=attack.bf16) as victim:
        return attack.search(victim, batch.image, batch.label, Draw(seed, 3, batch.index)).image, victim


def wrong(network, image, label):
    return network(image).logits.detach().argmax(1) != label


def can_fall_linf(network, batch, eps):
    """``[B]`` the largest margin of a wrong class in the ball: each number goes to its end of the box."""
    low, high = (batch.image - eps).clamp(0, 1).flatten(1), (batch.image + eps).clamp(0, 1).flatten(1)
    found = torch.full((len(batch),), -torch.inf, dtype=torch.float64)
    for row in range(len(batch)):
        for target in range(len(network.weight)):
            if target != batch.label[row]:
                normal = (network.weight[target] - network.weight[batch.label[row]]).detach()
                worst = torch.where(normal > 0, high[row], low[row])
                bias = (network.bias[target] - network.bias[batch.label[row]]).detach()
                found[row] = max(found[row], normal @ worst + bias)
    return found


def can_fall_l2(network, batch, eps):
    """``[B]`` the same where the ball lies inside of [0, 1]: along the normal."""
    logits, found = network(batch.image).logits.detach(), torch.full((len(batch),), -torch.inf, dtype=torch.float64)
    for row, right in enumerate(batch.label):
        for target in range(logits.shape[1]):
            if target != right:
                normal = (network.weight[target] - network.weight[right]).detach()
                found[row] = max(found[row], logits[row, target] - logits[row, right] + eps * normal.norm())
    return found
