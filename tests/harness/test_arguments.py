import subprocess
import sys

CODE = """
import sys
from howwhen.harness import RungArguments
RungArguments.read({"pair": "tally-rl", "rung": "base"})
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


def test_arguments_are_checked_without_loading_torch() -> None:
    command = [sys.executable, "-c", CODE]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
