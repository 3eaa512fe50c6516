"""A rung as a model for Inspect, which finds it through the entry point group `inspect_ai`.

    inspect eval task.py --model howwhen/tally-rl -M out=runs/demo -M rung=hybrid

The pair follows the slash. Inspect hands over one request at a time, and its own batches
(`--batch`) are jobs at remote services. It keeps many requests in flight, however, which are
answered side by side. `--max-connections` sets how many.
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
from howwhen.hybrid.decoder import trace_of
from howwhen.pipeline.live import LoadedRung
from howwhen.records import Finish, HybridToken, HybridTrace, Problem
from howwhen.serve.engine import Engine, Event, GenerationRequest
from howwhen.settings import HybridSettings
from howwhen.zoo.pairs import find_pair

LOOK_AGAIN_SECONDS = 0.02
"""How often it is looked whether an answer has ended."""
MAX_WAITING = 100_000
"""Requests that may wait; Inspect itself limits them by `--max-connections`."""
_UNSUPPORTED = {
    "best_of", "frequency_penalty", "logit_bias", "logprobs", "num_choices", "presence_penalty",
    "prompt_logprobs", "response_schema", "top_k", "top_logprobs",
}  # fmt: skip
"""Settings that would change the answers or what is reported about them."""
_NEUTRAL_VALUES = {
    "frequency_penalty": 0,
    "logprobs": False,
    "num_choices": 1,
    "presence_penalty": 0,
}
"""Values of unsupported settings that have no effect."""


@dataclass
class AskedTogether:
    """Answers concurrent questions side by side: each joins those that are being answered."""

    arguments: RungArguments
    _ready: LoadedRung | None = None
    _engine: Engine | None = None
    _lock: anyio.Lock = field(default_factory=anyio.Lock)

    async def ready(self) -> LoadedRung:
        """The rung, opened on first use. Raises what `RungArguments.prepare` raises."""
        if self._ready is None:
            async with self._lock:
                if self._ready is None:
                    self._ready = await anyio.to_thread.run_sync(self.arguments.prepare)
        return self._ready

    async def answer(self, problem: Problem, settings: HybridSettings) -> HybridTrace:
        """The trace of one question. Raises what `howwhen.hybrid.decoder.decode` raises."""
        ready = await self.ready()
        engine = self._engine = self._engine or _start(ready)
        tokens: list[HybridToken] = []
        ends: list[Finish | Exception] = []

        def deliver(event: Event) -> None:  # called from another thread, which must not wait
            if isinstance(event, Finish | Exception):
                ends.append(event)
            else:
                tokens.extend(event)

        request = GenerationRequest(problem.question, ready.rung.name, settings, draw=problem.id)
        pending = engine.submit(request, deliver)
        try:
            while not ends:
                await anyio.sleep(LOOK_AGAIN_SECONDS)
        finally:
            engine.cancel(pending)
        if isinstance(ends[0], Exception):
            raise ends[0]
        return trace_of(ready.models, problem, ready.rung, 0, tokens)

    def close(self) -> None:
        """Stop answering; a later question begins anew."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _start(ready: LoadedRung) -> Engine:
    engine = Engine(
        ready.models,
        lambda _name, _strength: ready.rung,
        batch_size=ready.settings.batch_size,
        max_waiting=MAX_WAITING,
        phrases=ready.phrases,
    )
    engine.start()
    return engine


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
        """Check the arguments.

        The rung is opened by the first question, because Inspect also makes models without
        arguments, only to look up their names.

        Args:
            model_name: the pair.
            base_url: not used; no server is called.
            api_key: not used.
            config: not used; every request brings its own.
            arguments: those of `RungArguments` except the pair, as typed after `-M`.

        Raises:
            PairError: no such pair.
            SettingsError: an unknown argument or an impossible value.
        """
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        find_pair(model_name)
        self.together = AskedTogether(RungArguments.read({**arguments, "pair": model_name}))

    def max_connections(self) -> int:
        """Concurrent requests unless the user or Inspect sets a number: as many as fill a batch."""
        return self.together.arguments.batch_size

    async def count_text_tokens(self, text: str) -> int:
        """Number of tokens in a text, by the base's tokenizer."""
        ready = await self.together.ready()
        return len(ready.models.base.tokenizer(text)["input_ids"])

    def close(self) -> None:
        """Stop the thread that answers."""
        self.together.close()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer the question in the messages, up to the first of `stop_seqs`.

        Args:
            input: system and user messages, joined into one question with a paragraph for each.
            tools: must be empty.
            tool_choice: not used.
            config: `max_tokens`, `temperature`, `top_p`, `seed` and `stop_seqs` are used.
                Sampling without a seed draws a new answer each time; with a seed it is repeatable.

        Raises:
            InputError: messages, tools or settings that a hybrid does not support, or a question
                that leaves no room for an answer.
        """
        _check(tools, config)
        question = _question(input)
        ready = await self.together.ready()
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
        trace = await self.together.answer(Problem(name, question, "unknown"), settings)
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
    """The question that system and user messages add up to."""
    for message in messages:
        if not isinstance(message, ChatMessageSystem | ChatMessageUser):
            raise InputError(
                f"found a message of the role {message.role!r}, but a hybrid answers one question "
                "and holds no conversation; expected system and user messages only. Use a solver "
                "that asks once, such as generate()"
            )
        kinds = [] if isinstance(message.content, str) else [part.type for part in message.content]
        if set(kinds) - {"text"}:
            raise InputError(
                f"found a message of {', '.join(kinds)}, but a hybrid reads only text; leave the "
                "sample out"
            )
    return "\n\n".join(message.text for message in messages)


def _check(tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
    """Refuse what a hybrid does not support."""
    if tools:
        names = ", ".join(tool.name for tool in tools)
        raise InputError(f"found the tools {names}, but a hybrid uses none; leave use_tools() out")
    settings = config.model_dump(include=_UNSUPPORTED, exclude_none=True)
    unsupported = {
        key: value for key, value in settings.items() if value != _NEUTRAL_VALUES.get(key)
    }
    if unsupported:
        raise SettingsError(
            f"found {unsupported} in the generation settings, which a hybrid does not support; "
            "expected only max_tokens, temperature, top_p, seed and stop_seqs. Leave the others out"
        )
