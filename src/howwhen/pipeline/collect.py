"""Step 1: the thinking model answers, or answers already written are read."""

from collections.abc import Mapping, Sequence
from functools import partial

from howwhen.collect.problems import read_problems, split_problems
from howwhen.collect.rollouts import collect_rollouts, trace_rollout
from howwhen.collect.segmenters import find_segmenter
from howwhen.collect.traces import Trace, Traces, read_traces
from howwhen.errors import SettingsError
from howwhen.formats.safetensors import Json
from howwhen.pipeline.context import Run
from howwhen.pipeline.store import StepFolder
from howwhen.records import Finish, Problem, Rollout, Split
from howwhen.settings import CollectSettings, RunSettings
from howwhen.zoo.pairs import Pair


def collect(run: Run, step: StepFolder) -> Json:
    """The thinking model answers everything but the test problems, unless that is done already."""
    settings = run.settings.collect
    traces = _read_traces(settings)
    written = {trace.problem.id: trace for trace in traces.kept} if traces else {}
    if traces:
        run.reporter.say(
            f"  traces: {len(traces.kept)} of {traces.rows} rows; {traces.passed_over.total()} "
            f"have another role, {traces.beyond_limit} are beyond --limit"
        )
    problems = draw_split(run.pair, run.settings)
    if not any(problem.split is Split.TEST for problem in problems):
        run.reporter.say(f"  WARNING: {_NO_TEST}")
    step.write_records("problems.jsonl", problems)
    wanted = [problem for problem in problems if problem.split is not Split.TEST]
    with run.reporter.task("rollouts", len(wanted)) as advance:
        rollouts = step.grow_records(
            "rollouts.jsonl",
            Rollout,
            wanted,
            settings.batch_size,
            partial(_answer, run, written),
            advance,
        )
    return {
        "problems": {s.value: sum(p.split is s for p in problems) for s in Split},
        "rollouts": len(rollouts),
        "rollouts_stopped": sum(rollout.finish == "stop" for rollout in rollouts),
        "tokens": sum(len(rollout.ids) for rollout in rollouts),
        "sentences": sum(len(rollout.spans) for rollout in rollouts),
        **({} if traces is None else {"traces": _count(traces, rollouts)}),
    }


def _read_traces(settings: CollectSettings) -> Traces | None:
    if settings.traces is None:
        return None
    return read_traces(settings.traces, settings.limit, settings.seed)


def _answer(run: Run, written: Mapping[str, Trace], batch: Sequence[Problem]) -> list[Rollout]:
    """The rollouts of one batch of problems: asked for, or read where answers are written."""
    settings = run.settings.collect
    if not written:
        return collect_rollouts(run.pair.thinking, batch, settings)
    segmenter = find_segmenter(settings)
    return [trace_rollout(run.pair.thinking, written[problem.id], segmenter) for problem in batch]


def _count(traces: Traces, rollouts: Sequence[Rollout]) -> Json:
    """Where every row of the files went."""
    return {
        "rows": traces.rows,
        "kept": len(traces.kept),
        "passed_over_by_role": dict(traces.passed_over),
        "beyond_limit": traces.beyond_limit,
        "truncated": sum(rollout.finish is Finish.LENGTH for rollout in rollouts),
    }


def draw_split(pair: Pair, settings: RunSettings) -> list[Problem]:
    """The run's problems, each with what it is for.

    Raises:
        SettingsError: a pair without problems of its own, and no file.
        ProblemError: problems that cannot be used, or that are trained on and tested on.
    """
    chosen = settings.collect
    return split_problems(_draw_problems(pair, chosen), chosen, _draw_tested(pair, chosen))


def check_test_problems(problems: Sequence[Problem]) -> None:
    """Refuse to go on to the hybrid without problems to test it on.

    Raises:
        SettingsError: no test problems among these.
    """
    if not any(problem.split is Split.TEST for problem in problems):
        raise SettingsError(_NO_TEST)


_NO_TEST = (
    "traces are all trained on, so there are no test problems for the hybrid to answer; type "
    "--collect.test-problems FILE.jsonl, with a question and an answer per line, or the name of a "
    "published set"
)


def _draw_problems(pair: Pair, chosen: CollectSettings) -> list[Problem]:
    """A file's problems, or the pair's own; all but the test problems where those are apart.

    Raises:
        SettingsError: a pair without problems of its own, and no file.
        ProblemError: a file that cannot be used.
    """
    if traces := _read_traces(chosen):
        return [trace.problem for trace in traces.kept]
    if chosen.problems is not None:
        return read_problems(chosen.problems, chosen.limit)
    if pair.draw_problems is None:
        raise SettingsError(
            f"the pair {pair.name!r} has no problems of its own; type --problems FILE.jsonl "
            'with lines such as {"question": "What is 2 + 2?", "answer": "4"}'
        )
    is_apart = chosen.test_problems is None and pair.draw_test_problems is not None
    count = chosen.limit - _test_share(chosen) if is_apart else chosen.limit
    return pair.draw_problems(count, chosen.seed)


def _draw_tested(pair: Pair, chosen: CollectSettings) -> Sequence[Problem] | None:
    """Test problems of a file or of the pair; None where they are a share of the problems."""
    if chosen.test_problems is not None:
        return read_problems(chosen.test_problems, chosen.limit)
    if chosen.problems is None and pair.draw_test_problems is not None:
        return pair.draw_test_problems(_test_share(chosen), chosen.seed)
    return None if chosen.traces is None else ()


def _test_share(chosen: CollectSettings) -> int:
    return max(1, round(chosen.limit * chosen.test_fraction))
