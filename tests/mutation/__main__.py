"""``python -m tests.mutation``: mutants of the ops, the cache and the inputs, and which of them the tests notice."""

import argparse
import collections
import math
import os
import time

from tests import conftest  # noqa: F401  (sets what libraries read from the environment when they are imported)
from tests.mutation.equivalent import equivalent_mutants
from tests.mutation.mutants import make_mutants
from tests.mutation.server import Server
from tests.mutation.targets import ROOT, TARGETS, Target

# Seconds of tests that a mutant gets at first.
_FIRST_BUDGET = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--sample", type=int, help="mutants of each target at most, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--only", default="", help="only mutants whose name holds this text")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default: 1)")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - TARGETS.keys():
        parser.error(f"unknown target {min(unknown)}; expected some of {', '.join(TARGETS)}")
    os.chdir(ROOT)
    rows = [_run(name, TARGETS[name], arguments) for name in arguments.targets or TARGETS]
    print("\n| target | mutants | run | killed | timeout | equivalent | survived | score |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def _run(name: str, target: Target, arguments: argparse.Namespace) -> str:
    """Run a target's mutants, print each one's end, and give the target's row of the table."""
    began = time.monotonic()
    mutants, total = make_mutants(target.files(), arguments.sample, arguments.seed)
    mutants = [mutant for mutant in mutants if arguments.only in mutant.name]
    known = equivalent_mutants(name)
    server = Server(target.files(), target.tests())
    print(f"{name}: {len(server.seconds)} tests, {time.monotonic() - began:.0f} s", flush=True)
    counts = collections.Counter(equivalent=sum(mutant.name in known for mutant in mutants))
    left = [mutant for mutant in mutants if mutant.name not in known]
    # Most are noticed at once. Every test that can is spent on the others alone.
    for budget in (_FIRST_BUDGET, math.inf):
        survivors = []
        for mutant, end, test in server.run(left, arguments.jobs, budget):
            if end == "survived":
                survivors.append(mutant)
                if budget is not math.inf:
                    continue
            counts[end] += 1
            where = f"{mutant.path.relative_to(ROOT)}:{min(mutant.lines)}"
            print(f"{end:8} {where} {mutant.name}" + (f"  <- {test}" if test else ""), flush=True)
        left = survivors
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    judged = len(mutants) - counts["equivalent"]
    score = 100 * (judged - counts["survived"]) / max(1, judged)
    columns = [total, len(mutants), counts["killed"], counts["timeout"], counts["equivalent"], counts["survived"]]
    return f"| {name} | {' | '.join(map(str, columns))} | {score:.0f} % |"


if __name__ == "__main__":
    main()
