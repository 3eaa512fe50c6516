"""The command line as a user meets it: a paragraph, exit code 2, nothing half-written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from howwhen import Pipeline, Reporter, cli, open_run
from howwhen.cli import app, main
from howwhen.errors import HowwhenError, SettingsError
from howwhen.pipeline.hybrid import hybrid
from howwhen.settings import RunSettings
from howwhen.zoo.pairs import find_pair, list_pairs
from howwhen.zoo.tally.tokenizer import build_tokenizer

SaveFolder = Callable[..., Path]
Typed = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs a whole command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", ["howwhen", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "250")
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def refuse(message: str, *arguments: object) -> None:
    """Run in this process and expect one of our errors, with this in its message."""
    with pytest.raises(HowwhenError, match=message) as caught:
        app([str(argument) for argument in arguments], exit_on_error=False, print_error=False)
    assert len(str(caught.value)) < 700


def write_problems(folder: Path, count: int = 12) -> Path:
    rows = [{"question": f"Ann has {n} pens. How many?", "answer": n} for n in range(count)]
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_error_is_one_paragraph_and_exit_code_2(tmp_path: Path) -> None:
    """In a process of its own, as it is typed."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "howwhen", "run", "tally-xl", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("howwhen: there is no pair 'tally-xl'; expected one of tally-rl")
    assert not out.exists()


