"""What the trainings of the zoo share: examples, a resumable loop, checkpoints.

Batches are asked for by number, so a training that draws each from a generator seeded by it
resumes from its last checkpoint to the weights that it would have had uninterrupted.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from howwhen.errors import OutOfTimeError, StoreError

Report = Callable[[str], None]
CHECKPOINT_EVERY = 50
"""Steps."""
REPORT_EVERY = 20
"""Steps."""


@dataclass(frozen=True)
class Document:
    """Token ids of one document; the loss counts from token `scored_from` on."""

    ids: tuple[int, ...]
    scored_from: int
    unscored: frozenset[int] = frozenset()
    """Later tokens, by place, that it does not count either."""


@dataclass(frozen=True)
class Course:
    """How one training goes."""

    steps: int
    learning_rate: float
    """Highest step size of AdamW; see `schedule`."""
    checkpoint: Path
    report: Report
    weight_decay: float = 0.05
    deadline: float = math.inf
    """When to stop for now, in seconds of `time.monotonic`."""

    def check_time(self) -> None:
        """Stop here if the time is used up.

        Raises:
            OutOfTimeError: it is.
        """
        if time.monotonic() >= self.deadline:
            raise OutOfTimeError(
                f"{self.checkpoint.stem}: the time is used up; the same command goes on from here"
            )


def fit(model: nn.Module, loss: Callable[[int], Tensor], course: Course) -> None:
    """Minimise `loss(step)` over the parameters that require a gradient, resuming if begun.

    Raises:
        OutOfTimeError: the deadline passed; a checkpoint is written.
    """
    trained = dict(_trained(model))
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=course.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=course.weight_decay,
    )
    start = _resume(trained, optimizer, course.checkpoint)
    model.train()
    for step in range(start, course.steps):
        for group in optimizer.param_groups:
            group["lr"] = course.learning_rate * schedule(step, course.steps)
        value = loss(step)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % REPORT_EVERY == 0:
            name, last = course.checkpoint.stem, course.steps
            course.report(f"{name}: step {step + 1}/{last}, loss {value.item():.4f} nats")
        if (step + 1) % CHECKPOINT_EVERY == 0 or time.monotonic() >= course.deadline:
            _checkpoint(trained, optimizer, step + 1, course.checkpoint)
        course.check_time()
    model.eval()


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then linear decay to a tenth."""
    warm_up = max(1, steps // 20)
    return min((step + 1) / warm_up, 1 - 0.9 * (step - warm_up) / max(1, steps - warm_up))


def claim(work: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to mix checkpoints of different settings in one folder.

    Raises:
        StoreError: the folder holds those of others.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / "settings.json"
    stated = json.dumps(settings, indent=2)
    if path.exists() and path.read_text() != stated:
        raise StoreError(
            f"{path} was written by a build with other settings; expected {stated}; "
            "delete the folder or choose another one"
        )
    path.write_text(stated)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file whole or not at all; tensors that share memory appear twice."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad)


def _checkpoint(
    trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int, path: Path
) -> None:
    tensors = {f"model/{name}": one.detach() for name, one in trained.items()}
    for name, one in trained.items():
        tensors |= {f"{key}/{name}": value for key, value in optimizer.state[one].items()}
    write_tensors({**tensors, "step": torch.tensor(step)}, path)


def _resume(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, path: Path) -> int:
    if not path.exists():
        return 0
    saved = load_file(path)
    for name, one in trained.items():
        one.data.copy_(saved[f"model/{name}"])
        optimizer.state[one] = {
            key: saved[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return int(saved["step"])
