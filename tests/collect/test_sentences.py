import gzip
import itertools
import json
import time

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from howwhen.cache_folder import cache_folder
from howwhen.collect.sentences import (
    Segmenter,
    cut_sentences,
    sentence_spans,
    text_tokens,
    thinking_part,
    token_ends,
)
from howwhen.errors import InputError
from howwhen.zoo.smol import SMOLLM2
from howwhen.zoo.tally.tokenizer import build_tokenizer
from tests.conftest import DATA, needs_data

CUTS = [
    ("One. Two.", ["One.", " Two."]),
    ("Is it? Yes! Good; done", ["Is it?", " Yes!", " Good;", " done"]),
    ("Pi is 3.14 or so. Next", ["Pi is 3.14 or so.", " Next"]),
    ("It costs .50 each. Fine.", ["It costs .50 each.", " Fine."]),
    ("Use e.g. this one. Then", ["Use e.g. this one.", " Then"]),
    ("The U.S. Army left. Then", ["The U.S. Army left.", " Then"]),
    ("At 5 p.m. Then we left.", ["At 5 p.m.", " Then we left."]),
    ("J. Smith came. He sat.", ["J. Smith came.", " He sat."]),
    ("So it is x. Then y.", ["So it is x.", " Then y."]),
    ("So 5! = 120 holds. Yes", ["So 5! = 120 holds.", " Yes"]),
    ("We get n! ways. Yes", ["We get n! ways.", " Yes"]),
    ("It is 5! Great", ["It is 5!", " Great"]),
    ("line one\nline two\n\nline three", ["line one\n", "line two\n\n", "line three"]),
    ("The end.\n\nNew part.", ["The end.\n\n", "New part."]),
    ("Wait... what?! No.", ["Wait...", " what?!", " No."]),
    ('He said "go." Then left.', ['He said "go."', " Then left."]),
    ("one\r\ntwo.\r\n\r\nthree", ["one\r\n", "two.\r\n\r\n", "three"]),
    ("One.\u2028Two.\x85 Three", ["One.", "\u2028Two.", "\x85 Three"]),
    (" \u2028\n\r\n one.", [" \u2028\n\r\n one."]),
    ("no mark at all", ["no mark at all"]),
    ("   ", ["   "]),
    ("", []),
]


@pytest.mark.parametrize(("text", "sentences"), CUTS)
def test_cuts(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in cut_sentences(text)] == sentences


THINKING = [
    ("<think>a b</think> c", "a b"),
    ("a b</think> c", "a b"),
    ("<think>a b", "a b"),
    ("a b", "a b"),
    ("<think></think> c", ""),
    ("a <think> b</think> c", " b"),
    ("<think>a <think> b</think> c", "a <think> b"),
    ("a b</think> the tags <think> and </think>", "a b"),
    ("<think>a</think> b <think>c</think> d", "a"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "thinking"), THINKING)
def test_thinking_part(text: str, thinking: str) -> None:
    assert text[slice(*thinking_part(text))] == thinking


@pytest.mark.parametrize("think_tags", [("[THINK]", "[/THINK]"), ("||", "||"), ("思考>", "。答>")])
def test_the_thinking_part_has_the_think_tags_of_the_pair(think_tags: tuple[str, str]) -> None:
    opening, closing = think_tags
    for text in (f"{opening}a <think> b{closing} c", f"{opening}a <think> b"):
        assert text[slice(*thinking_part(text, think_tags))] == "a <think> b"
    assert thinking_part("a b", think_tags) == (0, 3)


def _real_texts() -> list[str]:
    path = DATA / "traces/responses/deepseek-r1-distill-qwen-1.5b_eval-prompts.jsonl.gz"
    rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [json.loads(row)["text"] for row in rows]


@needs_data
def test_sentences_of_real_answers_tile_the_text() -> None:
    for text in _real_texts():
        spans = cut_sentences(text)
        assert "".join(text[start:end] for start, end in spans) == text
        assert all(text[start:end].strip() for start, end in spans)


