"""A rung as a model of Inspect, which finds it through the entry point group `inspect_ai`.

    inspect eval task.py --model howwhen/tally-rl -M out=runs/demo -M rung=hybrid

Behind the slash stands the pair. Inspect hands over one request at a time, and its own batches
(`--batch`) are jobs at remote services. But it keeps many requests on the way at once, so those
that wait together are decoded together; `--max-connections` says how many may wait.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from howwhen.errors import InputError, SettingsError
from howwhen.harness import RungArguments, changed, cut, fit
from howwhen.hybrid.decoder import decode
from howwhen.pipeline.live import LoadedRung
from howwhen.records import Finish, HybridTrace, Problem
from howwhen.settings import HybridSettings
from howwhen.zoo.pairs import find_pair

GATHERING_SECONDS = 0.1
"""How long a batch that is not full waits for more requests."""
_NOT_UNDERSTOOD = {
    "best_of", "frequency_penalty", "logit_bias", "logprobs", "num_choices", "presence_penalty",
    "prompt_logprobs", "response_schema", "top_k", "top_logprobs",
}  # fmt: skip
"""What would change the answers, or what is told of them, and cannot be had."""
_WITHOUT_EFFECT = {
    "frequency_penalty": 0,
    "logprobs": False,
    "num_choices": 1,
    "presence_penalty": 0,
}
"""What asks for nothing."""


@dataclass(eq=False)
class _Waiting:
    """A question on its way; its trace comes with the batch that decodes it."""

    problem: Problem
    settings: HybridSettings
    trace: HybridTrace | None = None


@dataclass
class Gatherer:
    """Decodes concurrent questions in batches, one batch at a time, in a thread.

    Whoever gets the turn decodes for all who wait with the same settings; when their own turn
    comes, they find their traces made.
    """

    arguments: RungArguments
    _ready: LoadedRung | None = None
    _waiting: list[_Waiting] = field(default_factory=list)
    _turn: anyio.Lock = field(default_factory=anyio.Lock)

    async def ready(self) -> LoadedRung:
        """The rung, opened on first use; errors are those of `RungArguments.prepare`."""
        if self._ready is None:
            async with self._turn:
                if self._ready is None:
                    self._ready = await anyio.to_thread.run_sync(self.arguments.prepare)
        return self._ready

    async def answer(self, problem: Problem, settings: HybridSettings) -> HybridTrace:
        """The trace of one question; errors are those of `howwhen.hybrid.decoder.decode`."""
        ready, mine = await self.ready(), _Waiting(problem, settings)
        self._waiting.append(mine)
        try:
            async with self._turn:
                if mine.trace is None:
                    if len(self._alike(mine)) < settings.batch_size:
                        await anyio.sleep(GATHERING_SECONDS)
                    batch = self._alike(mine)[: settings.batch_size]
                    mine.trace = await anyio.to_thread.run_sync(_decode, ready, batch)
        finally:
            self._waiting.remove(mine)
        return mine.trace

    def _alike(self, mine: _Waiting) -> list[_Waiting]:
        """Who waits with these settings, this one first."""
        others = (one for one in self._waiting if one is not mine and one.trace is None)
        return [mine, *(one for one in others if one.settings == mine.settings)]


def _decode(ready: LoadedRung, batch: Sequence[_Waiting]) -> HybridTrace:
    """Give everyone in a batch their trace; that of the first is returned."""
    problems = [one.problem for one in batch]
    traces = decode(ready.models, problems, ready.rung, batch[0].settings)
    for one, trace in zip(batch, traces, strict=True):
        one.trace = trace
    return traces[0]


@modelapi(name="howwhen")
class HowwhenAPI(ModelAPI):  # type: ignore[misc]
    """Answers single questions with a rung of the ladder."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **arguments: object,
    ) -> None:
        """Check what was typed.

        The rung is opened by the first question: Inspect also makes models without arguments, only
        to ask for their names.

        Args:
            model_name: the pair.
            base_url: not used; no server is asked.
            api_key: not used.
            config: not used; every request brings its own.
            arguments: those of `RungArguments` but for the pair, as typed behind `-M`.

        Raises:
            PairError: no such pair.
            SettingsError: an unknown argument or an impossible value.
        """
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        find_pair(model_name)
        self.gatherer = Gatherer(RungArguments.read({**arguments, "pair": model_name}))

    def max_connections(self) -> int:
        """As many requests at once as fill a batch, where neither user nor Inspect decides."""
        return self.gatherer.arguments.batch_size

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of a text as the base reads it."""
        ready = await self.gatherer.ready()
        return len(ready.models.base.tokenizer(text)["input_ids"])

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer the question that the messages hold, up to the first of `stop_seqs`.

        Args:
            input: system and user messages, read as one question, a paragraph each.
            tools: none.
            tool_choice: not used.
            config: `max_tokens`, `temperature`, `top_p`, `seed` and `stop_seqs` are followed.
                Without a seed every draw is a new one; with it, a question has one answer.

        Raises:
            InputError: messages, tools or settings that a hybrid cannot do, or a question that
                leaves no room for an answer.
        """
        _check(tools, config)
        question = _question(input)
        ready = await self.gatherer.ready()
        prompt_tokens, longest = fit(ready, question, config.max_tokens)
        settings = changed(
            ready.settings,
            max_new_tokens=longest,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
        )
        is_new_draw = settings.temperature > 0 and config.seed is None
        name = uuid.uuid4().hex if is_new_draw else question  # draws depend on name and seed
        trace = await self.gatherer.answer(Problem(name, question, "unknown"), settings)
        return self._output(trace, prompt_tokens, config.stop_seqs or [])

    def _output(self, trace: HybridTrace, prompt_tokens: int, stops: Sequence[str]) -> ModelOutput:
        text, count = cut(trace.text, stops), len(trace.tokens)
        is_whole = trace.finish is Finish.STOP or text != trace.text
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason="stop" if is_whole else "max_tokens",
        )
        return ModelOutput(
            model=self.model_name,
            choices=[choice],
            usage=ModelUsage(
                input_tokens=prompt_tokens, output_tokens=count, total_tokens=prompt_tokens + count
            ),
            metadata={
                "rung": trace.rung,
                "steered_fraction": trace.decisions / count,
                "changed_fraction": trace.changed / count,
            },
        )


def _question(messages: Sequence[ChatMessage]) -> str:
    """The one question that system and user messages make."""
    for message in messages:
        if not isinstance(message, ChatMessageSystem | ChatMessageUser):
            raise InputError(
                f"found a message of the role {message.role!r}, but a hybrid answers one question "
                "and holds no conversation; expected system and user messages only. Use a solver "
                "that asks once, such as generate()"
            )
        kinds = [] if isinstance(message.content, str) else [one.type for one in message.content]
        if set(kinds) - {"text"}:
            raise InputError(
                f"found a message of {', '.join(kinds)}, but a hybrid reads only text; leave the "
                "sample out"
            )
    return "\n\n".join(message.text for message in messages)


def _check(tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
    """Refuse what a hybrid cannot do."""
    if tools:
        names = ", ".join(tool.name for tool in tools)
        raise InputError(f"found the tools {names}, but a hybrid uses none; leave use_tools() out")
    set_ones = config.model_dump(include=_NOT_UNDERSTOOD, exclude_none=True)
    found = {key: value for key, value in set_ones.items() if value != _WITHOUT_EFFECT.get(key)}
    if found:
        raise SettingsError(
            f"found {found} among the settings of generation, which a hybrid cannot do; expected "
            "only max_tokens, temperature, top_p, seed and stop_seqs. Leave the others out"
        )
