"""Whether two models can share token ids, and which ids a hybrid may write.

Vocabularies are compared id by id, never by size. Ordinary tokens must agree. Special tokens may
differ, since each model has its own prompt format and end tokens. An id that only one of the two
knows (`</think>`, chat tokens, padding rows of the output matrix) is banned from hybrid answers
unless the policy is `allow`.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from howwhen.errors import PairError
from howwhen.lm.models import LanguageModel
from howwhen.records import WRITTEN_BY_THINKING

OneSided = Literal["ban", "allow"]
"""What happens to tokens that only one model's tokenizer knows."""


@dataclass(frozen=True)
class Alignment:
    """Which of the ids that both models embed may be written in a hybrid answer."""

    shared: int
    """Ids below this exist in both models' input and output matrices."""
    banned: Int[Tensor, " banned"]
    """Shared ids that may not be written."""
    policy: OneSided
    examples: tuple[str, ...]
    """A few tokens that only one tokenizer knows, to show to users."""
    _banned_on: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """`banned`, by device."""

    def allowed(self, logits: Float[Tensor, "n vocabulary"]) -> Float[Tensor, "n shared"]:
        """Logits of the shared ids, with banned ids at minus infinity."""
        logits = logits[:, : self.shared]
        if not len(self.banned):
            return logits
        device = logits.device
        if device not in self._banned_on:
            self._banned_on[device] = self.banned.to(device)
        return logits.index_fill(1, self._banned_on[device], -torch.inf)

    def may_write(self, tokens: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Whether each id may be written in a hybrid answer."""
        banned = torch.isin(tokens, self.banned.to(tokens.device))
        return (tokens < self.shared) & ~banned


@dataclass(frozen=True)
class ModelPair:
    """Two loaded models that share token ids, and the ids that their hybrid may write."""

    base: LanguageModel
    thinking: LanguageModel
    one_sided: OneSided = "ban"
    """What happens to tokens that only one of them knows."""
    draft: LanguageModel | None = None
    """A small model of the same vocabulary that writes ahead for both. It changes no answer."""

    def __post_init__(self) -> None:
        if self.draft is not None:
            check_pair(self.base, self.draft, "draft model")

    @cached_property
    def alignment(self) -> Alignment:
        """Shared and banned ids."""
        return align(self.base, self.thinking, self.one_sided)

    def starts_in_thinking(self, rung: str) -> bool:
        """Whether a rung's answers begin inside thinking.

        They do where the prompt of the model that writes them ends in the opening think tag.
        """
        if rung == "base-step-by-step":
            return False  # its prompt ends in a request
        writer = self.thinking if rung in WRITTEN_BY_THINKING else self.base
        return writer.prompt_ends_in(self.thinking.think_tags[0])

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens of either model that end an answer."""
        return self.base.end_ids | self.thinking.end_ids


def align(base: LanguageModel, thinking: LanguageModel, policy: OneSided = "ban") -> Alignment:
    """Which ids a pair's hybrid answers may contain.

    Raises:
        PairError: the models do not share a vocabulary; the message shows an example.
    """
    check_pair(base, thinking)
    shared = min(_rows(base), _rows(thinking))
    base_tokens, thinking_tokens = (_all_tokens(model.tokenizer) for model in (base, thinking))
    end_ids = base.end_ids | thinking.end_ids
    candidates = [i for i in range(shared) if i not in end_ids]
    one_sided = [i for i in candidates if base_tokens.get(i) != thinking_tokens.get(i)]
    unnamed = [i for i in candidates if i not in base_tokens and i not in thinking_tokens]
    examples = tuple(str(thinking_tokens.get(i) or base_tokens.get(i)) for i in one_sided[:5])
    banned = sorted({*unnamed, *(one_sided if policy == "ban" else ())})
    return Alignment(shared, torch.tensor(banned, dtype=torch.long), policy, examples)


def check_pair(
    base: LanguageModel,
    other: LanguageModel,
    role: Literal["thinking model", "draft model"] = "thinking model",
) -> None:
    """Refuse a pair in which one id means two different ordinary tokens.

    Args:
        base: the base.
        other: the model that is to share its vocabulary.
        role: of that model, for the message.

    Raises:
        PairError: ordinary tokens differ, or nothing is shared; the message shows an example.
    """
    base_tokens = _ordinary_tokens(base.tokenizer)
    other_tokens = _ordinary_tokens(other.tokenizer)
    shared = base_tokens.keys() & other_tokens.keys()
    different = sorted(i for i in shared if base_tokens[i] != other_tokens[i])
    if different:
        first = different[0]
        raise PairError(
            f"{base.name} and {other.name} do not share a vocabulary: {len(different)} of "
            f"{len(shared)} common ids mean different tokens; id {first} is "
            f"{base_tokens[first]!r} in the base and {other_tokens[first]!r} in the {role}. "
            f"howwhen passes token ids between the two, so choose a {role} made from this base or "
            "its family"
        )
    if not shared:
        raise PairError(f"{base.name} and {other.name} have no ordinary token id in common")


def _rows(model: LanguageModel) -> int:
    """Ids that the model can both read and write."""
    embedding, output = model.model.get_input_embeddings(), model.model.get_output_embeddings()
    matrices = (embedding, output)
    return min(int(matrix.weight.shape[0]) for matrix in matrices if matrix is not None)


def _all_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}


def _ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return {
        number: token for number, token in _all_tokens(tokenizer).items() if number not in special
    }
