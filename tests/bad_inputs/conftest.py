"""What tests of whole checkpoints start from."""

from pathlib import Path
from typing import Any

import pytest

import qrs
from checkpoints import save_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "m")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a tensor is quantized."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the error was to come before any work")

    monkeypatch.setattr(qrs.api, "quantize", refuse)
