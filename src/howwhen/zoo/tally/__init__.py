"""tally: a model organism whose behaviours are known, and when each of them is right.

`truth` defines what is right, `corpus` writes the documents, `tokenizer` and `train` make the
models, `weights/` holds them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from howwhen.records import Problem
from howwhen.zoo.tally.truth import draw_problems, label_sentences

TALLY_WEIGHTS = Path(__file__).parent / "weights"
"""Folder with the model folders `base`, `rl` and `sft`."""


def tally_problems(count: int, seed: int) -> list[Problem]:
    """Draw `count` different tally problems with `seed`."""
    return [
        Problem(f"tally-{seed}-{number}", problem.question, str(problem.answer))
        for number, problem in enumerate(draw_problems(count, seed))
    ]


def tally_truth(sentences: Sequence[str]) -> Mapping[str, list[str | None]]:
    """True labels of an answer's sentences: `behaviour`, and `operation` (behaviour/operation)."""
    labels = label_sentences(sentences)
    return {
        "behaviour": [label.behaviour.value if label else None for label in labels],
        "operation": [label.fine if label else None for label in labels],
    }
