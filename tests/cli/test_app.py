"""The program as a whole: its version is the package's, and help, shown without a command too, has every exit code."""

import pytest

import recurrent_gemma
from recurrent_gemma.cli import app
from recurrent_gemma.cli.errors import ExitCode


def test_version(capsys: pytest.CaptureFixture[str]):
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"recurrent-gemma {recurrent_gemma.__version__}\n"


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["chat"], ["info"], ["session"], ["session", "info"], ["eval"], ["exec"]]
)
def test_help_documents_every_exit_code(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert app.run([*command, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    codes = [line.split()[0] for line in captured.out.splitlines() if line.strip()[:1].isdigit()]
    assert codes == ["0", *(str(int(code)) for code in ExitCode)]


def test_without_a_command_it_shows_the_help(capsys: pytest.CaptureFixture[str]):
    assert app.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert app.run([]) == ExitCode.USAGE
    assert capsys.readouterr().out == shown
