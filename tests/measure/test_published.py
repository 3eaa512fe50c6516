from howwhen.measure.ladder import measure_ladder
from howwhen.measure.published import read_published
from howwhen.zoo.pairs import list_pairs
from tests.measure.planted import SETTINGS, ladder


def test_every_published_figure_has_a_source_and_a_place_beside_it() -> None:
    figures = read_published()
    hybrid = measure_ladder(ladder(), SETTINGS).rungs["hybrid"]
    assert {figure.version for figure in figures} == {1, 2}
    for figure in figures:
        assert 0 <= figure.low <= figure.high <= 1
        assert figure.source.strip()
    assert figures[0].shown() == "91%"
    assert figures[0].measured(hybrid) == "66.7%"
    assert figures[1].measured(hybrid) == "20.0%"
    assert any(figure.shown() == "72% to 84%" for figure in figures)


def test_pairs_named_in_the_table_are_in_the_zoo() -> None:
    known = {pair.name for pair in list_pairs()}
    for figure in read_published():
        if "orz" in figure.pairs or "qwq" in figure.pairs:
            assert set(figure.pairs.split(", ")) <= known
