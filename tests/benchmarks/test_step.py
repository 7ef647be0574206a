"""The contestants' protocol and the count of operations of `benchmarks/step.py`."""

import pathlib
import sys

import pytest

pytestmark = pytest.mark.any_backend

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def contestant(steps):
    from turns import Contestant

    program = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from turns import serve; serve({{'a': 1}}, {steps})"
    return Contestant([sys.executable, "-c", program])


def test_a_contestant_answers_with_its_steps_whatever_is_printed_meanwhile():
    running = contestant("lambda count: [print('noise') or {'total': float(i)} for i in range(count)]")
    assert running.ready() == {"a": 1}
    assert running.turn(2) == [{"total": 0.0}, {"total": 1.0}]
    assert running.turn(1) == [{"total": 0.0}]
    running.close()
    assert running.process.returncode == 0


def test_a_contestant_that_fails_is_reported():
    with pytest.raises(RuntimeError, match=r"ended with status 1\."):
        contestant("lambda count: 1 / 0").ready()


def test_a_loop_of_a_library_is_held_between_turns_and_ends_when_nobody_asks():
    from turns import Contestant

    loop = """
from turns import HeldLoop
clock = iter(range(1000))
loop = HeldLoop({"a": 1}, lambda: float(next(clock)))
sample = loop.timed("sampling", lambda: None)
collect = loop.timed("collect", sample)
while True:
    collect()
    if not loop.step_ended():
        break
print("the loop has ended")
"""
    running = Contestant([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n{loop}"])
    # a look at the clock a second: begin, collect, sample, sampled, collected, ended
    step = {"sampling": 1.0, "scoring": 2.0, "update": 2.0, "total": 5.0}
    assert running.ready() == {"a": 1}
    assert running.turn(2) == [step, step]
    assert running.turn(1) == [step]
    running.close()
    assert running.process.returncode == 0


def test_operations_of_a_forward_pass():
    from step import forward_flops

    backbone = {"num_layers": 3, "hidden_dim": 5, "num_query_heads": 4, "num_key_value_heads": 2, "head_dim": 7}
    backbone |= {"intermediate_dim": 22, "vocabulary_size": 13}
    prompts, rows, prompt_length, completion_length = 2, 6, 5, 4

    def of_token(place):
        return 3 * (5 * 4 * 7 + 2 * 5 * 2 * 7 + 4 * 7 * 5 + 2 * 4 * 7 * (place + 1) + 3 * 5 * 11)

    total = prompts * sum(map(of_token, range(4))) + rows * (sum(map(of_token, range(4, 8))) + completion_length * 5 * 13)
    assert forward_flops(backbone, prompts, rows, prompt_length, completion_length) == 2 * total
