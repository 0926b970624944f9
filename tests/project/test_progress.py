"""Progress of long commands: plain lines with the time left, a bar on a terminal."""

import io

import pytest
from rich.console import Console

from l2o.meta_train import _progress
from l2o.meta_train._progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


def lines_of(clock, seconds, *, total=40, done=0, note=""):
    """What is printed where each step takes so long."""
    file = io.StringIO()
    with Progress("outer step", Console(file=file), total, done) as progress:
        for step in range(done + 1, total + 1):
            clock.now += seconds
            progress.update(step, note=note)
    return file.getvalue().splitlines()


def test_lines_say_how_long_it_will_take(clock):
    lines = lines_of(clock, 30.0, note="meta-loss 1.2")
    assert len(lines) == 10
    assert lines[0] == "outer step 4/40  meta-loss 1.2  about 18 min left"
    assert lines[-2] == "outer step 36/40  meta-loss 1.2  about 2 min left"
    assert lines[-1] == "outer step 40/40  meta-loss 1.2"


def test_what_was_done_before_does_not_count_for_the_time_left(clock):
    lines = lines_of(clock, 30.0, total=40, done=20)
    assert lines[0] == "outer step 24/40  about 8 min left"


def test_what_is_quick_has_one_line(clock):
    assert lines_of(clock, 0.01) == ["outer step 40/40"]
    # Half a second each: a line per five seconds, not per tenth.
    assert [line.split()[2] for line in lines_of(clock, 0.5)] == [
        "12/40",
        "24/40",
        "36/40",
        "40/40",
    ]


def test_the_total_may_come_later(clock):
    file = io.StringIO()
    with Progress("job", Console(file=file)) as progress:
        progress.update(0)
        clock.now += 60
        progress.update(1, 2)
        progress.advance()
    assert file.getvalue().splitlines() == ["job 1/2  about 60 s left", "job 2/2"]


def test_a_terminal_has_a_bar():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with Progress("outer step", console, 4) as progress:
        progress.update(3, note="meta-loss 1.2")
    shown = file.getvalue()
    assert "━" in shown and "3/4" in shown and "meta-loss 1.2" in shown
    assert "left" not in shown


@pytest.mark.parametrize(
    "seconds, words",
    [(40, "40 s"), (200, "3 min"), (9000, "2.5 h"), (3 * 86400, "3.0 days")],
)
def test_durations_are_readable(seconds, words):
    assert duration(seconds) == words
