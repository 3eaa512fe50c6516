import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from howwhen.cli import app
from howwhen.collect.sentences import cut_sentences
from howwhen.errors import OutOfTimeError, StoreError
from howwhen.lm.models import load_model
from howwhen.zoo.tally import TALLY_WEIGHTS, tally_problems, tally_truth
from howwhen.zoo.tally.corpus import (
    Habits,
    base_solution,
    draw_base_document,
    draw_teacher_document,
    teacher_solution,
)
from howwhen.zoo.tally.tokenizer import build_tokenizer
from howwhen.zoo.tally.train import BuildSettings, build, encode, is_right, prompt_ids, sample
from howwhen.zoo.tally.truth import (
    Behaviour,
    Operation,
    Step,
    TallyProblem,
    draw_problems,
    label_sentences,
    right_next,
)

PROBLEM = TallyProblem(
    "Ann", "pens", 7, (Step(Operation.DOUBLE, 0), Step(Operation.PACKS, 2), Step(Operation.LOSE, 4))
)


def cut(text: str) -> list[str]:
    return [text[start:end].strip() for start, end in cut_sentences(text)]


def test_values_by_hand() -> None:
    assert PROBLEM.values == (7, 14, 24, 20)
    assert PROBLEM.question == (
        "Ann has 7 pens. Ann doubles them. Ann buys 2 packs. Ann loses 4. "
        "How many pens does Ann have?"
    )


