"""Tally's tokenizer: one token per word, number and punctuation mark, without loss."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from howwhen.zoo.tally.corpus import vocabulary

PAD, BOS, EOS, USER, ASSISTANT, UNKNOWN = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<user>",
    "<assistant>",
    "<unk>",
)
SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT, UNKNOWN)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% else %}<assistant>{{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPACE = "▁"


def build_tokenizer(words: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Make the tokenizer from a vocabulary, by default that of tally's documents (180 tokens)."""
    words = vocabulary() if words is None else words
    tokens = [word if word in ".,:?" else SPACE + word for word in words]
    ids = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *tokens])}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )
