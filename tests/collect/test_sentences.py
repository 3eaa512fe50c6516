import gzip
import itertools
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from howwhen.collect.sentences import cut_sentences, sentence_spans, thinking_part, token_ends
from howwhen.zoo.smol.weights import SMOLLM2, cache_folder
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
]


@pytest.mark.parametrize(("text", "thinking"), THINKING)
def test_thinking_part(text: str, thinking: str) -> None:
    assert text[slice(*thinking_part(text))] == thinking


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
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer("né → ok")["input_ids"]
    assert len(ids) == 10
    text, ends = token_ends(tokenizer, ids)
    assert text == "né → ok"
    assert ends == [1, 2, 2, 3, 4, 4, 4, 5, 6, 7]


def _check_spans(text: str, ends: list[int]) -> None:
    start, end = thinking_part(text)
    spans = sentence_spans(text, ends)
    assert spans[0].start_char == start
    assert spans[-1].end_char == end
    for one, two in itertools.pairwise(spans):
        assert one.end_char == two.start_char
        assert one.end_token == two.start_token
    assert all(span.start_token < span.end_token for span in spans)
