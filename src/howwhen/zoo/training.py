"""What the trainings of the zoo share: a resumable loop, expert iteration and checkpoints.

Batches are requested by step number. If each is drawn from a generator seeded by that number, an
interrupted training resumes from its last checkpoint and ends with the same weights.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from howwhen.errors import ModelError, OutOfTimeError, StoreError
from howwhen.zoo.documents import Document, TokenIds

Report = Callable[[str], None]
CHECKPOINT_EVERY = 50
"""Steps."""
REPORT_EVERY = 20
"""Steps."""
WEIGHT_DECAY = 0.05


@dataclass(frozen=True)
class Fit:
    """Size of one training. One step is one batch."""

    steps: int
    learning_rate: float
    """Peak learning rate of AdamW; see `schedule`."""


@dataclass(frozen=True)
class Workspace:
    """Where trainings keep their checkpoints, how they report, and when they stop."""

    folder: Path
    report: Report
    deadline: float = math.inf
    """When to stop for now, in seconds of `time.monotonic`."""

    def fit(self, name: str, model: nn.Module, loss: Callable[[int], Tensor], size: Fit) -> None:
        """Minimise `loss(step)` over the parameters that require a gradient.

        Args:
            name: of the checkpoint. The training resumes from it if it exists.
            model: changed in place.
            loss: mean loss of a step's batch.
            size: steps and learning rate.

        Raises:
            OutOfTimeError: the deadline passed. A checkpoint is written first.
        """
        trained, checkpoint = trained_parameters(model), self.folder / f"{name}.safetensors"
        optimizer = torch.optim.AdamW(
            trained.values(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
        )
        start = _resume(trained, optimizer, checkpoint)
        model.train()
        for step in range(start, size.steps):
            for group in optimizer.param_groups:
                group["lr"] = size.learning_rate * schedule(step, size.steps)
            value = loss(step)
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            if done % REPORT_EVERY == 0:
                self.report(f"{name}: step {done}/{size.steps}, loss {value.item():.4f} nats")
            is_out_of_time = time.monotonic() >= self.deadline
            if done % CHECKPOINT_EVERY == 0 or is_out_of_time:
                _write_checkpoint(trained, optimizer, done, checkpoint)
            if is_out_of_time:
                raise OutOfTimeError(
                    f"{name}: the time is used up; the same command resumes the training"
                )
        model.eval()

    def reinforce(
        self,
        model: nn.Module,
        rounds: int,
        sample: Callable[[int], tuple[list[Document], float]],
        fit: Callable[[int, list[Document]], None],
    ) -> None:
        """Expert iteration: sample answers, keep right ones, train on them, repeat.

        Args:
            model: changed in place.
            rounds: how often.
            sample: right samples of a round, and the share of all samples that were right. Its
                result is stored, so a round that is interrupted later is not sampled again.
            fit: trains `model` on a round's samples.
        """
        for number in range(rounds):
            weights = self.folder / f"rl-round-{number}.safetensors"
            if not weights.exists():
                fit(number, self._samples(number, rounds, sample))
                trained = trained_parameters(model)
                write_tensors({name: value.detach() for name, value in trained.items()}, weights)
            model.load_state_dict(load_file(weights), strict=False)

    def _samples(
        self, number: int, rounds: int, sample: Callable[[int], tuple[list[Document], float]]
    ) -> list[Document]:
        path = self.folder / f"rl-round-{number}.json"
        if not path.exists():
            documents, share = sample(number)
            self.report(f"rl round {number + 1}/{rounds}: {share:.1%} of samples right")
            partial = path.with_suffix(".partial")
            rows = [{"ids": item.ids, "scored_from": item.scored_from} for item in documents]
            partial.write_text(json.dumps(rows))
            partial.replace(path)
        rows = json.loads(path.read_text())
        return [Document(tuple(row["ids"]), row["scored_from"]) for row in rows]


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then linear decay to a tenth."""
    warm_up = max(1, steps // 20)
    return min((step + 1) / warm_up, 1 - 0.9 * (step - warm_up) / max(1, steps - warm_up))


def sample_right_answers(
    prompts: Sequence[Sequence[int]],
    samples: int,
    sample: Callable[[Sequence[Sequence[int]]], Sequence[TokenIds]],
    is_right: Callable[[int, TokenIds], bool],
    choose: Callable[[list[TokenIds]], list[TokenIds]],
) -> tuple[list[Document], float]:
    """Sample answers to prompts and keep right ones.

    Args:
        prompts: token ids, one prompt per problem.
        samples: answers per problem.
        sample: answers each prompt of a list once.
        is_right: whether an answer to the problem of this index is right.
        choose: which of a problem's right answers to keep. They are distinct and sorted.

    Returns:
        Documents of the answers kept, in which the prompt is not scored, and the share of all
        samples that were right.

    Raises:
        ModelError: no sample was right.
    """
    answers = sample([prompt for prompt in prompts for _ in range(samples)])
    documents: list[Document] = []
    right_count = 0
    for index, prompt in enumerate(prompts):
        answers_here = answers[index * samples : (index + 1) * samples]
        right = [answer for answer in answers_here if is_right(index, answer)]
        right_count += len(right)
        chosen = choose(sorted(set(right)))
        documents += [Document((*prompt, *answer), len(prompt)) for answer in chosen]
    if not documents:
        raise ModelError(
            "no sample was right, so there is nothing to reinforce; train the base longer or "
            "sample more"
        )
    return documents, right_count / len(answers)


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Reserve a folder for checkpoints of these settings.

    Raises:
        StoreError: the folder holds checkpoints of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    content = json.dumps(settings, indent=2)
    if path.exists() and path.read_text() != content:
        raise StoreError(
            f"{path} was written by a build with other settings; expected {content}; "
            "delete the folder or choose another one"
        )
    path.write_text(content)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file completely or not at all; tensors that share memory are copied."""
    partial = path.with_suffix(".partial")
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _write_checkpoint(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int, path: Path
) -> None:
    tensors = {f"model/{name}": parameter.detach() for name, parameter in trained.items()}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        tensors |= {f"{key}/{name}": value for key, value in state.items()}
    write_tensors({**tensors, "step": torch.tensor(step)}, path)


def _resume(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, path: Path
) -> int:
    """Restore weights and optimiser from a checkpoint, and return the number of steps done."""
    if not path.exists():
        return 0
    saved = load_file(path)
    for name, parameter in trained.items():
        parameter.data.copy_(saved[f"model/{name}"])
        optimizer.state[parameter] = {
            key: saved[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    return int(saved["step"])
