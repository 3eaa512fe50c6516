"""A rung as a model of lm-eval, which knows it as `howwhen`.

lm-eval 0.4.13 has no plug-ins: it knows the models of its own table and nothing else. So this file
is also a command, lm-eval's own with one more model:

    python -m howwhen.harness.lm_eval --model howwhen --model_args pair=tally-rl,out=runs/demo \
        --tasks TASK --include_path FOLDER --batch_size 64

By its documentation the next version looks for models in the entry points `lm_eval.models`, where
ours stands; there the plain `lm-eval run --model howwhen` should do. A task's context is the
question, asked of both models in their own prompts.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from howwhen.errors import HowwhenError, InputError, MissingExtraError, SettingsError
from howwhen.harness import RungArguments, changed, cut, fit
from howwhen.settings import HybridSettings

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise MissingExtraError(
        f"lm-eval is not installed, or not whole ({error}); type: pip install 'howwhen[eval]'"
    ) from error

NAME = "howwhen"
"""What follows `--model`."""
_UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "seed"}
_WITHOUT_EFFECT = {"num_beams": 1}
"""What tasks set to the only value it has here."""


class OnlyGenerationError(InputError, NotImplementedError):
    """A task or a flag that wants something else than an answer to a question."""


class _Request(NamedTuple):
    """What one request asks for."""

    question: str
    stops: Sequence[str]
    settings: HybridSettings


class HowwhenLM(LM):  # type: ignore[misc]
    """Answers generation tasks with a rung of the ladder."""

    def __init__(
        self, device: str | None = None, max_batch_size: int | None = None, **arguments: object
    ) -> None:
        """Open the rung.

        Args:
            device: not used; lm-eval always names one. Both models stay where they are loaded.
            max_batch_size: not used; it limits lm-eval's own search for a batch size.
            arguments: those of `RungArguments`; a batch size of `auto` is the usual one.

        Raises:
            SettingsError: an unknown argument or an impossible value.
            HowwhenError: as `howwhen.answering.open_rung` raises it.
        """
        super().__init__()
        if str(arguments.get("batch_size")).startswith("auto"):
            del arguments["batch_size"]
        self.ready = RungArguments.read(arguments).prepare()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "HowwhenLM":
        """Make a model from `--model_args`, which win over flags such as `--batch_size`."""
        return cls(**{**(additional_config or {}), **arg_dict})

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> "HowwhenLM":
        """Make a model from `key=value,key=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer every request's question, in order; its text ends before the first `until`.

        Args:
            requests: each with a context and its generation settings.
            disable_tqdm: not used; there is no bar.

        Raises:
            InputError: a setting that the hybrid does not know, or a context that leaves no room
                for an answer. Nothing has been decoded then.
        """
        asked = [self._read(*request.args) for request in requests]
        alike: dict[HybridSettings, list[int]] = {}
        for place, one in enumerate(asked):
            alike.setdefault(one.settings, []).append(place)
        texts = [""] * len(asked)
        for settings, places in alike.items():
            traces = self.ready.answer([asked[place].question for place in places], settings)
            for place, trace in zip(places, traces, strict=True):
                texts[place] = cut(trace.text, asked[place].stops)
        return texts

    def _read(self, context: str, generation: Mapping[str, Any]) -> _Request:
        how = normalize_gen_kwargs(dict(generation), self.ready.settings.max_new_tokens)
        unknown = {
            key: value
            for key, value in how.items()
            if key not in _UNDERSTOOD and value not in (None, _WITHOUT_EFFECT.get(key))
        }
        if unknown:
            away = ",".join(f"{key}=None" for key in unknown)
            raise SettingsError(
                f"the task asks for {unknown}, which a hybrid cannot do; expected only "
                f"{', '.join(sorted(_UNDERSTOOD))}. Go on without by typing --gen_kwargs {away}"
            )
        _, longest = fit(self.ready, context, how["max_gen_toks"])
        sampling = {key: how.get(key) for key in ("temperature", "top_p", "seed")}
        settings = changed(self.ready.settings, max_new_tokens=longest, **sampling)
        return _Request(context, how["until"], settings)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered.

        Raises:
            OnlyGenerationError: always.
        """
        raise _refuse("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Not offered.

        Raises:
            OnlyGenerationError: always.
        """
        raise _refuse("loglikelihood_rolling", requests)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Not offered: lm-eval asks for it where --apply_chat_template was typed.

        Raises:
            OnlyGenerationError: always.
        """
        raise OnlyGenerationError(
            f"found --apply_chat_template {chat_template}, but a hybrid asks each of its two "
            "models in that model's own prompt; type the command without --apply_chat_template"
        )


def _refuse(wanted: str, requests: Sequence[Instance]) -> OnlyGenerationError:
    tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
    return OnlyGenerationError(
        f"the task {tasks} wants {wanted}, but a hybrid writes answers and scores none; expected "
        "tasks with output_type generate_until. Type another one behind --tasks, such as "
        "gsm8k_cot_zeroshot; `lm-eval ls tasks` shows all"
    )


def main() -> None:
    """Entry point: lm-eval's command line; our own errors are a paragraph and exit code 2."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=HowwhenLM)
    try:
        cli_evaluate()
    except HowwhenError as error:
        print(f"howwhen: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
