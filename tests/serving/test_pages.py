"""Nobody reads what another request left: pages are used again after aborts, preemptions and NaN."""

from collections.abc import Iterator

import pytest

from tests.serving.engines import Engine, check, recorded, running, text


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running() as made:
        yield made


def test_an_aborted_request_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    # So few pages that they come round.
    with running(num_gpu_blocks_override=16, max_model_len=300) as engine:
        (alone,) = engine.generate([text(150, start=700)])
        engine.poison()
        aborted: set[int] = set()
        for length in range(60, 220, 20):
            with recorded(monkeypatch) as batches:
                engine.add(f"aborted {length}", text(length))
                for _ in range(5):
                    engine.step()
                aborted |= {row.slot for rows in batches for row in rows}
                batches.clear()
                engine.llm.llm_engine.abort_request([f"aborted {length}"])
                (output,) = engine.generate([text(150, start=700)])
                used = {row.slot for rows in batches for row in rows}
            if used <= aborted:
                break
        assert used <= aborted, "the pages of aborted requests were to be used again"
    check([alone, output])
    # Not close: the same.
    assert output.outputs[0].token_ids == alone.outputs[0].token_ids
    assert output.prompt_logprobs == alone.prompt_logprobs and output.outputs[0].logprobs == alone.outputs[0].logprobs


def test_pages_may_hold_nan(engine: Engine):
    for lengths in ([1, 2, 3], [33, 129, 300], [31, 64]):
        engine.poison()
        check(engine.generate([text(length, start=10 * length) for length in lengths], max_tokens=40))


def test_an_aborted_request_beside_others(engine: Engine):
    engine.poison()
    for index, length in enumerate([140, 90, 20]):
        engine.add(str(index), text(length, start=200 * index), max_tokens=30)
    for _ in range(4):
        engine.step()
    engine.llm.llm_engine.abort_request(["1"])
    engine.add("3", text(60, start=900), max_tokens=30)
    outputs = engine.finish()
    assert sorted(outputs) == ["0", "2", "3"]
    check(list(outputs.values()))


def test_preempted_requests_are_read_anew(monkeypatch: pytest.MonkeyPatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    preempted = []
    preempt = Scheduler._preempt_request

    def counting(self, request, *args, **kwargs):
        preempted.append(request.request_id)
        return preempt(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", counting)
    with running(num_gpu_blocks_override=20, max_model_len=400) as engine:
        engine.poison()
        prompts = [text(60, start=100 * index) for index in range(5)]
        check(engine.generate(prompts, max_tokens=150, prompt_logprobs=None))
    assert preempted
