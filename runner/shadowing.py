"""Find files in the current folder that Python imports in place of a library, such as a `torch.py` of the user."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

from runner.contract import EXIT_REFUSED
from runner.runs.text import error_line

LIBRARIES = (  # all that a run can import, also where only some installations have it
    *("torch", "torchvision", "torchgen", "triton", "functorch", "numpy", "hydra", "omegaconf", "antlr4", "yaml"),
    *("rich", "pygments", "pandas", "matplotlib", "PIL", "jinja2", "markupsafe", "filelock", "packaging", "mpmath"),
    *("sympy", "networkx", "typing_extensions", "cycler", "kiwisolver", "pyparsing", "dateutil", "six", "pytz", "tzdata"),
    *("contourpy", "fontTools", "scipy", "sklearn", "joblib", "threadpoolctl", "narwhals", "safetensors", "psutil"),
    *("charset_normalizer", "attr", "numexpr", "bottleneck", "pyarrow", "setuptools", "dill", "tqdm"),
    *("torchmetrics", "lightning_utilities", "datasets", "transformers", "tokenizers", "huggingface_hub", "fsspec"),
)


def refuse_shadowed_libraries() -> None:
    """End the process with exit code 2 if a file in the current folder has the name of a library that this program needs.

    Under `python -m runner`, Python searches the current folder first. A file `runner.py` there cannot be found out: Python
    runs it instead of this program.
    """
    for name in LIBRARIES:
        if file := shadowing_file(name):
            text = f"{file} in the current folder hides the library {name}; rename it, or start with freeze-runner"
            print(error_line(text), file=sys.stderr)
            sys.exit(EXIT_REFUSED)


def shadowing_file(name: str) -> str | None:
    """Return the file in the current folder that would be imported as the library `name`, though it is installed elsewhere.

    Returns None if there is no such file, or if Python does not search the current folder first.
    """
    here = os.getcwd()
    if name in sys.modules or os.path.abspath(sys.path[0]) != here:
        return None
    found = PathFinder.find_spec(name, [here])
    if found is None or not found.origin:  # without an origin, it is a folder without `__init__.py`, which hides nothing
        return None
    elsewhere = PathFinder.find_spec(name, [folder for folder in sys.path if os.path.abspath(folder) != here])
    return os.path.relpath(found.origin) if elsewhere and elsewhere.origin else None
