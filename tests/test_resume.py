"""Which run a process belongs to: two too many can be joined, two merged cannot be told apart."""

from __future__ import annotations

import os

import pytest

from eventlog import identity, runfile
from eventlog.errors import FormatError, IntegrityError, UsageError
from eventlog.event import make_rows
from eventlog.identity import Launch
from eventlog.layout import run_folder
from eventlog.resume import Asked, decide
from eventlog.runfile import RunFile
from tests.helpers import writer


class Cluster:
    """Starts processes that log to one journal."""

    def __init__(self, journal):
        self.journal = str(journal)

    def decide(self, name="n", launch=None, environ=None, **asked):
        wish = Asked("p", name, **asked)
        return decide(self.journal, wish, launch=launch or Launch(), environ=environ or {})

    def start(self, name="n", launch=None, *, end=False, environ=None, **asked):
        """Decide, and write as the run of a process does; return the decision."""
        made = self.decide(name, launch, environ, **asked)
        folder = run_folder(self.journal, made.run.project, made.run.id)
        os.makedirs(folder, exist_ok=True)
        runfile.claim(folder, made.run)
        one = writer(folder, identity=made.header, durability="os")
        one.append("metric", {"loss": 0.5}, 1)
        if end:
            one.append_rows(make_rows("state", [("state", "finished"), ("exit_code", 0)])[0], None)
        one.close()
        return made


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def slurm(restart=0, rank=0, world=1, job="7.0"):
    return Launch(f"slurm:{job}", (restart,), rank, world)


def test_a_launch_of_one_without_an_id_gets_a_run_of_its_own_each_time(cluster):
    first, second = cluster.start(), cluster.start()
    assert first.run.id != second.run.id
    assert first.how == second.how == "random"
    assert not first.notes
    assert first.run.id in second.notes[0]  # one line says how to continue the other
    assert "allow" in second.notes[0]


def test_a_requeued_job_is_found(cluster):
    first = cluster.start(launch=slurm(0))
    again = cluster.start(launch=slurm(1))
    assert (again.run, again.how) == (first.run, "found")
    assert again.header["attempt"]["evidence"] == "restart"
    assert again.header["attempt"]["ordinal"] == 2


@pytest.mark.parametrize("name", [None, "n"])
def test_a_requeued_job_is_found_with_and_without_a_name(cluster, name):
    first = cluster.start(name, launch=slurm(0))
    assert cluster.start(name, launch=slurm(1)).run == first.run


@pytest.mark.parametrize(
    "launch", [slurm(0), slurm(1, job="8.0"), Launch(None, (1,)), Launch(None, (), 0, 1)]
)
def test_what_is_no_restart_of_the_same_launch_is_another_run(cluster, launch):
    first = cluster.start(launch=slurm(0))
    assert cluster.start(launch=launch).run.id != first.run.id


def test_a_run_that_has_ended_is_not_continued_by_itself(cluster):
    first = cluster.start(launch=slurm(0), end=True)
    assert cluster.start(launch=slurm(1)).run.id != first.run.id


def test_a_second_process_of_a_launch_of_one_is_another_run(cluster):
    first, second = cluster.start(launch=slurm()), cluster.start(launch=slurm())
    assert first.run.id == identity.id_from_launch("p", "n", "slurm:7.0")
    assert second.run.id != first.run.id


def test_all_ranks_of_a_launch_make_the_same_run_and_attempt(cluster):
    ranks = [cluster.start(launch=slurm(rank=r, world=3)) for r in range(3)]
    assert len({r.run for r in ranks}) == 1
    assert len({r.header["attempt"]["key"] for r in ranks}) == 1
    assert {r.header["attempt"]["evidence"] for r in ranks} == {"first"}
    assert {r.header["attempt"]["ordinal"] for r in ranks} == {1}
    again = [cluster.start(launch=slurm(1, rank=r, world=3)) for r in (2, 0, 1)]
    assert {r.run for r in again} == {ranks[0].run}
    assert {r.header["attempt"]["ordinal"] for r in again} == {2}


