"""A rung as a model for lm-eval, under the name `howwhen`.

lm-eval 0.4.13 has no plug-ins and knows only the models in its own table. This module is therefore
also a command, lm-eval's own with one more model:

    python -m howwhen.harness.lm_eval --model howwhen --model_args pair=tally-rl,out=runs/demo \
        --tasks TASK --include_path FOLDER --batch_size 64

According to its documentation, the next version looks for models in the entry point group
`lm_eval.models`. This package registers there, so `lm-eval run --model howwhen` should work then. A
task's context is the question; each model gets it in its own prompt.
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
        f"lm-eval is not installed, or not completely ({error}); type: pip install 'howwhen[eval]'"
    ) from error

NAME = "howwhen"
"""What follows `--model`."""
_SUPPORTED = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "seed"}
_UNSET_DEVICE = "cuda:0"
"""lm-eval's default for `--device`, with or without a GPU; nothing tells it from a choice."""
_NEUTRAL_VALUES = {"num_beams": 1}
"""Values of unsupported settings that have no effect."""


class OnlyGenerationError(InputError, NotImplementedError):
    """A task or a flag asks for something other than an answer to a question."""


class _Question(NamedTuple):
    """A question with its generation settings."""

    text: str
    stops: Sequence[str]
    settings: HybridSettings


class HowwhenLM(LM):  # type: ignore[misc]
    """Answers generation tasks with a rung of the ladder."""

    def __init__(
        self, device: str | None = None, max_batch_size: int | None = None, **arguments: object
    ) -> None:
        """Open the rung.

        Args:
            device: of both models, such as `cpu` or `cuda:1`, unless `arguments` name theirs;
                lm-eval's default, `cuda:0`, means a GPU if there is one.
            max_batch_size: not used; it limits lm-eval's own search for a batch size.
            arguments: those of `RungArguments`; a batch size of `auto` means the default.

        Raises:
            SettingsError: an unknown argument or an impossible value.
            HowwhenError: whatever `howwhen.pipeline.live.open_rung` raises.
        """
        super().__init__()
        if str(arguments.get("batch_size")).startswith("auto"):
            del arguments["batch_size"]
        if device not in (None, _UNSET_DEVICE) and "device_map" not in arguments:
            arguments = {"base_device": device, "thinking_device": device, **arguments}
        self.ready = RungArguments.read(arguments).prepare()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "HowwhenLM":
        """Make a model from `--model_args`, which override flags such as `--batch_size`."""
        return cls(**{**(additional_config or {}), **arg_dict})

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> "HowwhenLM":
        """Make a model from `key=value,key=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer the question of every request, in order. A text ends before the first `until`.

        Args:
            requests: each with a context and its generation settings.
            disable_tqdm: not used; there is no progress bar.

        Raises:
            InputError: a setting that a hybrid does not support, or a context that leaves no room
                for an answer. It is raised before anything is decoded.
        """
        questions = [self._read(*request.args) for request in requests]
        by_settings: dict[HybridSettings, list[int]] = {}
        for place, question in enumerate(questions):
            by_settings.setdefault(question.settings, []).append(place)
        texts = [""] * len(questions)
        for settings, places in by_settings.items():
            traces = self.ready.answer([questions[place].text for place in places], settings)
            for place, trace in zip(places, traces, strict=True):
                texts[place] = cut(trace.text, questions[place].stops)
        return texts

    def _read(self, context: str, generation: Mapping[str, Any]) -> _Question:
        options = normalize_gen_kwargs(dict(generation), self.ready.settings.max_new_tokens)
        unknown = {
            key: value
            for key, value in options.items()
            if key not in _SUPPORTED and value not in (None, _NEUTRAL_VALUES.get(key))
        }
        if unknown:
            unset = ",".join(f"{key}=None" for key in unknown)
            raise SettingsError(
                f"the task asks for {unknown}, which a hybrid does not support; expected only "
                f"{', '.join(sorted(_SUPPORTED))}. To leave them out, type --gen_kwargs {unset}"
            )
        _, longest = fit(self.ready, context, options["max_gen_toks"])
        sampling = {key: options.get(key) for key in ("temperature", "top_p", "seed")}
        settings = changed(self.ready.settings, max_new_tokens=longest, **sampling)
        return _Question(context, options["until"], settings)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not supported.

        Raises:
            OnlyGenerationError: always.
        """
        raise _refuse("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Not supported.

        Raises:
            OnlyGenerationError: always.
        """
        raise _refuse("loglikelihood_rolling", requests)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Not supported: lm-eval calls this if --apply_chat_template was typed.

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
        "tasks with output_type generate_until. Type another one after --tasks, such as "
        "gsm8k_cot_zeroshot; `lm-eval ls tasks` shows all"
    )


def main() -> None:
    """Run lm-eval's command line. Errors of howwhen end it with one paragraph and exit code 2."""
    if NAME not in model_registry:
        model_registry.register(NAME, target=HowwhenLM)
    try:
        cli_evaluate()
    except HowwhenError as error:
        print(f"howwhen: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
