"""A model on this machine as judge: no endpoint, no key, and replies that cost only time.

The first draw of a reply is greedy and the others are sampled, so that a reply that could not be
read is not asked for in vain.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from howwhen.errors import InputError
from howwhen.judge.endpoint import Judge, Request, Usage, open_endpoint
from howwhen.lm.generate import Sampling, generate
from howwhen.lm.models import LanguageModel, load_model
from howwhen.lm.placement import Placement
from howwhen.settings import DiscoverSettings


@dataclass(eq=False)
class LocalJudge:
    """Asks a language model that is loaded here."""

    language_model: LanguageModel
    """Asked as every model is: in its chat format, unless it has another prompt."""
    max_new_tokens: int = 512
    """Longest reply."""
    temperature: float = 1.0
    """Of every draw but the first, which is greedy."""
    batch_size: int = 4
    """Requests replied to at a time. A sampled reply depends on the others in its batch."""
    _counts: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.language_model.name

    @property
    def usage(self) -> Usage:
        """What was used so far; nothing fails here, and nothing is kept."""
        return Usage(**{name: self._counts[name] for name in Usage._fields[:-1]}, cost=None)

    def ask_many(self, requests: Sequence[Request]) -> list[str]:
        """The replies in the order of the requests; equal requests are replied to once.

        Raises:
            InputError: a request that is not one message of a user, or too long for the model.
        """
        prompts = [tuple(self._prompt(request)) for request in requests]
        keys = [(request.repeat, prompt) for request, prompt in zip(requests, prompts, strict=True)]
        unique = sorted(dict.fromkeys(keys), key=lambda key: (key[0], len(key[1])))
        replies: dict[tuple[int, tuple[int, ...]], str] = {}
        for repeat in dict.fromkeys(repeat for repeat, _ in unique):
            asked = [prompt for number, prompt in unique if number == repeat]
            for start in range(0, len(asked), self.batch_size):
                batch = asked[start : start + self.batch_size]
                texts = self._reply(batch, repeat)
                replies |= {(repeat, p): text for p, text in zip(batch, texts, strict=True)}
        return [replies[key] for key in keys]

    def _reply(self, prompts: Sequence[Sequence[int]], repeat: int) -> list[str]:
        own, temperature = self.language_model, self.temperature if repeat else 0.0
        sampling = Sampling(self.max_new_tokens, temperature, seed=repeat)
        suppressed = own.padding_ids.tolist()
        answers = generate(own.model, own.end_ids, prompts, sampling, suppressed=suppressed)
        self._counts.update(
            requests=len(prompts),
            cut=sum(not ids or ids[-1] not in own.end_ids for ids in answers),
            prompt_tokens=sum(map(len, prompts)),
            completion_tokens=sum(map(len, answers)),
        )
        return [own.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]

    def _prompt(self, request: Request) -> list[int]:
        if [message["role"] for message in request.messages] != ["user"]:
            raise InputError(
                f"a request has messages of {[one['role'] for one in request.messages]}; a local "
                "judge expects one message, of the user"
            )
        ids = self.language_model.prompt_ids(self._defuse(request.messages[0]["content"]))
        context = self.language_model.context
        if context is not None and len(ids) + self.max_new_tokens > context:
            raise InputError(
                f"a question of {len(ids)} tokens and {self.max_new_tokens} for the reply exceed "
                f"the {context} tokens that the judge {self.model} can attend to; set fewer "
                "--discover.judge-sentences or choose another --discover.judge-local"
            )
        return ids

    def _defuse(self, text: str) -> str:
        """The text with a space inside of the tokenizer's special tokens.

        Otherwise material could end the user's message and speak in the judge's place.
        """
        tokenizer = self.language_model.tokenizer
        added = tokenizer.added_tokens_decoder.values()
        own = {token.content for token in added if token.special}
        for token in sorted(own | set(tokenizer.all_special_tokens)):
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def open_judge(
    settings: DiscoverSettings,
    cache: Path | None,
    say: Callable[[str], None],
    placement: Placement = Placement(),
) -> Judge | None:
    """A model on this machine, or one behind an endpoint; None where the settings name neither.

    Args:
        settings: of the step.
        cache: folder of an endpoint's replies; None keeps none.
        say: told about damaged cache files.
        placement: of a local model.

    Raises:
        SettingsError: an address or key that cannot work.
        MissingExtraError: an endpoint without the packages of `howwhen[judge]`.
        ModelError: a local model that cannot be loaded.
    """
    if settings.judge_local is not None:
        return LocalJudge(load_model(settings.judge_local, placement=placement))
    return open_endpoint(settings, cache, say)
