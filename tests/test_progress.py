"""Progress on a terminal, in a notebook, and in a file."""

from io import StringIO

import pytest
from rich.console import Console

from howwhen.progress import NotebookReporter, Reporter, make_reporter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set by hand."""
    seconds = [100.0]
    monkeypatch.setattr("howwhen.progress.time.monotonic", lambda: seconds[0])
    return seconds


def test_a_file_gets_a_line_every_ten_seconds_with_the_time_left(clock: list[float]) -> None:
    stream = StringIO()
    reporter = Reporter(Console(file=stream))
    with reporter.task("rollouts", 10) as advance:
        advance(2)  # resumed: the first two cost nothing
        clock[0] += 9.9
        advance(3)
        clock[0] += 2.1
        advance(4)
        clock[0] += 5
        advance(10)
    assert stream.getvalue().splitlines() == [
        "  rollouts: 4/10, about 36 s left",
        "  rollouts: 10/10",
    ]


def test_a_line_is_printed_as_it_is(clock: list[float]) -> None:
    stream = StringIO()
    Reporter(Console(file=stream, width=20)).say("[bold] 1/2 of a line that is long [/bold]")
    assert stream.getvalue() == "[bold] 1/2 of a line that is long [/bold]\n"


def test_a_terminal_gets_a_bar() -> None:
    stream = StringIO()
    reporter = Reporter(Console(file=stream, force_terminal=True, width=80))
    with reporter.task("rollouts", 10) as advance:
        advance(10)
    assert "10/10" in stream.getvalue()
    assert "━" in stream.getvalue()


def test_a_notebook_gets_one_output_with_a_bar_that_ends_as_a_line(clock: list[float]) -> None:
    shown: list[str] = []
    reporter = NotebookReporter(show=shown.append)
    reporter.say("1 <collect>")
    with reporter.task("rollouts", 10) as advance:
        assert '<progress max="10" value="0">' in shown[-1]
        advance(1)
        assert 'value="1"' not in shown[-1]
        clock[0] += 0.3
        advance(7)
        assert '<progress max="10" value="7">' in shown[-1]
        assert "1 &lt;collect&gt;" in shown[-1]
    assert "progress" not in shown[-1]
    assert "  rollouts: 7/10" in shown[-1]


@pytest.mark.parametrize(("is_notebook", "kind"), [(True, NotebookReporter), (False, Reporter)])
def test_the_reporter_suits_where_the_process_runs(
    monkeypatch: pytest.MonkeyPatch, is_notebook: bool, kind: type[Reporter]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: is_notebook)
    assert type(make_reporter()) is kind
