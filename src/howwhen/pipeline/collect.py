"""Step 1: the thinking model answers, or answers already written are read."""

from collections.abc import Mapping, Sequence
from functools import partial

from howwhen.collect.rollouts import collect_rollouts, trace_rollout
from howwhen.collect.segmenters import find_segmenter
from howwhen.collect.traces import Trace, Traces
from howwhen.formats.safetensors import Json
from howwhen.pipeline.context import Run
from howwhen.pipeline.problems import NO_TEST, draw_split, read_written
from howwhen.pipeline.store import StepFolder
from howwhen.records import Finish, Problem, Rollout, Split


def collect(run: Run, step: StepFolder) -> Json:
    """The thinking model answers everything but the test problems, unless that is done already."""
    settings = run.settings.collect
    traces = read_written(settings)
    written = {trace.problem.id: trace for trace in traces.kept} if traces else {}
    if traces:
        run.reporter.say(
            f"  traces: {len(traces.kept)} of {traces.rows} rows; {traces.passed_over.total()} "
            f"have another role, {traces.beyond_limit} are beyond --limit"
        )
    problems = draw_split(run.pair, run.settings)
    if not any(problem.split is Split.TEST for problem in problems):
        run.reporter.say(f"  WARNING: {NO_TEST}")
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