def test_many_processes_without_a_common_id_are_told_what_to_do(cluster):
    torchrun = identity.launch({"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="EVENTLOG_RUN_ID"):
        cluster.decide(launch=torchrun)
    first = cluster.start(launch=Launch(None, (0,), 0, 2))
    assert any("EVENTLOG_RUN_ID" in note for note in first.notes)
    given = cluster.start(launch=torchrun, id="told")
    assert given.run.id == "told"


def test_allow_continues_the_latest_of_that_name_whatever_its_state(cluster):
    cluster.start()
    latest = cluster.start(end=True)
    again = cluster.start(resume="allow")
    assert (again.run, again.how) == (latest.run, "resumed")
    assert again.header["attempt"]["evidence"] == "explicit"
    assert cluster.start("other", resume="allow").run.id != latest.run.id


def test_must_fails_without_a_run_and_continues_one(cluster):
    with pytest.raises(UsageError, match="resume='must'"):
        cluster.decide(resume="must")
    with pytest.raises(UsageError, match="resume='must'"):
        cluster.decide(resume="must", id="x")
    first = cluster.start()
    assert cluster.start(resume="must").run == first.run
    assert cluster.start(resume="must", id=first.run.id).run == first.run


def test_never_always_makes_one(cluster):
    first = cluster.start(launch=slurm(0))
    assert cluster.start(launch=slurm(1), resume="never").run.id != first.run.id
    cluster.start(id="x")
    with pytest.raises(UsageError, match="there already"):
        cluster.decide(id="x", resume="never")
    with pytest.raises(UsageError, match="none of"):
        cluster.decide(resume="always")


def test_a_given_id_is_the_run_and_joining_it_is_explicit(cluster):
    first, second = cluster.start(id="mine"), cluster.start(id="mine")
    assert first.run == second.run == RunFile("mine", "p", "n")
    assert second.header["attempt"]["evidence"] == "explicit"
    assert cluster.start(None, id="mine").run.name == "n"


def test_an_id_from_the_name_meets_again_on_any_disk(cluster, tmp_path):
    first = cluster.start(id="from-name")
    assert first.run.id == identity.id_from_name("p", "n")
    assert first.how == "from-name"
    assert Cluster(tmp_path / "other").start(id="from-name").run == first.run
    with pytest.raises(UsageError, match="needs a name"):
        cluster.decide(None, id="from-name")


def test_a_run_of_another_owner_is_not_joined_and_both_are_named(cluster, monkeypatch):
    monkeypatch.setenv("EVENTLOG_OWNER", "ada")
    first = cluster.start(id="from-name")
    monkeypatch.setenv("EVENTLOG_OWNER", "bob")
    with pytest.raises(IntegrityError, match=r"ada.*bob"):
        cluster.decide(id="from-name")
    assert cluster.start(resume="allow").run.id != first.run.id


def test_an_id_that_another_name_has_is_refused_and_both_are_named(cluster):
    cluster.start("one", id="x")
    with pytest.raises(IntegrityError, match=r"p/one.*p/two"):
        cluster.start("two", id="x")


def test_an_attempts_ordinal_can_be_told(cluster):
    assert cluster.start(environ={"EVENTLOG_ATTEMPT": "7"}).header["attempt"]["ordinal"] == 7
    assert cluster.start(environ={"EVENTLOG_ATTEMPT": "x"}).header["attempt"]["ordinal"] == 1


def test_a_run_json_that_lies_or_is_damaged_is_refused(tmp_path):
    cases = [
        b"",
        b"[]",
        b'{"format": "1.0"}',
        b"\xff",
        b"[" * 100_000,
        b'{"format": "1.0", "id": 1, "project": "p", "name": "n"}',
    ]
    for content in cases:
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(FormatError):
            runfile.read(str(tmp_path))
    (tmp_path / "run.json").write_bytes(b'{"format": "2.0"}')
    with pytest.raises(FormatError, match="newer"):
        runfile.read(str(tmp_path))
    (tmp_path / "run.json").unlink()
    with pytest.raises(UsageError, match="no run"):
        runfile.read(str(tmp_path))


def test_run_json_is_the_same_bytes_on_every_node(tmp_path):
    run = RunFile("é", "p", "n")
    for node in ("a", "b"):
        (tmp_path / node).mkdir()
        runfile.claim(str(tmp_path / node), run)
    assert (tmp_path / "a" / "run.json").read_bytes() == (tmp_path / "b" / "run.json").read_bytes()
    assert runfile.read(str(tmp_path / "a")) == run


def ray(session="session_1", job="01000000"):
    return Launch(f"ray:{job}", (), 0, 1, session)


def test_the_actors_of_a_ray_job_that_name_their_run_are_one_attempt(cluster):
    first, second = (cluster.start(id="from-name", launch=ray()) for _ in range(2))
    assert first.run == second.run
    assert first.header["attempt"]["key"] == second.header["attempt"]["key"]
    assert second.header["attempt"]["ordinal"] == 1


def test_a_ray_job_of_a_new_cluster_is_another_attempt_though_its_number_is_the_same(cluster):
    cluster.start(id="from-name", launch=ray())
    again = cluster.start(id="from-name", launch=ray("session_2"))
    assert again.header["attempt"]["ordinal"] == 2
    assert again.header["attempt"]["evidence"] == "explicit"


def test_trials_of_a_ray_job_that_have_no_name_are_runs_of_their_own(cluster):
    first, second = (cluster.decide(None, launch=ray()) for _ in range(2))
    assert first.run.id != second.run.id
