"""Programs that never import this package: with ``exec`` they and their children use it, without it they don't."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recurrent_gemma import launch
from recurrent_gemma.cli import app
from recurrent_gemma.cli.errors import ExitCode
from tests.support import ROOT, warm_interpreter

# Names the classes that a program gets, by every way.
PROGRAM = """
import sys
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, RecurrentGemmaForCausalLM
small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
config = AutoConfig.for_model("recurrent_gemma", vocab_size=9, **small)
for got in (config, AutoModelForCausalLM.from_config(config)):
    print(type(got).__module__.split(".")[0])
print(RecurrentGemmaForCausalLM.__module__.split(".")[0], transformers.RecurrentGemmaModel.__module__.split(".")[0])
package = sys.modules.get("recurrent_gemma")
print("active" if package is not None and package.is_active() else "inactive")
"""
WITH_EXEC = ["recurrent_gemma", "recurrent_gemma", "recurrent_gemma recurrent_gemma", "active"]
WITHOUT_EXEC = ["transformers", "transformers", "transformers transformers", "inactive"]


def _start(*command: str, cwd: Path, python_path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": python_path}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600
    )


def _start_through_exec(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # `exec` puts the command in its own place, so that only `exec` itself is spared the imports.
    return _start(*warm_interpreter(), "-m", "recurrent_gemma", "exec", "--", *command, cwd=cwd)


def _start_warm(_: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return _start(*warm_interpreter(), *arguments, cwd=cwd)


def _start_launched(code: str, cwd: Path, python_path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    """Python code in what `exec` becomes, without the time that `exec` itself takes."""
    launched_path = launch.environment({"PYTHONPATH": python_path})["PYTHONPATH"]
    return _start(sys.executable, "-c", code, cwd=cwd, python_path=launched_path)


def _output(done: subprocess.CompletedProcess[str], code: int = 0) -> list[str]:
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("start", "expected"), [(_start_through_exec, WITH_EXEC), (_start_warm, WITHOUT_EXEC)], ids=["exec", "without exec"]
)
def test_a_program_and_its_child(start: Callable[..., Any], expected: list[str], tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    parent = f"""
import subprocess, sys
subprocess.run([sys.executable, "-m", "program"], check=True)
{PROGRAM}
sys.exit(41)
"""
    assert _output(start(sys.executable, "-c", parent, cwd=tmp_path), code=41) == expected * 2


def test_accelerate_launch(tmp_path: Path):
    (tmp_path / "train.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    assert _output(_start_through_exec(*launcher, "train.py", cwd=tmp_path)) == WITH_EXEC


def test_a_program_that_imports_the_package_first(tmp_path: Path):
    code = f"import recurrent_gemma\nrecurrent_gemma.assert_active()\n{PROGRAM}"
    done = _start_launched(code, cwd=tmp_path)
    assert _output(done) == WITH_EXEC


def test_a_program_without_transformers_pays_for_nothing(tmp_path: Path):
    code = """
import importlib.util, sys
assert importlib.util.find_spec("transformers") is not None  # as programs ask whether it is there
print([name for name in ("recurrent_gemma", "torch", "transformers", "typing") if name in sys.modules])
"""
    assert _output(_start_launched(code, cwd=tmp_path)) == ["[]"]


def test_the_module_is_as_if_imported_plainly(tmp_path: Path):
    code = """
import importlib, importlib.resources, inspect, sys
import transformers
print(type(transformers.__spec__.loader).__name__, type(transformers.__loader__).__name__)
print(inspect.getsourcefile(transformers) == transformers.__file__)
print((importlib.resources.files("transformers") / "__init__.py").is_file())
print(type(importlib.util.find_spec("transformers.models").loader).__name__)
"""
    launched = _start_launched(code, cwd=tmp_path)
    plain = _start(sys.executable, "-c", code, cwd=tmp_path)
    assert _output(launched) == _output(plain)


def test_the_environments_own_sitecustomize_runs_too(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.site_ran = __file__\n")
    code = "import sitecustomize, sys; print(site_ran == sitecustomize.__file__, sys.meta_path[0].__class__.__module__)"
    done = _start_launched(code, cwd=tmp_path, python_path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert _output(done) == ["True sitecustomize"]


def test_a_python_without_the_package_refuses_to_go_on(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['recurrent_gemma'] = None\n")
    done = _start_launched("import transformers", cwd=tmp_path, python_path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: `recurrent-gemma exec`: {sys.executable} imports")


def test_arguments_and_signals_are_the_commands_own(tmp_path: Path):
    # Python ignores SIGPIPE, and its children would inherit that.
    arguments = ["--", "--help", "-x", "a b", "", "exec"]
    done = _start_through_exec("sh", "-c", 'printf "[%s]" "$@"; kill -PIPE $$; exit 9', "sh", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")
    assert done.stdout == "".join(f"[{argument}]" for argument in arguments)


def test_commands_that_cannot_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("not a program")
    for command, code, reason in (
        ("no-such-command", ExitCode.NO_SUCH_COMMAND, "command not found"),
        (str(tmp_path / "file"), ExitCode.CANNOT_EXECUTE, "Permission denied"),
    ):
        assert app.run(["exec", "--", command]) == code
        assert capsys.readouterr() == ("", f"recurrent-gemma: error: exec: {command}: {reason}\n")


def test_environment_adds_one_entry_and_changes_nothing_else():
    folder = str(Path(launch.__file__).resolve().parent)
    given = {"PATH": "/bin", "PYTHONPATH": f"/a{os.pathsep}/b"}
    made = launch.environment(given)
    assert made == {"PATH": "/bin", "PYTHONPATH": os.pathsep.join([folder, "/a", "/b"])}
    assert launch.environment(made) == made
    assert launch.environment({}) == {"PYTHONPATH": folder}
    assert given["PYTHONPATH"] == f"/a{os.pathsep}/b"
    assert launch.environment() == launch.environment(os.environ)


def test_importing_the_start_file_as_a_module_does_nothing():
    finders = list(sys.meta_path)
    from recurrent_gemma.launch import sitecustomize

    assert sitecustomize.__name__ == "recurrent_gemma.launch.sitecustomize"
    assert sys.meta_path == finders
