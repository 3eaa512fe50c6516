"""Answers packed for the page's viewer: small, and readable by any browser without a library.

A packed viewer is JSON, compressed by gzip and written in base64. Texts of tokens are kept once,
in `pieces`; an answer lists their numbers, and the details of every disagreement.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from howwhen.measure.grade import Mode
from howwhen.present.detokenize import IncrementalDetokenizer
from howwhen.records import Grade, HybridToken, HybridTrace, Problem, RungName, titles_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from howwhen.measure.ladder import GradedTrace

MAX_CHARACTERS = 4_000_000
"""Maximum length of a packed viewer; it keeps the whole page below 5 MB."""
_DETAILED: RungName = "hybrid"
"""The rung whose tokens all have their log-probabilities."""


class GradedAnswer(NamedTuple):
    """One answer with its grades."""

    trace: HybridTrace
    graded: "GradedTrace"


@dataclass(frozen=True)
class Viewer:
    """Problems and answers for the viewer of a page."""

    problems: Sequence[Problem]
    answers: Mapping[RungName, Mapping[str, GradedAnswer]]
    """By rung and problem id."""
    titles: tuple[str, ...]
    """Of the categories."""
    mode: Mode = "flexible"
    """Grading mode of the run."""


class PackedViewer(NamedTuple):
    """A viewer as the page holds it."""

    text: str
    """Base64."""
    problems: int
    """Number of problems it holds; the last ones are left out if they do not fit."""


def pack_viewer(
    viewer: Viewer,
    tokenizer: "PreTrainedTokenizerBase",
    max_characters: int = MAX_CHARACTERS,
) -> PackedViewer:
    """Pack as many problems as fit into `max_characters`.

    Args:
        viewer: problems and answers.
        tokenizer: of the base; its special tokens, such as the end, have no text.
        max_characters: maximum length of the packed text.
    """
    shown = len(viewer.problems)
    while True:
        text = _pack(viewer, viewer.problems[:shown], tokenizer)
        if len(text) <= max_characters or not shown:
            return PackedViewer(text, shown)
        shown = min(shown - 1, int(shown * max_characters / len(text)))


def _pack(
    viewer: Viewer,
    problems: Sequence[Problem],
    tokenizer: "PreTrainedTokenizerBase",
) -> str:
    packer = _Packer(tokenizer)
    packed = {
        "titles": {rung: titles_of(rung, viewer.titles) for rung in viewer.answers},
        "rungs": list(viewer.answers),
        "modes": ["flexible", "strict"] if viewer.mode == "flexible" else ["strict", "flexible"],
        "problems": [
            {
                "id": problem.id,
                "question": problem.question,
                "gold": problem.answer,
                "answers": {
                    rung: packer.answer(answers[problem.id], problem)
                    for rung, answers in viewer.answers.items()
                },
            }
            for problem in problems
        ],
    }
    raw = json.dumps({**packed, "pieces": list(packer.pieces)}, separators=(",", ":"))
    return base64.b64encode(gzip.compress(raw.encode(), mtime=0)).decode()


class _Packer:
    """Turns answers into plain data, and keeps every text once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer = tokenizer
        self.silent = frozenset(tokenizer.all_special_ids)
        self.pieces: dict[str, int] = {}
        self.word = lru_cache(maxsize=None)(self._word)

    def answer(self, answer: GradedAnswer, problem: Problem) -> dict[str, Any]:
        """One answer: grades, the reason for them, tokens, decisions."""
        trace, graded = answer
        stream = IncrementalDetokenizer(self.tokenizer, self.silent)
        packed: dict[str, Any] = {
            "flexible": graded.flexible,
            "strict": graded.strict,
            "reason": reason(graded, problem),
            "tokens": [self._piece(stream.add(token.id)) for token in trace.tokens],
            "decisions": [
                self._decision(place, token)
                for place, token in enumerate(trace.tokens)
                if token.is_decision
            ],
        }
        if trace.rung == _DETAILED:
            packed["base"] = [_hundredths(token.base_log_prob) for token in trace.tokens]
            packed["thinking"] = [_hundredths(token.thinking_log_prob) for token in trace.tokens]
        return packed

    def _decision(self, place: int, token: HybridToken) -> list[Any]:
        """Place, what base and thinking model wanted, and how it was steered."""
        return [
            place,
            self.word(token.id),
            self.word(token.base_id),
            self.word(token.thinking_id),
            token.category,
            None if token.coefficient is None else round(token.coefficient, 2),
            token.window,
            _hundredths(token.base_log_prob),
            _hundredths(token.thinking_log_prob),
            [
                [
                    candidate.strength,
                    candidate.window,
                    self.word(candidate.id),
                    _hundredths(candidate.thinking_log_prob),
                ]
                for candidate in token.candidates
            ],
        ]

    def _word(self, token: int | None) -> int | None:
        """A token on its own; None where there was none."""
        return None if token is None else self._piece(str(self.tokenizer.decode([token])))

    def _piece(self, text: str) -> int:
        return self.pieces.setdefault(text, len(self.pieces))


def reason(graded: "GradedTrace", problem: Problem) -> str:
    """Why an answer got its grade, in words."""
    without_answer = {
        Grade.TRUNCATED: "cut off before it stated an answer",
        Grade.TIMED_OUT: "the grader did not finish in time",
    }
    if graded.answer is None or graded.rule is None or graded.flexible in without_answer:
        return without_answer.get(graded.flexible, "no answer could be read from it")
    rule = graded.rule.value.replace("-", " ")
    verb = "equals" if graded.flexible is Grade.CORRECT else "is not"
    return f"read {graded.answer} ({rule}), which {verb} {problem.answer}"


def _hundredths(log_prob: float | None) -> int | None:
    return None if log_prob is None else round(100 * log_prob)
