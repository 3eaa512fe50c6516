"""Can these two models share token ids, and which may be written? Checked id by id, never by size.

Ordinary tokens must agree. Special tokens may differ, since each model is prompted and ended in its
own way; an id that only one of the two knows (`</think>`, chat markers, padding rows of the output
matrix) is banned from hybrid answers unless the policy says `allow`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from howwhen.errors import PairError
from howwhen.lm.models import LanguageModel

OneSided = Literal["ban", "allow"]
"""What happens to tokens that only one model's tokenizer knows."""


@dataclass(frozen=True)
class Alignment:
    """Which of the ids that both models embed may be written in a hybrid answer."""

    shared: int
    """Ids below this exist in both models' input and output matrices."""
    banned: Int[Tensor, " banned"]
    """Of those, the ids that may not be written."""
    policy: OneSided
    examples: tuple[str, ...]
    """A few tokens that only one tokenizer knows, for people to read."""

    def allowed(self, logits: Float[Tensor, "n every"]) -> Float[Tensor, "n shared"]:
        """Logits of the shared ids, banned ones at minus infinity."""
        logits = logits[:, : self.shared]
        if not len(self.banned):
            return logits
        return logits.index_fill(1, self.banned.to(logits.device), -torch.inf)


@dataclass(frozen=True)
class ModelPair:
    """Two loaded models that share token ids, and what they may write together."""

    base: LanguageModel
    thinking: LanguageModel
    one_sided: OneSided = "ban"
    """What happens to tokens that only one of them knows."""

    @cached_property
    def alignment(self) -> Alignment:
        """Shared and banned ids."""
        return align(self.base, self.thinking, self.one_sided)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens of either model that end an answer."""
        return self.base.end_ids | self.thinking.end_ids


def align(base: LanguageModel, thinking: LanguageModel, policy: OneSided = "ban") -> Alignment:
    """How a pair's hybrid answers may be written.

    Raises:
        PairError: the models do not share a vocabulary; the message shows an example.
    """
    check_pair(base, thinking)
    shared = min(_rows(base), _rows(thinking))
    ours, theirs = (_every_token(model.tokenizer) for model in (base, thinking))
    ends = base.end_ids | thinking.end_ids
    odd = [i for i in range(shared) if ours.get(i) != theirs.get(i) and i not in ends]
    examples = tuple(str(theirs.get(i) or ours.get(i)) for i in odd[:5])
    nobodys = [i for i in range(shared) if i not in ours and i not in theirs and i not in ends]
    banned = sorted({*nobodys, *(odd if policy == "ban" else ())})
    return Alignment(shared, torch.tensor(banned, dtype=torch.long), policy, examples)


def check_pair(base: LanguageModel, thinking: LanguageModel) -> None:
    """Refuse a pair in which one id means two different ordinary tokens.

    Raises:
        PairError: ordinary tokens differ, or nothing is shared; the message shows an example.
    """
    ours, theirs = _ordinary_tokens(base.tokenizer), _ordinary_tokens(thinking.tokenizer)
    shared = ours.keys() & theirs.keys()
    different = sorted(number for number in shared if ours[number] != theirs[number])
    if different:
        first = different[0]
        raise PairError(
            f"{base.name} and {thinking.name} do not share a vocabulary: {len(different)} of "
            f"{len(shared)} common ids mean different tokens; id {first} is {ours[first]!r} in the "
            f"base and {theirs[first]!r} in the thinking model. howwhen passes token ids between "
            "the two, so choose a thinking model made from this base or its family"
        )
    if not shared:
        raise PairError(f"{base.name} and {thinking.name} have no ordinary token id in common")


def _rows(model: LanguageModel) -> int:
    """Ids that the model can both read and write."""
    embedding, output = model.model.get_input_embeddings(), model.model.get_output_embeddings()
    return min(int(part.weight.shape[0]) for part in (embedding, output) if part is not None)


def _every_token(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items()}


def _ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return {
        number: token for number, token in _every_token(tokenizer).items() if number not in special
    }
