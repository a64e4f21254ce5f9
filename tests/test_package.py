"""What is installed: type information, the licence, one version, documented public names."""

import importlib.metadata
import importlib.resources
import inspect
import re
from pathlib import Path

import pytest

import qrs
from processes import run

IMPORTS = """
import time
start = time.process_time()
import numpy
numpy_itself = time.process_time() - start
start = time.process_time()
import qrs
print(numpy_itself, time.process_time() - start)
"""
ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = importlib.metadata.distribution("qrs-quant")


def test_ships_types() -> None:
    package = importlib.resources.files("qrs")
    assert (package / "py.typed").is_file()
    assert (package / "_qrs.pyi").is_file()


def test_ships_the_licence() -> None:
    assert [f for f in DISTRIBUTION.files or [] if f.name == "LICENSE"]
    assert DISTRIBUTION.metadata["License-Expression"] == "Apache-2.0"


def test_one_version() -> None:
    cargo = (ROOT / "Cargo.toml").read_text()
    match = re.search(r'^version = "(.+)"$', cargo, re.MULTILINE)
    assert match is not None
    assert qrs.__version__ == DISTRIBUTION.version == match[1]
    assert f"## [{match[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_command_line_entry_point() -> None:
    scripts = {e.name: e.value for e in DISTRIBUTION.entry_points if e.group == "console_scripts"}
    assert scripts == {"qrs": "qrs.cli:main"}


def test_few_dependencies() -> None:
    needed = [r for r in DISTRIBUTION.requires or [] if "extra ==" not in r]
    names = {re.split(r"[ <>=!~]", r)[0].lower().replace("-", "_") for r in needed}
    assert names == {"numpy", "ml_dtypes", "typer"}


@pytest.mark.parametrize("name", sorted(set(qrs.__all__) - {"__version__"}))
def test_public_name_is_documented(name: str) -> None:
    thing = getattr(qrs, name)
    own = thing.__doc__ if not inspect.isclass(thing) else vars(thing).get("__doc__")
    assert inspect.cleandoc(own or "")
    # What dataclass() writes by itself is a signature, not a docstring.
    assert not str(own).startswith(f"{name}(")


def test_the_import_is_light(tmp_path: Path) -> None:
    """Beyond numpy it takes less CPU time than numpy itself, about 100 ms: best of several.

    Both from compiled files, as pip installs them.
    """
    compiled = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    times = [list(map(float, run(IMPORTS, **compiled).split())) for _ in range(6)]
    assert min(beyond / numpy_itself for numpy_itself, beyond in times[1:]) < 1, times


def test_the_version_is_looked_up_when_asked_for() -> None:
    run("import sys, qrs; assert 'importlib.metadata' not in sys.modules; assert qrs.__version__")
    with pytest.raises(AttributeError, match="module 'qrs' has no attribute 'nothing'"):
        _ = qrs.nothing
