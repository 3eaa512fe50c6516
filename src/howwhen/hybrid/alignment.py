"""Can these two models share token ids? Checked id by id, never by size."""

from transformers import PreTrainedTokenizerBase

from howwhen.errors import PairError
from howwhen.models import LanguageModel


def check_pair(base: LanguageModel, thinking: LanguageModel) -> None:
    """Refuse a pair in which one id means two different tokens.

    Special tokens may differ, since each model is prompted and ended in its own way; ids that only
    one tokenizer has are allowed too, as the base alone writes.

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


def _ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return {
        number: token for token, number in tokenizer.get_vocab().items() if number not in special
    }
