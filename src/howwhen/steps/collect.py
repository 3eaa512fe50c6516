"""Step 1: the thinking model answers."""

from typing import TYPE_CHECKING

from howwhen.collect.problems import read_problems, split_problems
from howwhen.collect.rollouts import collect_rollouts
from howwhen.errors import SettingsError
from howwhen.records import Problem, Rollout, Split
from howwhen.settings import RunSettings
from howwhen.store import Json, StepFolder
from howwhen.zoo.pairs import Pair

if TYPE_CHECKING:
    from howwhen.pipeline import Pipeline


def collect(run: "Pipeline", step: StepFolder) -> Json:
    """The thinking model answers everything but the test problems."""
    settings = run.settings.collect
    problems = draw_split(run.pair, run.settings)
    step.write_records("problems.jsonl", problems)
    wanted = [problem for problem in problems if problem.split is not Split.TEST]
    with run.reporter.task("rollouts", len(wanted)) as advance:
        rollouts = step.grow_records(
            "rollouts.jsonl",
            Rollout,
            wanted,
            settings.batch_size,
            lambda batch: collect_rollouts(run.pair.thinking, batch, settings),
            advance,
        )
    return {
        "problems": {s.value: sum(p.split is s for p in problems) for s in Split},
        "rollouts": len(rollouts),
        "rollouts_stopped": sum(rollout.finish == "stop" for rollout in rollouts),
        "tokens": sum(len(rollout.ids) for rollout in rollouts),
        "sentences": sum(len(rollout.spans) for rollout in rollouts),
    }


def draw_split(pair: Pair, settings: RunSettings) -> list[Problem]:
    """The run's problems, each with what it is for.

    Raises:
        SettingsError: a pair without problems of its own, and no file.
        ProblemError: problems that cannot be used, or that are trained on and tested on.
    """
    chosen = settings.collect
    problems = _draw_problems(pair, settings)
    if chosen.test_problems is None:
        return split_problems(problems, chosen)
    tested = read_problems(chosen.test_problems, chosen.limit)
    return split_problems(problems, chosen, tested)


def _draw_problems(pair: Pair, settings: RunSettings) -> list[Problem]:
    """A file's problems, or the pair's own.

    Raises:
        SettingsError: a pair without problems of its own, and no file.
        ProblemError: a file that cannot be used.
    """
    chosen = settings.collect
    if chosen.problems is not None:
        return read_problems(chosen.problems, chosen.limit)
    if pair.draw_problems is not None:
        return pair.draw_problems(chosen.limit, chosen.seed)
    raise SettingsError(
        f"the pair {pair.name!r} has no problems of its own; type --problems FILE.jsonl "
        'with lines such as {"question": "What is 2 + 2?", "answer": "4"}'
    )
