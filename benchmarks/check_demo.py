"""Hold the README's table against a finished demo run: `python benchmarks/check_demo.py RUN`.

Machines differ in the last bits of their arithmetic and so in single answers; a recovered share may
differ by ten points from the README's, and the claims made of it must hold outright.
"""

import json
import re
import sys
from pathlib import Path

TOLERANCE = 0.10
README = Path(__file__).parents[1] / "README.md"


def main(run: Path) -> None:
    """Compare, print every rung, and fail on the first that is off."""
    rungs = json.loads((run / "5-measure" / "measurement.json").read_text())["rungs"]
    shown = dict(
        re.findall(r"^│ ([a-z-]+) +│[^│]+│[^│]+│ +(-?\d+)% │", README.read_text(), re.MULTILINE)
    )
    recovered = {name: rung["gap_recovered"] for name, rung in rungs.items()}
    for name, share in recovered.items():
        print(f"{name}: recovered {share:.0%}, README {shown[name]} %")
        assert abs(share - int(shown[name]) / 100) <= TOLERANCE, name
    assert recovered["hybrid"] >= 0.9
    assert max(recovered["random-vectors"], recovered["random-positions"]) <= 0.25
    assert recovered["random-category"] <= recovered["hybrid"] - 0.25
    assert recovered["takeover"] >= 0.95
    assert recovered["self-gate"] >= 0.8
    assert rungs["hybrid"]["steered_fraction"] <= 0.15


if __name__ == "__main__":
    main(Path(sys.argv[1]))
