"""Judges behind a real HTTP server that read the prompts of the three scores."""

import re
from collections.abc import Callable

from howwhen.discover.judge_prompts import PromptKind
from tests.judge.endpoint import Answer, Endpoint, completion


def kind_of(prompt: str) -> PromptKind:
    if prompt.startswith("Find"):
        return "belong"
    return "fit" if "describe" in prompt[:40] else "alike"


def judging(judge: Callable[[str], str]) -> Endpoint:
    """A server whose judge replies to the prompt."""
    return Endpoint(lambda _, body: Answer(completion(judge(body["messages"][0]["content"]))))


def items_of(prompt: str) -> list[str]:
    """The numbered items as a careful reader takes them."""
    code = re.search(r"carry the code ([0-9a-f]{16})", prompt)
    assert code is not None
    inside = re.search(
        rf"<<<(?:sentences|pairs) {code[1]}>>>\n(.*)\n<<<end of (?:sentences|pairs) {code[1]}>>>",
        prompt,
        re.DOTALL,
    )
    assert inside is not None
    items = re.split(r"^\[\d+\] ", inside[1], flags=re.MULTILINE)[1:]
    assert re.findall(r"^\[(\d+)\]", inside[1], re.MULTILINE) == [
        str(n) for n in range(1, len(items) + 1)
    ]
    return items