def test_a_full_gpu_is_one_paragraph_with_what_to_lower(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("howwhen: CUDA out of memory. What is finished is kept")
    assert "--elicit.positions-per-pass" in printed


def test_an_unknown_flag_is_an_error(typed: Typed, tmp_path: Path) -> None:
    code, _, error = typed("run", "tally-rl", "--out", tmp_path / "out", "--collect.limt", "3")
    assert code == 2
    assert "--collect.limit" in error
    assert not (tmp_path / "out").exists()


def test_a_missing_model_folder(save_folder: SaveFolder, tmp_path: Path) -> None:
    thinking, out = save_folder("thinking"), tmp_path / "out"
    missing = tmp_path / "nothing"
    refuse(
        "there is no model folder.*nothing",
        "run", "--base", missing, "--thinking", thinking, "--out", out,
        "--problems", write_problems(tmp_path),
    )  # fmt: skip
    assert not out.exists()


def test_unaligned_vocabularies_show_an_example(save_folder: SaveFolder, tmp_path: Path) -> None:
    base, thinking = save_folder("base"), save_folder("thinking", seed=1)
    _swap_tokens(thinking, "▁Ann", "▁Bob")
    refuse(
        "do not share a vocabulary: 2 of .* is '▁Ann' in the base and '▁Bob'",
        "run", "--base", base, "--thinking", thinking, "--out", tmp_path / "out",
        "--problems", write_problems(tmp_path),
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def _swap_tokens(folder: Path, one: str, two: str) -> None:
    backend = json.loads(build_tokenizer().backend_tokenizer.to_str())
    table = backend["model"]["vocab"]
    table[one], table[two] = table[two], table[one]
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert tokenizer.get_vocab()[one] == table[one]


@pytest.mark.parametrize("keep", [0, 20, 5000])
def test_a_truncated_model_file(save_folder: SaveFolder, tmp_path: Path, keep: int) -> None:
    base, thinking = save_folder("base"), save_folder("thinking", seed=1)
    weights = thinking / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    refuse(
        "model.safetensors is not a complete safetensors file",
        "run", "--base", base, "--thinking", thinking, "--out", tmp_path / "out",
        "--problems", write_problems(tmp_path),
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_in_yaml(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("collect:\n  limits: 3\n")
    refuse(
        r"unknown setting 'collect\.limits'",
        "run", "tally-rl", "--config", config, "--out", tmp_path / "out",
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no problems"), ('{"question": "Q?"}\n', "line 1 is a problem without 'answer'")],
)
def test_bad_problem_files(tmp_path: Path, content: str, message: str) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    path.write_text(content)
    refuse(message, "run", "tally-rl", "--problems", path, "--out", out)
    assert not out.exists()


def test_a_pair_and_two_models_at_once(tmp_path: Path) -> None:
    refuse(
        "expected either the name of a pair",
        "run", "tally-rl", "--base", "x", "--out", tmp_path / "out",
    )  # fmt: skip


def test_a_pair_without_problems_asks_for_them(save_folder: SaveFolder, tmp_path: Path) -> None:
    base, thinking = save_folder("base"), save_folder("thinking", seed=1)
    refuse(
        "has no problems of its own; type --problems FILE",
        "run", "--base", base, "--thinking", thinking, "--out", tmp_path / "out",
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_any_two_folders_run_all_six_steps(
    save_folder: SaveFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, thinking = save_folder("base"), save_folder("thinking", seed=1)
    app(
        [
            "run", "--base", str(base), "--thinking", str(thinking), "--preset", "smoke",
            "--base-prompt", "Q: {question} A:", "--problems", str(write_problems(tmp_path)),
            "--limit", "12", "--max-new-tokens", "12", "--discover.sizes", "3",
            "--discover.min-words", "1", "--out", str(tmp_path / "out"),
        ],
        result_action="return_value",
    )  # fmt: skip
    assert "takeover" in capsys.readouterr().out
    assert (tmp_path / "out" / "6-present" / "report.md").exists()


def write_traces(folder: Path, *, first: str = "Ann has 0 pens. How many?") -> Path:
    questions = [first, *(f"Bob has {n} pens. How many?" for n in range(9))]
    rows = [
        {"question": question, "text": f"[Bob has pens. So the answer is {n}.", "role": role}
        for n, question in enumerate(questions)
        for role in ("base", "thinking")
    ]
    path = folder / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_collect(*arguments: object) -> None:
    app(["collect", *map(str, arguments)], result_action="return_value")


def test_traces_are_collected_instead_of_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces, out = write_traces(tmp_path), tmp_path / "out"
    run_collect("tally-rl", "--traces", traces, "--limit", 8, "--out", out)
    assert "WARNING: all traces are used for training" in capsys.readouterr().err
    counts = json.loads((out / "1-collect" / "provenance.json").read_text())["counts"]
    assert counts["problems"] == {"train": 7, "selection": 1, "test": 0}
    assert counts["traces"] == {
        "rows": 20, "kept": 8, "passed_over_by_role": {"base": 10}, "beyond_limit": 2,
        "truncated": 0,
    }  # fmt: skip
    rollouts = (out / "1-collect" / "rollouts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in rollouts]
    assert len(set(texts)) == 8
    assert set(texts) < {f"[Bob has pens. So the answer is {n}." for n in range(10)}
    run_collect("tally-rl", "--traces", traces, "--limit", 8, "--out", out)
    assert "already done" in capsys.readouterr().err
    traces.write_text(traces.read_text().replace("Bob has pens", "Ann has pens"))
    again = ("tally-rl", "--traces", traces, "--limit", 8, "--out", out)
    refuse("the problems files changed.* add --redo", "collect", *again)
    run_collect(*again, "--redo")
    assert "settings or input changed" in capsys.readouterr().err


def test_a_run_on_traces_needs_test_problems_of_its_own(tmp_path: Path) -> None:
    traces, out = write_traces(tmp_path), tmp_path / "out"
    run = ("run", "tally-rl", "--traces", traces, "--out", out)
    refuse(r"type --collect\.test-problems FILE", *run)
    assert not out.exists()
    tested = write_problems(tmp_path)
    refuse("asks the same as training problem", *run, "--collect.test-problems", tested)
    run_collect("tally-rl", "--traces", traces, "--out", out)
    with open_run(out) as folder:
        pipeline = Pipeline(find_pair("tally-rl"), RunSettings(), folder, Reporter())
        with pytest.raises(SettingsError, match="no test problems for the hybrid"):
            hybrid(pipeline, folder.step("hybrid"))


def test_the_markers_of_ones_own_thinking_model(save_folder: SaveFolder, tmp_path: Path) -> None:
    base, thinking, out = save_folder("base"), save_folder("thinking", seed=1), tmp_path / "out"
    own = (
        "--base", base, "--thinking", thinking, "--traces", write_traces(tmp_path), "--out", out
    )  # fmt: skip
    refuse("think tags .* hold an empty text", "collect", *own, "--thinking-markers", "[", "")
    assert not out.exists()
    run_collect(*own, "--thinking-markers", "[", "]")
    provenance = json.loads((out / "1-collect" / "provenance.json").read_text())
    assert provenance["models"]["thinking"]["think_tags"] == ["[", "]"]
    assert provenance["counts"]["traces"]["truncated"] == 10
    refuse("the thinking model's think_tags was", "collect", *own)
    run_collect(*own, "--redo")
    again = json.loads((out / "1-collect" / "provenance.json").read_text())
    assert again["key"] != provenance["key"]
    assert again["counts"]["traces"]["truncated"] == 0


def test_help_lists_every_setting(typed: Typed) -> None:
    code, output, _ = typed("run", "--help")
    assert code == 0
    shown = " ".join(output.replace("│", " ").split())
    joined = shown.replace(" ", "")
    for section in RunSettings.model_fields:
        for name in type(getattr(RunSettings(), section)).model_fields:
            assert f"--{section}.{name.replace('_', '-')}" in joined


def test_an_impossible_flag_value_is_explained(typed: Typed, tmp_path: Path) -> None:
    code, _, error = typed("run", "tally-rl", "--out", tmp_path / "out", "--collect.limit", "zero")
    assert code == 2
    assert error.startswith("howwhen: setting collect.limit: Input should be a valid integer")
    assert "found 'zero'" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_later_step_does_not_make_a_run_folder(tmp_path: Path) -> None:
    refuse("there is no run folder", "measure", "tally-rl", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vectors_are_converted_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published, out = tmp_path / "published", tmp_path / "v.safetensors"
    published.mkdir()
    for key in ("bias", "idx0", "idx1"):
        torch.save({key: torch.ones(8)}, published / f"{key}.pt")
    refuse("whose vectors are these", "convert", published, "--out", out)
    convert = ["convert", str(published), "--out", str(out), "--model", "m", "--layer", "3"]
    app(convert, result_action="return_value")
    assert capsys.readouterr().out == f"2 vectors of width 8 for layer 3: {out}\n"
    folder = tmp_path / "gguf"
    app(["convert", str(out), "--out", str(folder), "--to", "gguf"], result_action="return_value")
    assert len(list(folder.glob("*.gguf"))) == 2


def test_the_zoo_lists_and_shows_every_pair(capsys: pytest.CaptureFixture[str]) -> None:
    app(["zoo", "list"], result_action="return_value")
    listed = capsys.readouterr().out
    assert len(list_pairs()) == 17
    for pair in list_pairs():
        assert pair.name in listed
        app(["zoo", "show", pair.name], result_action="return_value")
        assert pair.thinking_source in capsys.readouterr().out
    refuse("there is no pair 'x'", "zoo", "show", "x")
    refuse("nothing to build for 'x'", "zoo", "build", "x")
