"""Step 6: all six steps of a small run, and its report."""

from pathlib import Path

from howwhen import Pipeline, Reporter, find_pair, make_settings, open_run
from howwhen.pipeline.context import REPORT
from howwhen.present.verdict import verdict
from howwhen.settings import PRESETS, read_config

SETTINGS = Path(__file__).with_name("settings.yaml")


def main() -> None:
    """Print the verdict in one line, and where the report is."""
    pair = find_pair("tally-rl")
    settings = make_settings(PRESETS["smoke"], pair.overrides, read_config(SETTINGS))
    with open_run(Path("runs/examples")) as folder:
        pipeline = Pipeline(pair, settings, folder, Reporter())
        pipeline.run()
        print(f"\n{verdict(pipeline.measurement())}")
        print(f"report: {folder.step('present').path / REPORT}")


if __name__ == "__main__":
    main()
