import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from howwhen.collect.problems import split_problems
from howwhen.collect.rollouts import trace_rollout
from howwhen.collect.traces import Trace, read_traces
from howwhen.errors import InputError, ProblemError, SettingsError
from howwhen.records import Finish, Problem, Split
from howwhen.settings import CollectSettings, make_settings
from tests.conftest import DATA, MakeModel, needs_data

GOOD = {"question": "Q?", "text": "A. B."}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_become_problems_and_texts(tmp_path: Path) -> None:
    text = "<think>a\u2028 \r\n</think> 4 "
    path = write(
        tmp_path / "own.jsonl",
        {"question": "Q?", "text": text},
        {"question": "R?", "text": "b", "id": 7, "gold": 4, "dataset": "d", "finish": "length"},
        {"question": "S?", "text": "c", "gold": None, "answer": "5", "role": "thinking"},
        {"question": "T?", "text": "c", "answer": "6", "role": None, "finish": None},
    )
    traces = read_traces([path])
    assert [trace.problem for trace in traces.kept] == [
        Problem("own-1", "Q?", "", dataset="own"),
        Problem("7", "R?", "4", dataset="d"),
        Problem("own-3", "S?", "", dataset="own"),
        Problem("own-4", "T?", "6", dataset="own"),
    ]
    assert traces.kept[0].text == text
    assert [trace.finish for trace in traces.kept] == [None, Finish.LENGTH, None, None]
    assert (traces.rows, traces.passed_over, traces.beyond_limit) == (4, {}, 0)


def test_other_roles_and_what_the_limit_leaves_out_are_counted(tmp_path: Path) -> None:
    rows = [{**GOOD, "role": role} for role in ("base", "thinking", "hybrid", "base", "thinking")]
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, [*rows, {"role": "base"}])).encode()))
    traces = read_traces([str(path)], limit=1)
    assert traces.kept[0].problem.id in ("t-2", "t-5")
    assert (traces.rows, traces.passed_over, traces.beyond_limit) == (
        6,
        {"base": 3, "hybrid": 1},
        1,
    )
    assert traces.rows == len(traces.kept) + sum(traces.passed_over.values()) + traces.beyond_limit


def test_a_limit_draws_from_every_file_and_keeps_the_order(tmp_path: Path) -> None:
    paths = []
    for name in "ab":
        rows = [{**GOOD, "id": f"{name}{number:02}"} for number in range(40)]
        paths.append(write(tmp_path / f"{name}.jsonl", *rows))
    drawn = [trace.problem.id for trace in read_traces(paths, limit=20, seed=3).kept]
    assert drawn == sorted(set(drawn))
    assert {name[0] for name in drawn} == {"a", "b"}
    assert drawn == [trace.problem.id for trace in read_traces(paths, limit=20, seed=3).kept]
    assert drawn != [trace.problem.id for trace in read_traces(paths, limit=20, seed=4).kept]


def test_ids_are_told_apart_by_the_model(tmp_path: Path) -> None:
    first, second = ({**GOOD, "id": "a", "model": model} for model in "xy")
    path = write(tmp_path / "one.jsonl", first, {**GOOD, "id": "b", "model": "x"})
    other = write(tmp_path / "two.jsonl", second)
    traces = read_traces([path, other])
    assert [trace.problem.id for trace in traces.kept] == ["x/a", "b", "y/a"]
    with pytest.raises(ProblemError, match=r"one\.jsonl, line 1 both hold the trace 'a' of model"):
        read_traces([path, other, path])


BAD = [
    ("", "no trace of role 'thinking' or without a role .found no rows"),
    ('{"question": "Q?", "text": "a", "role": "base"}', "found 1 of role 'base'"),
    ('{"question": "Q?"}', "line 1 has text None"),
    ('{"question": "Q?", "response": "a"}', "line 1 has text None"),
    ('{"question": "Q?", "text": " "}', "line 1 has text ' '"),
    ('{"text": "a"}', "line 1 has question None"),
    ('{"question": ["Q?"], "text": "a"}', r"line 1 has question \['Q\?'\]"),
    ('{"question": "Q?", "text": "a", "gold": true}', "line 1 has gold True"),
    ('{"question": "Q?", "text": "a", "finish": "eos"}', "finish 'eos'; expected stop or length"),
    ('{"question": "Q?", "text": "a \\ud83d"}', "text with half a character"),
    ("[1]", "line 1 has question None"),
    ("[" * 100_000, "line 1 is not JSON"),
    ("{", "line 1 is not JSON"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_rows_are_refused_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content + "\n")
    with pytest.raises(ProblemError, match=message):
        read_traces([path])


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="cannot read traces from"):
        read_traces([tmp_path / "none.jsonl"])
    broken = tmp_path / "b.jsonl.gz"
    broken.write_bytes(gzip.compress(b"x" * 9999)[:10] + b"\xff" * 30)
    with pytest.raises(ProblemError, match="cannot read traces from"):
        read_traces([broken])