def test_habits_make_the_known_mistakes() -> None:
    careless = Habits(1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    assert base_solution(PROBLEM, Random(0), careless).endswith(
        "Twice 7 is 16. Next, Ann buys 2 packs. 16 plus 2 is 18. "
        "Next, Ann loses 4. 18 minus 4 is 14. So the answer is 14."
    )
    hasty = Habits(1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    assert base_solution(PROBLEM, Random(0), hasty).endswith(
        "14 plus 10 is 24. So the answer is 24."
    )
    careful = Habits(1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    text = base_solution(PROBLEM, Random(0), careful)
    assert "Check: half of 16 is 8, wrong. Wait, let me redo that. Twice 7 is 14." in text
    assert text.endswith("So the answer is 20.")


def test_every_sentence_of_every_writer_has_a_label_and_every_word_a_token() -> None:
    tokenizer, rng = build_tokenizer(), Random(1)
    for _ in range(300):
        for question, text in (draw_base_document(rng), draw_teacher_document(rng)):
            assert None not in label_sentences(cut(text)), text
            for part in (question, text):
                ids = tokenizer(part, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == part


def test_labels_have_two_levels() -> None:
    text = "Ann starts with 7 pens. Next, Ann doubles them. Twice 7 is 16. Hm. So the answer is 16."
    truth = tally_truth(cut(text))
    assert truth["behaviour"] == ["restate", "focus", "compute", None, "conclude"]
    assert truth["operation"] == ["restate", "focus/double", "compute/double", None, "conclude"]


NEXT = [
    ("", {Behaviour.RESTATE, Behaviour.FOCUS}),
    ("Next, Ann doubles them.", {Behaviour.COMPUTE}),
    ("Next, Ann doubles them. Twice 7 is 16.", {Behaviour.CHECK}),
    ("Next, Ann doubles them. Twice 7 is 14.", {Behaviour.CHECK, Behaviour.FOCUS}),
    (
        "Next, Ann doubles them. Twice 7 is 16. Check: half of 16 is 8, wrong.",
        {Behaviour.BACKTRACK},
    ),
    (
        "Next, Ann doubles them. Twice 7 is 16. Check: half of 16 is 8, wrong. "
        "Wait, let me redo that. Twice 7 is 14.",
        {Behaviour.FOCUS},
    ),
    ("Next, Ann doubles them. Twice 7 is 14. Next, Ann buys 2 packs.", {Behaviour.RECALL}),
    (
        "Next, Ann doubles them. Twice 7 is 14. Next, Ann buys 2 packs. 14 plus 10 is 24. "
        "Next, Ann loses 4. 24 minus 4 is 20.",
        {Behaviour.CONCLUDE},
    ),
    ("Next, Ann doubles them. Twice 7 is 16. Next, Ann buys 2 packs. 16 plus 2 is 18.", set()),
    ("So the answer is 3.", set()),
    ("Nonsense here.", set()),
]


@pytest.mark.parametrize(("text", "right"), NEXT)
def test_what_is_right_next(text: str, right: set[Behaviour]) -> None:
    assert right_next(PROBLEM, label_sentences(cut(text))) == right


def test_following_what_is_right_next_always_answers_right() -> None:
    """Decision points are truth: whoever obeys them ends with the right number."""
    careful = Habits(1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.0)
    for number, problem in enumerate(draw_problems(100, seed=5)):
        sentences = cut(base_solution(problem, Random(number), careful))
        labels = label_sentences(sentences)
        for index, label in enumerate(labels):
            assert label is not None
            assert label.behaviour in right_next(problem, labels[:index]), sentences[: index + 1]
        assert sentences[-1] == f"So the answer is {problem.answer}."
    assert teacher_solution(problem).endswith(f"the answer is {problem.answer}.")


def test_problems_are_different_and_repeat_with_their_seed() -> None:
    problems = draw_problems(200, seed=1)
    assert problems == draw_problems(200, seed=1)
    questions = {problem.question for problem in problems}
    assert len(questions) == 200
    assert not questions & {
        p.question for p in draw_problems(200, seed=1, without=sorted(questions))
    }
    assert tally_problems(3, 1)[0].answer == str(problems[0].answer)


def test_the_outcome_reward_reads_nothing_but_the_conclusion() -> None:
    tokenizer = build_tokenizer()

    def reward(text: str, end: bool = True) -> bool:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return is_right(tokenizer, [*ids, tokenizer.eos_token_id] if end else ids, PROBLEM)

    assert reward("So the answer is 20.")
    assert reward("3 plus 4 is 9. So the answer is 20.")
    assert not reward("So the answer is 20.", end=False)
    assert not reward("So the answer is 20. So the answer is 21.")
    assert not reward("14 plus 6 is 20.")
    assert not is_right(tokenizer, [], PROBLEM)


TINY = BuildSettings(
    batch_documents=4, pretrain_steps=3, rounds=1, round_problems=4, round_samples=2,
    round_steps=2, distil_steps=2,
)  # fmt: skip


def test_a_build_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from howwhen.zoo import training
    from howwhen.zoo.tally import train

    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    monkeypatch.setattr(train, "sample_right", _every_document_is_right)
    build(tmp_path / "whole", TINY, lambda _: None)
    real, calls = train.answer_loss, [0]

    def fails_sometimes(*arguments: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] in (3, 5, 8):
            raise InterruptedError
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "answer_loss", fails_sometimes)
    for _ in range(3):
        with pytest.raises(InterruptedError):
            build(tmp_path / "parts", TINY, lambda _: None)
    build(tmp_path / "parts", TINY, lambda _: None)
    for name in ("base", "rl", "sft"):
        whole, parts = (
            load_file(tmp_path / r / name / "model.safetensors") for r in ("whole", "parts")
        )
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def _every_document_is_right(*arguments: object) -> tuple[list[object], float]:
    tokenizer = build_tokenizer()
    return [encode(tokenizer, *draw_base_document(Random(n))) for n in range(6)], 1.0


def test_a_build_stops_at_its_time_budget_and_resumes(tmp_path: Path) -> None:
    base_only = replace(TINY, rounds=0, distil_steps=0)
    build(tmp_path / "whole", base_only, lambda _: None)
    for _ in range(base_only.pretrain_steps):
        with pytest.raises(OutOfTimeError, match="base: the time is used up; the same command"):
            build(tmp_path / "parts", base_only, lambda _: None, deadline=0.0)
    build(tmp_path / "parts", base_only, lambda _: None, deadline=0.0)
    whole, parts = (
        (tmp_path / run / "base" / "model.safetensors").read_bytes() for run in ("whole", "parts")
    )
    assert whole == parts


def test_the_command_stops_at_its_time_budget(tmp_path: Path) -> None:
    command = ["zoo", "build", "tally", "--out", str(tmp_path / "z"), "--hours", "0"]
    with pytest.raises(OutOfTimeError, match="base: the time is used up; the same command"):
        app(command, exit_on_error=False, print_error=False)
    assert (tmp_path / "z" / "work" / "base.safetensors").exists()


def test_a_build_does_not_mix_settings(tmp_path: Path) -> None:
    build_base_only = replace(TINY, rounds=0, distil_steps=0)
    build(tmp_path, build_base_only, lambda _: None)
    with pytest.raises(StoreError, match="written by a build with other settings"):
        build(tmp_path, BuildSettings(), lambda _: None)


def test_the_shipped_weights_are_small_and_say_how_they_were_made() -> None:
    files = list(TALLY_WEIGHTS.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {
        "base", "rl", "sft", "small", "which-base", "which-rl",
    }  # fmt: skip
    assert sum(file.stat().st_size for file in TALLY_WEIGHTS.rglob("*")) < 20e6
    assert json.loads((TALLY_WEIGHTS / "settings.json").read_text())["seed"] == 0


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("base", 0.05, 0.4),
        pytest.param("rl", 0.85, 1, marks=pytest.mark.slow),
        pytest.param("sft", 0.85, 1, marks=pytest.mark.slow),
    ],
)
def test_the_shipped_models_are_as_good_as_claimed(name: str, low: float, high: float) -> None:
    """On 120 fresh problems; the closing figures are measured on 500."""
    loaded = load_model(TALLY_WEIGHTS / name)
    tokenizer, problems = build_tokenizer(), draw_problems(120, seed=77)
    assert loaded.tokenizer.get_vocab() == tokenizer.get_vocab()
    prompts = [prompt_ids(tokenizer, problem.question) for problem in problems]
    answers = sample(loaded.model, tokenizer, prompts, 0.0, 0)
    right = sum(is_right(tokenizer, a, p) for a, p in zip(answers, problems, strict=True))
    assert low <= right / len(problems) <= high
