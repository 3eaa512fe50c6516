"""The interface for notebooks: `hw.run`, `hw.load` and `hw.answer`.

Heavy libraries are imported by the function that needs them.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howwhen.errors import InputError, SettingsError
from howwhen.lm.prompts import TemplateArguments, ThinkTags
from howwhen.pipeline.files import STEPS
from howwhen.pipeline.folders import RunFiles
from howwhen.pipeline.reader import read_run
from howwhen.pipeline.results import Answer, RunResults
from howwhen.records import LADDER, LadderRungName, Problem
from howwhen.settings import PRESETS, Overrides, Preset, RunSettings, make_settings, read_config
from howwhen.zoo.pairs import Pair, find_pair, own_pair

if TYPE_CHECKING:
    from howwhen.progress import Reporter


def run(
    pair: str | Pair | None = None,
    *,
    preset: Preset = "small",
    base: str | None = None,
    thinking: str | None = None,
    base_prompt: str | None = None,
    thinking_prompt: str | None = None,
    think_tags: ThinkTags | None = None,
    base_template: TemplateArguments | None = None,
    thinking_template: TemplateArguments | None = None,
    problems: str | Path | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    redo: bool = False,
    reporter: "Reporter | None" = None,
    **sections: Mapping[str, Any],
) -> RunResults:
    """Do all six steps of a pair, or go on where they stopped, as `howwhen run` does.

    Args:
        pair: a name of `howwhen zoo list`, or a pair made by `hw.own_pair`.
        preset: sizes of everything that is not set otherwise.
        base: base model of your own, a folder or hub id; with `thinking`, instead of `pair`.
        thinking: thinking model of your own.
        base_prompt: how models are asked, this and the next four: as in `hw.own_pair`.
        thinking_prompt: likewise.
        think_tags: likewise.
        base_template: likewise.
        thinking_template: likewise.
        problems: JSONL file with `question` and `answer` per line, or the name of a published set.
        limit: problems taken in all.
        max_new_tokens: longest answer, in tokens.
        out: run folder; runs/PAIR by default.
        config: YAML file of settings.
        redo: run steps again that hold work made with other settings.
        reporter: shows the progress; a bar in a notebook and on a terminal by default.
        **sections: settings of a step by name, such as `hybrid={"rungs": ["takeover"]}`.

    Raises:
        InputError: a setting, model or problem file that cannot be used.
        StoreError: the folder is another pair's, damaged or in use, or redo is needed.
        MissingExtraError: a package that a step needs is not installed.
    """
    chosen = _choose_pair(pair, base, thinking).asked(
        base_prompt, thinking_prompt, think_tags, base_template, thinking_template
    )
    _check_preset(preset)
    settings = make_settings(
        PRESETS[preset],
        chosen.overrides,
        {} if config is None else read_config(Path(config)),
        _shortcuts(problems, limit, max_new_tokens),
        dict(sections),
    )
    root = _root(chosen, out)
    _run_steps(chosen, settings, root, redo, reporter)
    return RunResults(read_run(root, chosen.placed(settings.models)))


def _root(pair: Pair, out: str | Path | None) -> Path:
    return Path("runs") / pair.name if out is None else Path(out)


def _run_steps(
    pair: Pair, settings: RunSettings, root: Path, redo: bool, reporter: "Reporter | None"
) -> None:
    from howwhen.pipeline.pipeline import Pipeline
    from howwhen.pipeline.plan import check_plan, check_redo, owner_of
    from howwhen.pipeline.store import open_run
    from howwhen.progress import make_reporter

    RunFiles(root).check_owner(owner_of(pair))
    if not redo:
        check_redo(pair, settings, RunFiles(root), STEPS)
    check_plan(pair, settings)
    with open_run(root) as folder:
        Pipeline(pair, settings, folder, reporter or make_reporter(), redo).run()


def load(folder: str | Path) -> RunResults:
    """The finished steps of a run. Takes no lock, changes nothing and loads no model.

    Args:
        folder: of the run, such as `runs/tally-rl`.

    Raises:
        StoreError: there is no run in the folder, or another version of howwhen wrote it.
    """
    return RunResults(read_run(Path(folder)))


def answer(
    pair: str | Pair,
    question: str,
    *,
    rung: LadderRungName = "hybrid",
    coefficient: float | None = None,
    out: str | Path | None = None,
    preset: Preset = "small",
    max_new_tokens: int | None = None,
    reporter: "Reporter | None" = None,
) -> Answer:
    """Answer a question on a rung of a run; its first three steps are run if it has no vectors yet.

    The models stay loaded for the next question.

    Args:
        pair: a name of `howwhen zoo list`, or a pair made by `hw.own_pair`.
        question: for both models.
        rung: who answers.
        coefficient: multiple of what the vectors add; as in the run by default.
        out: run folder; runs/PAIR by default.
        preset: sizes of the first three steps, where they are run.
        max_new_tokens: longest answer, in tokens; what the models have room for by default.
        reporter: shows the progress.

    Raises:
        InputError: an empty question or one that is too long, no such pair, or no such rung.
        StoreError: a damaged run, or one in use.
    """
    from howwhen.pipeline.live import open_rungs
    from howwhen.progress import make_reporter

    chosen = _choose_pair(pair)
    _check_answer(question, rung, coefficient, preset, max_new_tokens)
    loaded = open_rungs(chosen, _root(chosen, out), preset, reporter or make_reporter())
    ready = loaded.rung(rung, coefficient)
    settings = ready.settings
    if max_new_tokens is not None:
        settings = settings.model_copy(update={"max_new_tokens": max_new_tokens})
    [trace] = ready.answer([question], settings)
    problem = Problem("question", question, "")
    return Answer(problem, replace(trace, problem_id=problem.id), chosen, ready.titles)


def _check_answer(
    question: object, rung: str, coefficient: object, preset: object, max_new_tokens: object
) -> None:
    """Refuse arguments that cannot work before anything is loaded."""
    if not (isinstance(question, str) and question.strip()):
        raise InputError(f"found the question {question!r}; expected a text that asks something")
    _check_preset(preset)
    if rung not in LADDER:
        raise SettingsError(f"there is no rung {rung!r}; expected one of {', '.join(LADDER)}")
    is_number = isinstance(coefficient, int | float) and math.isfinite(coefficient)
    if not (coefficient is None or is_number):
        raise SettingsError(f"found coefficient {coefficient!r}; expected a finite number")
    is_count = isinstance(max_new_tokens, int) and max_new_tokens > 0
    if not (max_new_tokens is None or is_count):
        raise SettingsError(f"found max_new_tokens {max_new_tokens!r}; expected at least 1")


def _check_preset(preset: object) -> None:
    if preset not in PRESETS:
        raise SettingsError(f"there is no preset {preset!r}; expected one of {', '.join(PRESETS)}")


def _choose_pair(
    pair: str | Pair | None,
    base: str | None = None,
    thinking: str | None = None,
) -> Pair:
    if isinstance(pair, Pair) and base is None and thinking is None:
        return pair
    if isinstance(pair, str) and base is None and thinking is None:
        return _find_pair(pair)
    if pair is None and base is not None and thinking is not None:
        return own_pair(base, thinking)
    raise SettingsError(
        f"found pair {pair!r}, base {base!r} and thinking {thinking!r}; expected either a pair, "
        "such as hw.run('tally-rl'), or both base and thinking"
    )


@lru_cache(maxsize=1)
def _find_pair(name: str) -> Pair:
    """A pair by name; the last one keeps its loaded models for the next call."""
    return find_pair(name)


def _shortcuts(
    problems: str | Path | None, limit: int | None, max_new_tokens: int | None
) -> Overrides:
    """The settings that short arguments mean."""
    collect: Overrides = {
        "problems": None if problems is None else str(problems),
        "limit": limit,
        "max_new_tokens": max_new_tokens,
    }
    sections = {"collect": collect, "hybrid": {"max_new_tokens": max_new_tokens}}
    return {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in sections.items()
    }