def test_traces_train_and_select_and_the_test_set_is_another() -> None:
    problems = [Problem(f"{n}-{m}", f"Q{n}?", "") for n in range(20) for m in "xy"]
    split = split_problems(problems, CollectSettings(), ())
    counts = {part: sum(problem.split is part for problem in split) for part in Split}
    assert counts == {Split.TRAIN: 36, Split.SELECTION: 4, Split.TEST: 0}
    chosen = {problem.question for problem in split if problem.split is Split.SELECTION}
    assert len(chosen) == 2  # both answers to a question stay together
    with pytest.raises(ProblemError, match="asks the same as training problem"):
        split_problems(problems, CollectSettings(), [Problem("t", "q3", "1")])


def make_trace(text: str, finish: Finish | None = None) -> Trace:
    return Trace(Problem("a", "How many?", ""), text, finish, "m", "t.jsonl, line 1")


FINISHES = [
    ("<think>Ann. Bob.</think> 4", None, Finish.STOP),
    ("Ann. Bob.</think> 4", None, Finish.STOP),
    ("Ann. Bob.", None, Finish.STOP),
    ("<think>Ann. Bob.", None, Finish.LENGTH),
    ("Ann. Bob.</think> the tag <think>", None, Finish.STOP),
    ("<think>Ann. Bob.", Finish.STOP, Finish.STOP),
    ("Ann. Bob.</think> 4", Finish.LENGTH, Finish.LENGTH),
]


@pytest.mark.parametrize(("text", "given", "finish"), FINISHES)
def test_a_trace_that_opened_its_thinking_for_good_was_cut_off(
    make_model: MakeModel, text: str, given: Finish | None, finish: Finish
) -> None:
    rollout = trace_rollout(make_model(), make_trace(text, given))
    assert (rollout.finish, rollout.text) == (finish, text)
    assert rollout.sentences() == ["Ann.", " Bob."]


def test_the_text_stays_as_it_was_written_where_the_tokenizer_would_alter_it(
    make_model: MakeModel,
) -> None:
    model, text = make_model(), "Ann  has\t7 zebras.\r\n\r\n So 7 plus 5 is 12 .  "
    rollout = trace_rollout(model, make_trace(text))
    assert model.tokenizer.decode(rollout.ids) != text
    assert rollout.text == "".join(rollout.sentences()) == text
    assert rollout.spans[0].end_char == text.index(" So")
    tokens = model.tokenizer.convert_ids_to_tokens(list(rollout.ids))
    assert tokens[rollout.spans[1].start_token] == "▁So"
    assert rollout.spans[-1].end_token == len(rollout.ids)


def test_the_markers_are_the_models(make_model: MakeModel) -> None:
    model = replace(make_model(), think_tags=("[[", "]]"))
    rollout = trace_rollout(model, make_trace("[[Ann. <think> Bob."))
    assert rollout.finish is Finish.LENGTH
    assert rollout.sentences() == ["Ann.", " <think> Bob."]


def test_an_answer_beyond_the_context_is_refused_with_its_row(make_model: MakeModel) -> None:
    message = r"t\.jsonl, line 1: a prompt of .* answer of 301 .*leave the row"
    with pytest.raises(InputError, match=message):
        trace_rollout(make_model(), make_trace("Ann " * 300))


def test_traces_and_problems_exclude_each_other() -> None:
    with pytest.raises(SettingsError, match="expected one of them"):
        make_settings({"collect": {"traces": ("t.jsonl",), "problems": "p.jsonl"}})
    with pytest.raises(SettingsError, match="traces without a file"):
        make_settings({"collect": {"traces": ()}})


@needs_data
def test_the_authors_published_answers_are_read_whole() -> None:
    folder = DATA / "traces"
    paths = sorted((folder / "responses").glob("*.gz"))
    traces = read_traces(paths)
    assert len(traces.kept) == 950
    assert traces.passed_over == {"base": 150}
    assert len({trace.problem.id for trace in traces.kept}) == 950
    assert all(trace.problem.answer == "" for trace in traces.kept)
    runs = sorted(folder.glob("qwen2.5-32b*_gsm8k.jsonl.gz"))
    assert len(read_traces(runs).kept) == 986
