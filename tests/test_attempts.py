"""Attempts: who belongs together, in which order, and what proves that one followed another."""

from __future__ import annotations

import pytest

from eventlog.attempts import Attempt, attempts, follows
from eventlog.segment import Header


def head(key, start, **fields):
    return Header(
        "r", "w", 0, 0, {"attempt": {"key": key, "start": start, "writer_start": start} | fields}
    )


def attempt(launch=None, restart=(), start=0, evidence="first", *, named=False):
    return Attempt("k", launch, restart, start, evidence, ("w",), named=named)


def test_writers_of_one_launch_are_one_attempt():
    found = attempts(
        {
            "w1": [head("a", 5, writer_start=7)],
            "w2": [head("a", 5, writer_start=6)],
            "w3": [head("b", 9)],
        }
    )
    assert [(a.key, a.writers, a.start, a.ordinal) for a in found] == [
        ("a", ("w2", "w1"), 5, 1),
        ("b", ("w3",), 9, 2),
    ]


def test_attempts_of_one_launch_are_in_the_order_of_their_restarts_in_the_places_they_have():
    found = attempts(
        {
            "w0": [head("x", 1)],
            "w1": [head("l#2", 2, launch="l", restart=[2])],
            "w2": [head("y", 3)],
            "w3": [head("l#1", 4, launch="l", restart=[1])],
        }
    )
    assert [a.key for a in found] == ["x", "l#1", "y", "l#2"]


@pytest.mark.parametrize(
    "identity", [{}, {"attempt": None}, {"attempt": "x"}, {"attempt": {"start": "x"}}]
)
def test_a_header_that_says_nothing_is_an_attempt_of_its_own(identity):
    (found,) = attempts({"w1": [Header("r", "w1", 0, 0, identity)], "w2": []})
    assert (found.key, found.evidence, found.restart) == ("w1", "joined", ())


@pytest.mark.parametrize(
    ("later", "earlier", "last", "proof"),
    [
        (attempt("l", (1,)), attempt("l", (0,)), 99, True),
        (attempt("l", (0,)), attempt("l", (1,)), 0, False),
        (attempt("l", (0, 2)), attempt("l", (0, 1)), 99, True),
        (attempt("l", (0,), 9, "first"), attempt("l", (0,)), 5, False),
        (attempt(start=9, evidence="explicit"), attempt(), 8, True),
        (attempt(start=9, evidence="explicit"), attempt(), 9, False),
        (attempt(start=9, evidence="joined"), attempt(), 5, False),
        (attempt("m", (3,), 9), attempt("l", (0,)), 5, False),
        (attempt(start=9, named=True), attempt(), 8, True),
        (attempt(start=9, named=True), attempt(), 9, False),
        (attempt("l", (0,), 9, named=True), attempt("l", (1,)), 5, False),
    ],
)
def test_what_proves_that_an_attempt_followed_another(later, earlier, last, proof):
    assert follows(later, earlier, last) is proof


@pytest.mark.parametrize(
    ("how", "named"), [("given", True), ("from-name", True), ("launch", False), (None, False)]
)
def test_a_user_named_the_run_though_a_fresh_disk_showed_no_other_attempt(how, named):
    about = {"id_from": how, "attempt": {"key": "a", "evidence": "first"}}
    (found,) = attempts({"w": [Header("r", "w", 0, 0, about)]})
    assert found.named is named
