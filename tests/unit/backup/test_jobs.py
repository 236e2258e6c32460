"""Long work in threads: looked at, given up when nobody looks, ended before what it wrote is removed."""

import threading
from datetime import timedelta
from typing import Final

from controlplane.adapters.backup.jobs import Jobs, JobWatch
from controlplane.kernel.errors import RetryableError, TerminalError
from controlplane.recovery.workshop import Broken, Finished, Unknown, Working

LONG_S: Final = 10.0
"""A thread that does not end in so long never does."""


class Work:
    """Goes on until it is let go, or asked to stop."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, watch: JobWatch) -> str:
        watch.step("copy", 100)
        self.begun.set()
        while not self.let_go.wait(0.001):
            watch.advance(1)
        return "made"


def begun(jobs: Jobs[str], name: str) -> Work:
    work = Work()
    jobs.begin(name, work)
    assert work.begun.wait(LONG_S)
    return work


def ended(jobs: Jobs[str], name: str) -> Finished[str] | Broken | Unknown:
    assert jobs.cancel_all(LONG_S, prefix=name)
    found = jobs.look(name)
    assert not isinstance(found, Working)
    return found


def test_begun_once_and_looked_at_until_it_ends() -> None:
    jobs = Jobs[str]("copy")
    assert isinstance(jobs.look("a"), Unknown)
    work = begun(jobs, "a")
    found = jobs.look("a")
    assert isinstance(found, Working)
    assert (found.step, found.total_bytes) == ("copy", 100)
    jobs.begin("a", lambda _: "another")
    work.let_go.set()
    assert ended(jobs, "a") in {Finished(made="made"), Broken(sentence="stopped on request", hopeless=False)}
    assert isinstance(jobs.look("b"), Unknown)


def test_what_nobody_looked_at_for_a_lease_is_given_up_and_the_rest_goes_on() -> None:
    jobs = Jobs[str]("copy")
    begun(jobs, "a")
    jobs.cancel_idle(timedelta(hours=1))
    assert isinstance(jobs.look("a"), Working)
    jobs.cancel_idle(timedelta(0))
    assert ended(jobs, "a") == Broken(sentence="stopped on request", hopeless=False)


def test_those_of_one_name_are_ended_and_no_other() -> None:
    jobs = Jobs[str]("drill")
    begun(jobs, "a/1")
    other = begun(jobs, "b/1")
    assert jobs.cancel_all(LONG_S, prefix="a/")
    assert isinstance(jobs.look("a/1"), Broken)
    assert isinstance(jobs.look("b/1"), Working)
    other.let_go.set()
    ended(jobs, "b/1")


def test_one_that_does_not_end_in_time_is_told() -> None:
    jobs = Jobs[str]("drill")
    held = threading.Event()

    def deaf(watch: JobWatch) -> str:
        del watch
        held.wait(LONG_S)
        return "late"

    jobs.begin("a", deaf)
    assert not jobs.cancel_all(0.01)
    held.set()
    assert jobs.cancel_all(LONG_S)
    assert jobs.look("a") == Finished(made="late")


def test_errors_are_values_and_say_whether_there_is_hope() -> None:
    errors = {RetryableError("503"): False, TerminalError("no such bucket"): True, ValueError("oh"): True}
    for error, hopeless in errors.items():
        jobs = Jobs[str]("copy")

        def fails(watch: JobWatch, error: Exception = error) -> str:
            del watch
            raise error

        jobs.begin("a", fails)
        found = ended(jobs, "a")
        assert isinstance(found, Broken)
        assert found.hopeless is hopeless
        assert str(error) in found.sentence
