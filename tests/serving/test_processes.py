"""As users run it: engine and workers in processes of their own, each of which finds the plugin by itself."""

import json
from pathlib import Path

import pytest

from tests.serving.engines import check_entries, text
from tests.support import run_python

_PROGRAM = """
import json, sys
import vllm
from recurrent_gemma import demo_path

if __name__ == "__main__":
    prompts, ranks = json.loads(sys.argv[1]), int(sys.argv[2])
    llm = vllm.LLM(str(demo_path()), dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=4,
                   num_gpu_blocks_override=256, max_num_batched_tokens=64, tensor_parallel_size=ranks)
    params = vllm.SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=3, prompt_logprobs=3)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    answers = []
    for output in outputs:
        answer = output.outputs[0]
        entries = [*output.prompt_logprobs, *answer.logprobs]
        values = [{token: entry.logprob for token, entry in (given or {}).items()} for given in entries]
        answers.append([[*output.prompt_token_ids, *answer.token_ids], values])
    print("answers " + json.dumps(answers))
    llm.llm_engine.engine_core.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_processes(ranks: int, tmp_path: Path):
    prompts = [text(150), text(40, start=300), text(1)]
    # A file, as workers import the program again.
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = run_python(str(program), json.dumps(prompts), str(ranks), cwd=tmp_path, env=environment)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("answers ")]
    for ids, entries in json.loads(line.removeprefix("answers ")):
        check_entries(ids, [{int(token): value for token, value in given.items()} for given in entries])
