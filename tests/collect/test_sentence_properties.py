"""Whatever the text: spans are ordered, disjoint, and nothing is lost."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from howwhen.collect.segmenters import sat_segmenter
from howwhen.collect.sentences import (
    cut_sentences,
    sentence_spans,
    text_tokens,
    thinking_part,
    token_ends,
)
from howwhen.lm.prompts import THINK_TAGS, ThinkTags
from howwhen.records import SentenceSpan
from howwhen.zoo.tally.tokenizer import build_tokenizer
from tests.conftest import DATA, needs_data, read_traces
from tests.oracles.sentences import cut_sentences as cut_slowly

PIECES = [
    *(".", "!", "?", ";", "...", "?!", ".)", '."', "!'", "]*", "3.14", ".5", "e.g.", "U.S.", "J."),
    *("x!", "5!", "(n)!", "I.", "A", "a", "Ab"),
    *("\n", "\r\n", "\r", "\n\n", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x00"),
    *(" ", "  ", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff"),
    *(
        "e\u0301",
        "\u0301",
        "\u202e",
        "\u2067",
        "\u05d0",
        "\U0001f468\u200d\U0001f469",
        "\U00010348",
    ),
    *("<think>", "</think>", "<thi", "nk>", "\ufffd", "。", "Wait", "é"),
]
TEXTS = st.lists(
    st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]) | st.text(max_size=8),
    max_size=30,
).map("".join)
MARKERS = st.sampled_from([THINK_TAGS, ("[", "]"), ("||", "||"), (". ", "\n")])
MANY = settings(max_examples=300)
FEW = settings(max_examples=80)


def check_tiles(text: str, sentences: Sequence[tuple[int, int]]) -> None:
    assert "".join(text[start:end] for start, end in sentences) == text
    assert all(first[1] == second[0] for first, second in pairwise(sentences))
    assert all(start < end for start, end in sentences)
    if text.strip():
        assert all(text[start:end].strip() for start, end in sentences)


def check_spans(
    text: str,
    ends: Sequence[int],
    spans: Sequence[SentenceSpan],
    think_tags: ThinkTags = THINK_TAGS,
) -> None:
    """The spans tile the thinking part, in characters and in tokens."""
    start, end = thinking_part(text, think_tags)
    inside = [n for n, at in enumerate(ends) if (at > start or start == 0) and at <= end]
    if not inside:
        assert spans == ()
        return
    assert "".join(text[span.start_char : span.end_char] for span in spans) == text[start:end]
    assert (spans[0].start_char, spans[-1].end_char) == (start, end)
    assert (spans[0].start_token, spans[-1].end_token) == (inside[0], inside[-1] + 1)
    for first, second in pairwise(spans):
        assert (first.end_char, first.end_token) == (second.start_char, second.start_token)
    for span in spans:
        assert span.start_token < span.end_token
        for token in range(span.start_token, span.end_token):
            assert span.start_char <= ends[token] <= span.end_char


@MANY
@given(TEXTS)
def test_sentences_tile_any_text_as_the_slow_rule_cuts_it(text: str) -> None:
    sentences = cut_sentences(text)
    check_tiles(text, sentences)
    assert sentences == cut_slowly(text)


class Guesser:
    """Answers as `SaT.predict_proba` does, with numbers made beforehand."""

    def __init__(self, numbers: list[float]) -> None:
        self.numbers = numbers

    def predict_proba(self, text_or_texts: str) -> list[float]:
        return self.numbers


@MANY
@given(TEXTS, st.lists(st.floats(), max_size=60), st.floats(0, 1))
def test_a_models_cuts_tile_any_text_whatever_its_probabilities(
    text: str, numbers: list[float], threshold: float
) -> None:
    check_tiles(text, sat_segmenter(Guesser(numbers), threshold)(text))


def test_a_model_cuts_after_likely_characters_and_at_newlines() -> None:
    text = "one two.\n\nthree"
    cut = sat_segmenter(Guesser([0.1] * 2 + [0.9] + [0.1] * 4 + [0.9, 0.9] + [0.1] * 6), 0.5)
    assert [text[start:end] for start, end in cut(text)] == ["one", " two.\n\n", "three"]


@cache
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """Words, bytes with merges, and characters with bytes for those unknown."""
    return {"words": build_tokenizer(), "bytes": _byte_level(), "fallback": _byte_fallback()}


def _byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["</s>", "<think>", "</think>"],
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(PIECES) * 3, "so the answer is é. \n\n"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def _byte_fallback() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abW.!t"]
    table = {piece: number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(table, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("name", ["words", "bytes", "fallback"])
def test_spans_of_written_texts_tile_them(name: str) -> None:
    tokenizer = tokenizers()[name]

    @FEW
    @given(TEXTS, MARKERS)
    def check(text: str, think_tags: ThinkTags) -> None:
        ids, ends = text_tokens(tokenizer, text)
        assert len(ids) == len(ends)
        assert ends == sorted(ends)
        assert all(0 <= end <= len(text) for end in ends)
        check_spans(text, ends, sentence_spans(text, ends, think_tags), think_tags)

    check()


@pytest.mark.parametrize("name", ["words", "bytes", "fallback"])
def test_spans_of_decoded_tokens_tile_their_text_wherever_they_end(name: str) -> None:
    tokenizer = tokenizers()[name]

    @FEW
    @given(TEXTS, st.integers(0, 40), MARKERS)
    def check(text: str, dropped: int, think_tags: ThinkTags) -> None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        _check_decoded(tokenizer, ids[: max(0, len(ids) - dropped)], think_tags)

    check()


@FEW
@given(st.lists(st.integers(0, 255), max_size=80))
def test_spans_of_any_bytes_tile_what_they_decode_to(numbers: list[int]) -> None:
    tokenizer = tokenizers()["bytes"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = tokenizer.convert_tokens_to_ids([alphabet[number] for number in numbers])
    _check_decoded(tokenizer, ids, THINK_TAGS)
    assert token_ends(tokenizer, ids)[0] == tokenizer.decode(ids)


def _check_decoded(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], think_tags: ThinkTags
) -> None:
    text, ends = token_ends(tokenizer, ids)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert (ends[-1] if ends else 0) == len(text)
    check_spans(text, ends, sentence_spans(text, ends, think_tags), think_tags)


def _real_texts() -> list[str]:
    files = sorted((DATA / "traces").rglob("*.jsonl.gz"))
    return [row["text"] for file in files for row in read_traces(file)]


@needs_data
@pytest.mark.slow
def test_no_sentence_of_any_real_answer_is_lost() -> None:
    texts = _real_texts()
    assert len(texts) > 9000
    for number, text in enumerate(texts):
        check_tiles(text, cut_sentences(text))
        words = [word.end() for word in re.finditer(r"\s*\S+", text)]
        check_spans(text, words, sentence_spans(text, words))
        if number % 100 == 0:
            for tokenizer in tokenizers().values():
                _, ends = text_tokens(tokenizer, text)
                check_spans(text, ends, sentence_spans(text, ends))
