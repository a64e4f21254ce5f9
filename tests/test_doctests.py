"""Every example in a docstring of qrs runs, each docstring as a test of its own."""

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import qrs


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {"qrs", *(m.name for m in pkgutil.walk_packages(qrs.__path__, "qrs."))}
    if importlib.util.find_spec("torch") is None:  # `make test-torch` has it
        names = {name for name in names if not name.startswith("qrs.torch")}
    modules = [importlib.import_module(name) for name in sorted(names - {"qrs.__main__"})]
    found = [test for module in modules for test in finder.find(module, module.__name__)]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name)
def test_docstring_example(example: doctest.DocTest) -> None:
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)


def test_there_are_examples() -> None:
    assert len(examples()) >= 10
