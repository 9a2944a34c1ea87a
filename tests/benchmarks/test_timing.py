"""Interleaved measurement: contestants that say what they took get the medians and ratios worked out by hand."""

from collections.abc import Callable

import pytest

from benchmarks import timing
from benchmarks.timing import Timing, clock, interleave, measure_within


def _scripted(name: str, seconds: list[float], log: list[str]) -> Callable[[], float]:
    remaining = iter(seconds)

    def contestant() -> float:
        log.append(name)
        return next(remaining)

    return contestant


def test_every_round_runs_every_contestant_and_starts_with_the_next_one():
    log: list[str] = []
    contestants = {name: _scripted(name, [9.0, 1.0, 2.0, 3.0], log) for name in "abc"}
    found = interleave(contestants, repeats=3, warmup=1)
    assert "".join(log[3:]) == "abcbcacab"
    assert sorted(log[:3]) == list("abc")
    # The round to warm up is not among the figures.
    assert found == dict.fromkeys("abc", Timing((1.0, 2.0, 3.0)))


def test_median_and_spread():
    found = Timing((3.0, 1.0, 10.0, 2.0))
    assert found.median == 2.5
    assert found.spread == (1.0, 10.0)


def test_ratios_are_taken_within_a_round():
    # The machine slows down threefold in the second round; the ratio does not notice.
    ours, in_tree = Timing((1.0, 3.0, 1.0)), Timing((2.0, 6.0, 2.0))
    assert in_tree.ratios_to(ours) == Timing((2.0, 2.0, 2.0))


def test_clock_counts_the_work_and_scales(monkeypatch: pytest.MonkeyPatch):
    now = 100.0

    def work() -> None:
        nonlocal now
        now += 2.0

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    assert clock(work)() == 2.0
    assert clock(work, scale=3.0)() == 6.0


@pytest.mark.parametrize(("options", "name"), [({"repeats": 0}, "repeats"), ({"repeats": 1, "warmup": -1}, "warmup")])
def test_impossible_numbers_of_rounds_are_refused(options: dict[str, int], name: str):
    with pytest.raises(ValueError, match=f"^{name}: expected at least"):
        interleave({"a": lambda: 1.0}, **options)


@pytest.mark.parametrize("taken", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(taken: float):
    with pytest.raises(ValueError, match=r"^a: expected a positive number of seconds"):
        interleave({"a": lambda: taken}, repeats=1)


def test_timings_of_different_measurements_are_not_compared():
    with pytest.raises(ValueError, match=r"expected as many rounds as here \(1\), got 2"):
        Timing((1.0,)).ratios_to(Timing((1.0, 2.0)))


def test_what_was_measured_once_is_compared_with_the_median():
    rounds, once = Timing((1.0, 2.0, 6.0)), Timing((4.0,))
    assert once.over(rounds) == Timing((2.0,))
    assert rounds.over(once) == Timing((0.25, 0.5, 1.5))
    assert rounds.over(rounds) == Timing((1.0, 1.0, 1.0))


def _on_a_clock(monkeypatch: pytest.MonkeyPatch, wall: dict[str, float], log: list[str]):
    """Contestants that take so long, by a clock that only they move."""
    now = 0.0

    def contestant(name: str) -> Callable[[], float]:
        def run() -> float:
            nonlocal now
            now += wall[name]
            log.append(name)
            return wall[name]

        return run

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    return {name: contestant(name) for name in wall}


@pytest.mark.parametrize(
    ("seconds", "rounds", "once"),
    [(1000.0, 5, ()), (50.0, 4, ("slow",)), (17.0, 3, ("slow", "slower")), (0.0, 3, None)],
)
def test_the_slowest_are_measured_once_where_time_is_short(monkeypatch, seconds, rounds, once):
    wall = {"floor": 2.0, "ours": 3.0, "slow": 30.0, "slower": 7.0}
    log: list[str] = []
    found, dropped = measure_within(_on_a_clock(monkeypatch, wall, log), repeats=5, seconds=seconds)
    once = ("slow", "slower") if once is None else once
    assert dropped == once and list(found) == list(wall)
    for name, taken in found.items():
        assert taken == Timing((wall[name],) * (1 if name in once else rounds))
        assert log.count(name) == (1 if name in once else 1 + rounds)
