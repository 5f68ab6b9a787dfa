"""What `mfrl tasks` and `mfrl report` say of options that they do not have."""

from __future__ import annotations

import pytest

from mfrl.app import report, tasks


@pytest.mark.parametrize(
    ("command", "arguments", "meant"),
    [(tasks.main, ["--avaliable"], "--available"), (report.main, ["runs", "--scroe=final"], "--score")],
)
def test_an_unknown_option_is_answered_with_near_ones(command, arguments, meant, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        command(arguments)
    said = capsys.readouterr().err
    assert arguments[-1] in said
    assert f"did you mean {meant}" in said
