"""`--quiet` quiets the model libraries too, and only for that command."""

from __future__ import annotations

import os

import pytest

from isr.cli import main


@pytest.mark.parametrize(("options", "expected"), [([], None), (["--quiet"], "1")])
def test_quiet_turns_off_the_loading_bars_of_the_model_libraries(
    options: list[str], expected: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: object, capsys: object
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "to be restored")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    assert main(["immunize", f"{tmp_path}/nothing", "--out", f"{tmp_path}/out", "--attack", "noise", *options]) != 0
    assert os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") == expected
