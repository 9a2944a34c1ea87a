"""Interpreters that find torch and Transformers imported: a server imports them and forks itself for each program.

For tests of what a program of its own does, not of how it starts: the imports take seconds, a fork takes milliseconds.
This package is not imported before the fork, and nothing of one program is left for the next.

The server is ``python nursery.py SOCKET``, and ends with its standard input. The client, ``python -IS nursery.py SOCKET
ARGUMENT...``, stands for ``python ARGUMENT...``: the program has its directory, environment and standard streams. It
hands an interrupt on and ends as the program does.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys

# The file is run by its path, and by the client without site-packages: it imports the standard library only.

# Of one message, with room for an environment and a program; sockets take twice as much.
MESSAGE_BYTES = 100_000


def ask(path: str, arguments: list[str]) -> None:
    """Have the server at ``path`` run a program on this process's standard streams, and end as the program ends."""
    job = {"arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}
    message = json.dumps(job).encode()
    assert len(message) < MESSAGE_BYTES
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        socket.send_fds(connection, [message], [0, 1, 2])
        pid = int(connection.recv(16))
        signal.signal(signal.SIGINT, lambda number, _: os.kill(pid, number))
        code = int(connection.recv(16))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


def serve(path: str) -> list[str]:
    """Fork a child for each client until standard input ends; returns in the children, with their arguments."""
    clients: dict[int, socket.socket] = {}

    def report(*_: object) -> None:
        while clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with clients.pop(pid) as client, contextlib.suppress(BrokenPipeError):
                client.send(str(os.waitstatus_to_exitcode(status)).encode())

    signal.signal(signal.SIGCHLD, report)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    print("listening", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit()
        client, _ = listener.accept()
        message, streams, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 3)
        # A child that ends at once is reported when it is known whose it is.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            for inherited in (listener, client, *clients.values()):
                inherited.close()
            return _become(json.loads(message), streams)
        clients[pid] = client
        client.send(str(pid).encode())
        for stream in streams:
            os.close(stream)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _become(job: dict, streams: list[int]) -> list[str]:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(job["directory"])
    os.environ.clear()
    os.environ.update(job["environment"])
    return job["arguments"]


def run(arguments: list[str], own_filters: int) -> None:
    """What ``python`` does with ``arguments``: warning options, then ``-c CODE``, ``-m MODULE`` or a file, and its own.

    Args:
        arguments: Of the command line.
        own_filters: Number of the interpreter's own warning filters, behind those of the imported libraries.
    """
    import runpy
    import types
    import warnings

    while arguments[0] == "-W":
        _, action, *arguments = arguments
        # Behind what the libraries have asked for, as if it had been there before them.
        of_libraries = warnings.filters[: len(warnings.filters) - own_filters]
        warnings.resetwarnings()
        warnings.filters[:] = of_libraries
        warnings.simplefilter(action, append=True)
        sys.warnoptions.append(action)
    kind, *rest = arguments
    if kind == "-c":
        code, *rest = rest
        sys.argv, sys.path[0] = ["-c", *rest], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    elif kind == "-m":
        module, *rest = rest
        sys.argv, sys.path[0] = ["-m", *rest], os.getcwd()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [kind, *rest], os.path.dirname(os.path.abspath(kind))
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    path, *arguments = sys.argv[1:]
    if arguments:
        ask(path, arguments)
    import atexit
    import gc
    import warnings

    code = 1

    # Registered first and so run last: what was imported is not taken down object by object, which takes a second.
    @atexit.register
    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    own_filters = len(warnings.filters)
    import transformers.generation
    import transformers.modeling_utils
    import transformers.pipelines  # noqa: F401

    # Pages that the collector does not write to stay shared.
    gc.freeze()
    arguments = serve(path)
    try:
        run(arguments, own_filters)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    main()
