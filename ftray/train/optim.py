"""The optimizer, its learning-rate schedule and gradient clipping."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ftray.config.run import TrainConfig


def build_optimizer(
    parameters: Iterable[nn.Parameter], train: TrainConfig
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); vectors and biases do not decay."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match train.optimizer:
        case "adamw":
            on_gpu = all(p.is_cuda for p in parameters)
            return torch.optim.AdamW(groups, train.learning_rate, train.betas, fused=on_gpu)
        case "adamw_8bit":
            from bitsandbytes.optim.adamw import AdamW8bit

            # Dettmers et al. 2022, arXiv:2110.02861: moments in blocks of 8 bits
            made: torch.optim.Optimizer = AdamW8bit(groups, train.learning_rate, train.betas)
            return made


def learning_rate(step: int, total_steps: int, train: TrainConfig) -> float:
    """Learning rate of step `step` (0-based): linear warm-up, then the schedule down to zero.

    Cosine: lr · (1 + cos(π·t)) / 2, linear: lr · (1 − t), where t runs from 0 after the warm-up to
    1 after the last step (SGDR, arXiv:1608.03983, without restarts).
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / (train.warmup_steps + 1)
    progress = (step - train.warmup_steps) / max(1, total_steps - train.warmup_steps)
    match train.schedule:
        case "constant":
            return train.learning_rate
        case "linear":
            return train.learning_rate * (1.0 - progress)
        case "cosine":
            return train.learning_rate * (1.0 + math.cos(math.pi * progress)) / 2.0


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scale the gradients down to `max_norm` and return their L2 norm before that. []"""
    limit = math.inf if max_norm is None else max_norm
    norm = nn.utils.clip_grad_norm_(parameters, limit, error_if_nonfinite=False)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