@needs_data
@pytest.mark.skipif(
    not (cache_folder() / SMOLLM2).exists(), reason="type `howwhen zoo build smollm2` first"
)
def test_spans_of_real_answers_cover_their_tokens_in_a_byte_level_vocabulary() -> None:
    tokenizer = AutoTokenizer.from_pretrained(cache_folder() / SMOLLM2)
    for text in _real_texts()[:10]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded, ends = token_ends(tokenizer, ids)
        assert decoded == tokenizer.decode(ids)
        _check_spans(decoded, ends)


def test_spans_of_a_tally_answer_are_its_sentences() -> None:
    tokenizer = build_tokenizer()
    text = "Ann starts with 7 pens. Next, Ann gets 5 more. 7 plus 5 is 12. So the answer is 12."
    decoded, ends = token_ends(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert decoded == text
    _check_spans(decoded, ends)
    spans = sentence_spans(decoded, ends)
    assert [text[s.start_char : s.end_char].strip() for s in spans][2] == "7 plus 5 is 12."
    assert spans[2].end_token - spans[2].start_token == 6


def test_a_token_inside_a_character_ends_where_the_character_ends() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("né → ok")["input_ids"]
    assert len(ids) == 10
    ends = [1, 2, 2, 3, 4, 4, 4, 5, 6, 7]
    assert token_ends(tokenizer, ids) == ("né → ok", ends)
    assert text_tokens(tokenizer, "né → ok") == (ids, ends)


def test_an_answer_cut_off_inside_a_character_keeps_its_end() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("a. é", add_special_tokens=False)["input_ids"]
    text, ends = token_ends(tokenizer, ids[:-1])
    assert (text, ends) == ("a. \ufffd", [1, 2, 3, 4])
    text, ends = token_ends(tokenizer, [*ids[:-1], tokenizer.eos_token_id])
    assert (text, ends) == ("a. \ufffd</s>", [1, 2, 3, 4, 8])


@pytest.mark.parametrize("text", ["\ufffd" * 400, "a" + "\ufffd→" * 200])
def test_characters_that_never_come_are_not_waited_for(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    for some in (ids, [*ids[::3], *ids]):
        decoded, ends = token_ends(tokenizer, some)
        assert decoded == tokenizer.decode(some)
        assert len(ends) == len(some)
        assert ends == sorted(ends)


def test_the_end_of_a_token_that_the_marker_begins_in_is_not_lost() -> None:
    spans = sentence_spans("One. Two.</think> Three", [4, 11, 17, 23])
    assert [span[:2] for span in spans] == [(0, 9)]
    assert spans[0][2:] == (0, 1)
    assert sentence_spans("</think> Three", [8, 14]) == ()


WRONG: list[Segmenter] = [
    lambda text: [(0, 3)],
    lambda text: [(0, 3), (4, len(text))],
    lambda text: [(0, 4), (3, len(text))],
    lambda text: [(0, 3), (3, 3), (3, len(text))],
    lambda text: [(0, len(text) + 1)],
    lambda text: [(1, len(text))],
    lambda text: [],
]


@pytest.mark.parametrize("segmenter", WRONG)
def test_a_segmenter_that_loses_something_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match=r"a segmenter gave .* expected sentences that follow"):
        sentence_spans("<think>One. Two.</think>", [10, 24], segmenter=segmenter)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [". ", "a! ", "\n \n", "x.y 3.1 ", "\u2028."])
def test_ten_times_the_text_costs_about_ten_times(piece: str) -> None:
    size = 500_000 if piece == ". " else 200_000
    seconds = []
    for text in (piece * (size // len(piece) // 10), piece * (size // len(piece))):
        started = time.perf_counter()
        cut_sentences(text)
        seconds.append(time.perf_counter() - started)
    assert seconds[1] / seconds[0] < 40  # the rule with slices takes a hundred times as long


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({byte: i for i, byte in enumerate([*alphabet, "</s>"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def _check_spans(text: str, ends: list[int]) -> None:
    start, end = thinking_part(text)
    spans = sentence_spans(text, ends)
    assert spans[0].start_char == start
    assert spans[-1].end_char == end
    for first, second in itertools.pairwise(spans):
        assert first.end_char == second.start_char
        assert first.end_token == second.start_token
    assert all(span.start_token < span.end_token for span in spans)
