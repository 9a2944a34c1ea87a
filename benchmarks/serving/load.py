"""What clients see of a served model, by vLLM's own benchmark, and what generate() alone does with the same work."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import FIRST_ORDINARY_ID
from benchmarks.serving.server import Server, vllm_command


@dataclass(frozen=True)
class Work:
    """What each request is, and how many there are.

    Attributes:
        prompt: Tokens of a prompt; prompts are random, so that none is found in a prefix cache.
        answer: Tokens of an answer.
        requests: Requests for each client.
    """

    prompt: int
    answer: int
    requests: int


@dataclass(frozen=True)
class Load:
    """What a number of clients saw, each asking again once it was answered.

    Attributes:
        clients: At once.
        requests_per_second: Answered.
        tokens_per_second: Of answers.
        first_token: Seconds to the first token of an answer: median and 99th percentile.
        next_token: Seconds between tokens of an answer, averaged over it: the same.
        whole_answer: Seconds to the last token: the same.
    """

    clients: int
    requests_per_second: float
    tokens_per_second: float
    first_token: tuple[float, float]
    next_token: tuple[float, float]
    whole_answer: tuple[float, float]


def load(server: Server, work: Work, clients: int, folder: Path) -> Load:
    """Run ``vllm bench serve`` against the server.

    Args:
        server: It answers.
        work: What to ask for.
        clients: Requests in flight at most.
        folder: Where the benchmark writes.

    Raises:
        RuntimeError: The benchmark failed, or a request did; what it wrote is in the message.
    """
    result = folder / f"load-{clients}.json"
    count = work.requests * clients
    command = [*vllm_command(), "bench", "serve", "--backend", "openai"]
    command += ["--base-url", server.root, "--model", server.model, "--tokenizer", server.model]
    command += ["--dataset-name", "random", "--random-input-len", str(work.prompt)]
    command += ["--random-output-len", str(work.answer), "--num-prompts", str(count), "--num-warmups", str(clients)]
    command += ["--max-concurrency", str(clients), "--ignore-eos", "--seed", str(clients), "--disable-tqdm"]
    command += ["--percentile-metrics", "ttft,tpot,e2el", "--metric-percentiles", "50,99"]
    command += ["--save-result", "--result-dir", str(folder), "--result-filename", result.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"vllm bench serve ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if found["completed"] != count:
        raise RuntimeError(f"vllm bench serve: expected {count} answers, got {found['completed']}:\n{done.stdout}")

    def percentiles(name: str) -> tuple[float, float]:
        return found[f"p50_{name}_ms"] / 1e3, found[f"p99_{name}_ms"] / 1e3

    return Load(
        clients,
        found["request_throughput"],
        found["output_throughput"],
        percentiles("ttft"),
        percentiles("tpot"),
        percentiles("e2el"),
    )


@torch.inference_mode()
def load_of_generate(model: Any, work: Work) -> Load:
    """The same requests, one after the other, by ``generate()`` in this process: what one client has without a server.

    Args:
        model: A causal language model of Transformers, in eval mode.
        work: What to ask for.
    """
    generator = torch.Generator().manual_seed(0)
    first, whole = [], []
    for number in range(work.requests + 1):
        ids = torch.randint(FIRST_ORDINARY_ID, model.config.vocab_size, (1, work.prompt), generator=generator)
        times = []
        for answer in (1, work.answer):
            begin = time.perf_counter()
            model.generate(ids, max_new_tokens=answer, min_new_tokens=answer, do_sample=False)
            times.append(time.perf_counter() - begin)
        if number:  # the first one warms up
            first.append(times[0])
            whole.append(times[1])
    following = [(end - begin) / max(1, work.answer - 1) for begin, end in zip(first, whole, strict=True)]
    total = sum(whole)
    return Load(
        1,
        work.requests / total,
        work.requests * work.answer / total,
        *((_percentile(times, 0.5), _percentile(times, 0.99)) for times in (first, following, whole)),
    )


def _percentile(values: list[float], share: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(share).item()


__all__ = ["Load", "Work", "load", "load_of_generate"]
