"""Contestants of a speed benchmark: each a process of its own, which sleeps while the others are measured.

The benchmark starts a `Contestant`, waits until it is ready, then asks it for a number of steps, again and again.
The program of the contestant calls `serve`. Only the standard library is needed: peers have environments of their own.
"""

import json
import os
import statistics
import subprocess
import sys
import time


class Contestant:
    """A running program that makes steps when it is asked to.

    Args:
        command: list of str and paths.
        **environment: variables of its environment, besides those of this process.
    """

    def __init__(self, command, **environment):
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([*map(str, command)], env=os.environ | environment, text=True, **pipe)

    def ready(self):
        """Wait until it has compiled; returns what it says of itself."""
        return self._answer()

    def turn(self, count):
        """The seconds of each part of each of `count` steps: a list of dicts."""
        print(count, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self):
        self.process.communicate()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} ended with status {self.process.wait()}.")
        return json.loads(line)


class Channel:
    """The contestant's end. Whatever its libraries print goes to the standard error, so that answers stay whole."""

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._requests = map(int, sys.stdin)

    def answer(self, value):
        print(json.dumps(value), file=self._answers, flush=True)

    def request(self):
        """How many steps are asked for; `None` when there will be no more."""
        return next(self._requests, None)


def serve(about, steps):
    """Answer every request with `steps(count)`, after a first step that nobody waits for: it compiles.

    Args:
        about: what can be said of this contestant, for JSON.
        steps: function of a number of steps, that makes them and returns a dict of seconds for each.
    """
    channel = Channel()
    steps(1)
    channel.answer(about)
    while count := channel.request():
        channel.answer(steps(count))


class HeldLoop:
    """A training loop of a library as a contestant: it is held still after each turn, until the next one is asked for.

    Args:
        about: what can be said of this contestant, for JSON.
        now: function that returns seconds, when all that was asked of the device is done.
    """

    def __init__(self, about, now=time.perf_counter):
        self.about, self.now, self.channel, self.wanted, self.steps = about, now, Channel(), 1, []
        self.begin()

    def begin(self):
        self.seconds, self.started = {"sampling": 0.0, "collect": 0.0}, self.now()

    def timed(self, part, function):
        """`function`, whose time counts as `part`: "sampling", or "collect", which is sampling and scoring."""

        def timed(*arguments, **named):
            started = self.now()
            result = function(*arguments, **named)
            self.seconds[part] += self.now() - started
            return result

        return timed

    def step_ended(self):
        """To be called after every step; returns whether the loop is to go on."""
        total = self.now() - self.started
        sampling, collect = self.seconds["sampling"], self.seconds["collect"]
        parts = {"sampling": sampling, "scoring": collect - sampling, "update": total - collect, "total": total}
        self.steps.append(parts)
        if len(self.steps) == self.wanted:
            self.channel.answer(self.about if self.about else self.steps)
            self.about, self.steps, self.wanted = None, [], self.channel.request()
        self.begin()
        return bool(self.wanted)


def medians(steps):
    """The median of each part over steps: dicts with the same keys.

    >>> medians([{"total": 1.0}, {"total": 9.0}, {"total": 2.0}])
    {'total': 2.0}
    """
    return {part: statistics.median(step[part] for step in steps) for part in steps[0]}
