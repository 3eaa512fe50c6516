from howwhen.hybrid.block_size import BlockSizer


def learn(
    pace: BlockSizer, decisions: list[int], low_confidence: list[int], rounds: int = 20
) -> None:
    width = 5
    for _ in range(rounds):
        is_decision = [[n in decisions for n in range(width)]]
        is_low_confidence = [[n in low_confidence for n in range(width)]]
        pace.learn(is_low_confidence, is_decision, [min([*decisions, width - 1]) + 1])


def test_blocks_shorten_with_decisions_and_lengthen_without() -> None:
    calm, busy = BlockSizer(16), BlockSizer(16)
    learn(calm, [], [])
    learn(busy, [0], [])
    assert busy.length() < BlockSizer(16).length() < calm.length() == 16


def test_decisions_where_the_base_was_unsure_do_not_shorten_blocks() -> None:
    foreseen, surprising = BlockSizer(16), BlockSizer(16)
    learn(foreseen, [2], [2])
    learn(surprising, [2], [])
    assert surprising.length() < foreseen.length()


def test_blocks_end_at_unsure_tokens_only_while_decisions_gather_there() -> None:
    pace = BlockSizer(16)
    assert pace.ends_at_low_confidence
    learn(pace, [2], [1])
    assert not pace.ends_at_low_confidence
    learn(pace, [2], [2])
    assert pace.ends_at_low_confidence


def test_a_base_that_is_always_unsure_still_learns_its_rate() -> None:
    everywhere = [0, 1, 2, 3, 4]
    calm, busy = BlockSizer(16), BlockSizer(16)
    learn(calm, [], everywhere)
    learn(busy, [4], everywhere)
    assert not calm.ends_at_low_confidence
    assert not busy.ends_at_low_confidence
    assert busy.length() < calm.length() == 16


def test_stepwise_stays_stepwise() -> None:
    pace = BlockSizer(1)
    learn(pace, [], [])
    assert pace.length() == 1
    assert not pace.ends_at_low_confidence
