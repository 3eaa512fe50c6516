"""How a question becomes token ids: the token that begins a text, templates and their arguments."""

from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from howwhen.errors import InputError, ModelError, SettingsError
from howwhen.lm.models import LanguageModel, wrap_model
from howwhen.lm.prompts import (
    check_prompt,
    check_template_arguments,
    encode_prompt,
    prompt_text,
)
from howwhen.settings import read_prompt, read_template_arguments
from howwhen.zoo.pairs import find_pair
from howwhen.zoo.tally.tokenizer import build_tokenizer
from tests.conftest import MakeModel

BOS = "<bos>"
PLAIN = "Tom has 3 apples. {question}"


def tokenizer_that_opens(closes: bool = False) -> PreTrainedTokenizerBase:
    """Tally's tokenizer with a token that begins every text, and maybe one that ends it."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"bos_token": BOS})
    end = str(tokenizer.eos_token)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {end}" if closes else f"{BOS} $A",
        special_tokens=[
            (token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys((BOS, end))
        ],
    )
    return tokenizer


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("prompt", [PLAIN, f"{BOS}{PLAIN}", f"{BOS}{BOS}{PLAIN}"])
def test_a_tokenizer_that_opens_texts_opens_a_prompt_once(prompt: str, closes: bool) -> None:
    tokenizer = tokenizer_that_opens(closes)
    ids = encode_prompt(tokenizer, prompt_text(tokenizer, "How many apples?", prompt))
    bare = tokenizer(PLAIN.format(question="How many apples?"), add_special_tokens=False)
    assert ids == [tokenizer.convert_tokens_to_ids(BOS), *bare["input_ids"]]


@pytest.mark.parametrize("head", ["", "{{ bos_token }}"])
def test_a_template_with_or_without_the_opening_token_gives_one(head: str) -> None:
    tokenizer = tokenizer_that_opens()
    tokenizer.chat_template = head + "{{ messages[0]['content'] }}"
    ids = encode_prompt(tokenizer, prompt_text(tokenizer, "How many apples?"))
    assert ids.count(tokenizer.convert_tokens_to_ids(BOS)) == 1
    assert ids[0] == tokenizer.convert_tokens_to_ids(BOS)


def test_a_tokenizer_that_opens_nothing_leaves_prompts_as_they_are() -> None:
    tokenizer = build_tokenizer()
    for text in ("Tom has 3 apples.", f"{tokenizer.bos_token}Tom has 3 apples."):
        assert encode_prompt(tokenizer, text) == tokenizer(text, add_special_tokens=False).input_ids


SWITCHED = "{{ messages[0]['content'] }}{% if enable_thinking %} <think>{% else %} quick{% endif %}"


def switched(make_model: MakeModel, **arguments: object) -> LanguageModel:
    made = make_model()
    tokenizer = build_tokenizer()
    tokenizer.chat_template = SWITCHED
    return wrap_model(made.model, tokenizer, template=arguments, name="two modes")


def test_one_model_has_two_modes_by_the_arguments_of_its_template(make_model: MakeModel) -> None:
    quick, thinking = switched(make_model), switched(make_model, enable_thinking=True)
    assert quick.prompt_ids("3 apples?") != thinking.prompt_ids("3 apples?")
    assert not quick.starts_in_thinking
    assert thinking.starts_in_thinking
    assert thinking.prompt_ends_in("<think>")
    assert thinking.prompt_ends_in("<think>\n")  # tags may be given with a line break
    assert not thinking.prompt_ends_in("[THINK]")


def test_a_template_may_be_replaced_by_an_argument(make_model: MakeModel) -> None:
    model = switched(make_model, chat_template="Careful: {{ messages[0]['content'] }}")
    bare = model.tokenizer("Careful: 3 apples?", add_special_tokens=False)["input_ids"]
    assert model.prompt_ids("3 apples?") == bare


def test_arguments_that_no_template_sees_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ModelError, match="two modes: .*never uses .*did you mean 'enable_think"):
        switched(make_model, enable_thinkng=True).prompt_ids("3 apples?")
    with pytest.raises(InputError, match="only a chat template takes arguments"):
        wrap_model(
            make_model().model, build_tokenizer(), prompt=PLAIN, template={"a": 1}, name="plain"
        )
    with pytest.raises(InputError, match="'add_generation_prompt' is set by howwhen itself"):
        switched(make_model, add_generation_prompt=False)
    broken = switched(make_model, chat_template="{{ raise_exception('no system prompt') }}")
    with pytest.raises(ModelError, match="two modes: its chat template fails .*no system prompt"):
        broken.prompt_ids("3 apples?")


def test_template_arguments_are_read_from_json_or_a_file(tmp_path: Path) -> None:
    assert read_template_arguments('{"enable_thinking": true}') == {"enable_thinking": True}
    file = tmp_path / "arguments.json"
    file.write_text('{"level": 3}')
    assert read_template_arguments(f"@{file}") == {"level": 3}
    for wrong in ("{", "[1]", "@nowhere.json"):
        with pytest.raises(InputError, match="template arguments"):
            read_template_arguments(wrong)


def test_a_chat_with_a_message_of_ones_own(make_model: MakeModel) -> None:
    tokenizer = make_model().tokenizer
    tokenizer.chat_template = "<u>{{ messages[0]['content'] }}<a>"
    prompt = check_prompt("chat:{question} End with \\boxed{}.")
    assert prompt_text(tokenizer, "1 + {x}?", prompt) == "<u>1 + {x}? End with \\boxed{}.<a>"
    assert prompt_text(tokenizer, "1?", "Q: {question} {0}") == "Q: 1? {0}"  # braces need no care
    check_template_arguments(prompt, {"hurry": True})
    for wrong in ("chat:Think.", "Think.", "chat: ", "{questions}"):
        with pytest.raises(InputError, match="never shows the question"):
            check_prompt(wrong)


def test_prompts_are_read_from_files(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Task\n\n{question}\n\nAnswer:\n\n")
    assert read_prompt(f"@{file}") == "Task\n\n{question}\n\nAnswer:\n"
    assert read_prompt("chat") == "chat"
    with pytest.raises(SettingsError, match=r"cannot read a prompt from .*none\.txt"):
        read_prompt(f"@{tmp_path / 'none.txt'}")
    file.write_text("no question")
    with pytest.raises(InputError, match="never shows the question"):
        find_pair("tally-rl").asked(base_prompt=f"@{file}")
    pair = find_pair("tally-rl")
    file.write_text("{question} =\n")
    assert pair.asked(base_prompt=f"@{file}").base_prompt == "{question} ="
