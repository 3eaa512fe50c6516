import subprocess
import sys

import pytest

CODE = """
import importlib, sys
importlib.import_module(sys.argv[1])
print([name for name in sys.argv[2:] if name in sys.modules])
"""


@pytest.mark.parametrize("module", ["cards", "cells", "html", "report", "tables", "viewer"])
def test_texts_and_pages_need_no_heavy_package(module: str) -> None:
    heavy = ["torch", "transformers", "matplotlib", "tokenizers", "sklearn"]
    command = [sys.executable, "-c", CODE, f"howwhen.present.{module}", *heavy]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
