"""A training run that can stop at any step and go on as if it had not.

Every step's random numbers come from a generator seeded with the number of samples seen, so weights,
averages, optimiser and that number are all there is to keep.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[torch.Generator, int], Tensor]  # (random numbers, samples seen so far) -> the batch's mean loss


def save_atomically(value: Any, path: Path) -> None:
    """Write beside, then rename: a file under its final name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(value, part)
    part.replace(path)


@dataclass
class Run:
    """The state of one stage's training; ``loss`` draws its batch with the generator it is given."""

    network: nn.Module
    loss: Loss
    learning_rate: Callable[[int], float]  # of the samples seen
    batch: int
    ema_decay: float = 0.999
    samples: int = 0
    optimiser: torch.optim.Optimizer = field(init=False)
    averages: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        matrices = [weight for weight in self.network.parameters() if weight.ndim > 1]
        others = [weight for weight in self.network.parameters() if weight.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.averages = [weight.detach().clone() for weight in self.network.parameters()]

    def step(self) -> float:
        """Learn from one batch; the loss before it did."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.samples)
        loss = self.loss(torch.Generator().manual_seed(1 + self.samples), self.samples)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.samples += self.batch
        self._average()
        return loss.item()

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential moving average of the weights, shorter at first so that it forgets the start."""
        steps = self.samples // self.batch
        decay = min(self.ema_decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(self.averages, list(self.network.parameters()), 1 - decay)

    @torch.no_grad()
    def use_averages(self) -> None:
        """Put the averages in the weights' place, for export; the run cannot go on from there."""
        for weight, average in zip(self.network.parameters(), self.averages, strict=True):
            weight.copy_(average)

    def save(self, path: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "averages": self.averages,
            "optimiser": self.optimiser.state_dict(),
            "samples": self.samples,
        }
        save_atomically(state, path)

    def load(self, path: Path) -> bool:
        """Go on from ``path``; False where no such checkpoint is."""
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.averages = state["averages"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.samples = state["samples"]
        return True
