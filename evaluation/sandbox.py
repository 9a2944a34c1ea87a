"""Runs one program under limits and writes how it ended; a script of its own, run by ``code_eval``.

It sets limits on time, memory, files and processes, and denies what a solution of a programming exercise has no use
for: other processes, the network, foreign code, and files outside the current directory. This keeps mistakes and
mischief of generated code away from the machine it runs on. It is no boundary against a determined attacker: run the
evaluation in a container for that.
"""

import json
import os
import signal
import sys

# What a program may do to the system: look at what is there. Reading and writing files is told by their paths.
_ALLOWED_OS_EVENTS = frozenset({"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv"})
_DENIED = tuple(
    f"{module}."
    for module in """
    ctypes fcntl ftplib http mmap msvcrt os pty resource shutil signal smtplib socket sqlite3 subprocess syslog urllib
    webbrowser winreg
    """.split()
)
# Modules through which Python's events can be got round.
_DENIED_MODULES = frozenset({"_ctypes", "_posixsubprocess", "_testcapi", "_xxsubinterpreters", "ctypes"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Timeout(BaseException):
    """Not an Exception: programs catch those."""


def main(seconds: float, memory: int) -> None:
    """Run the program on stdin and write ``{"passed": ..., "result": ...}`` to stdout."""
    program = sys.stdin.read()
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    _set_limits(seconds, memory)

    def stop(number: int, frame: object) -> None:
        raise _Timeout

    signal.signal(signal.SIGALRM, stop)
    _guard(os.getcwd())
    # The timer is set last: what came before is not the program's time.
    try:
        code = compile(program, "<candidate>", "exec")
        signal.setitimer(signal.ITIMER_REAL, seconds)
        exec(code, {})
        outcome = {"passed": True, "result": "passed"}
    except _Timeout:
        outcome = {"passed": False, "result": "timed out"}
    except BaseException as error:
        outcome = {"passed": False, "result": f"failed: {type(error).__name__}: {str(error)[:200]}"}
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.write(report, json.dumps(outcome).encode())
    # Threads and exit handlers of the program have no more say.
    os._exit(0)


def _set_limits(seconds: float, memory: int) -> None:
    import resource

    limits = {
        resource.RLIMIT_CPU: int(seconds) + 2,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: 2**20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _guard(directory: str) -> None:
    """Deny by Python's audit events, which every way to the system raises and which no program can take back."""
    inside = os.path.realpath(directory) + os.sep
    readable = tuple(
        os.path.realpath(path) + os.sep for path in {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path} if path
    )
    writing, realpath, fsdecode, separator = _WRITING, os.path.realpath, os.fsdecode, os.sep

    def check(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int):
                return
            path = realpath(fsdecode(path)) + separator  # type: ignore[arg-type]
            if path.startswith(inside) or (path.startswith(readable) and not int(flags or 0) & writing):  # type: ignore[call-overload]
                return
            raise PermissionError(f"open of {path.rstrip(separator)}: denied")
        if event == "import" and arguments[0] in _DENIED_MODULES:
            # What a library makes of a module that is not there, such as NumPy without ctypes.
            raise ImportError(f"import of {arguments[0]}: denied")
        if event.startswith(_DENIED) and event not in _ALLOWED_OS_EVENTS:
            raise PermissionError(f"{event}: denied")

    sys.addaudithook(check)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
