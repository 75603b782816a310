"""What processes tell one another, and which of them says why they end."""

from __future__ import annotations

import pytest

from ressa import parallel
from ressa.errors import RessaError
from ressa.parallel import Team


def said(monkeypatch, *answers):
    """A team whose other processes say these."""
    monkeypatch.setattr(Team, "_exchange", lambda self, words: [words, *answers])
    return Team(0, 1 + len(answers))


def test_what_each_has_of_its_batches_comes_in_the_order_of_the_batches(monkeypatch):
    team = said(monkeypatch, (["1", "4"], ""), (["2"], ""))
    assert team.in_order(["0", "3"]) == ["0", "1", "2", "3", "4"]


def test_the_failure_of_another_process_is_raised_and_not_told_again(monkeypatch):
    team = said(monkeypatch, (None, "no damping helps"))
    monkeypatch.setattr(parallel, "_known", False)
    with pytest.raises(RessaError, match="no damping helps") as raised:
        team.exchange("mine")
    monkeypatch.setattr(Team, "_exchange", lambda *_: pytest.fail("told twice"))
    team.fail(raised.value)


def test_who_fails_while_tensors_are_sent_tells_nobody(monkeypatch):
    team = said(monkeypatch, (None, ""))
    with pytest.raises(ValueError, match="a fault"), team.sending():
        raise ValueError("a fault")
    monkeypatch.setattr(Team, "_exchange", lambda *_: pytest.fail("others wait for tensors"))
    team.fail(ValueError("a fault"))


def test_the_first_process_says_what_all_know_and_each_what_it_alone_knows(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "_known", False)
    for rank, silent in (("0", False), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        assert parallel.silent() is silent
    with pytest.raises(RessaError), parallel.alike():
        raise RessaError("a setting")
    for rank, silent in (("0", False), ("1", True)):
        monkeypatch.setenv("RANK", rank)
        assert parallel.silent() is silent


def test_a_single_process_is_a_team_of_its_own():
    with parallel.together("cpu") as team:
        assert (team.rank, team.size) == (0, 1)
        assert team.exchange("mine") == ["mine"]


def test_what_all_said_last_is_not_said_again(monkeypatch):
    """The other process says what this one says; words that follow one another are sent once."""
    sent, team = [], Team(0, 2)

    def digests(found, mine):
        for digest in found:
            digest.copy_(mine)

    def words(said, mine):
        sent.append(mine[0])
        said[:] = [mine, mine]

    monkeypatch.setattr("torch.distributed.all_gather", digests)
    monkeypatch.setattr("torch.distributed.all_gather_object", words)
    for mine in ("a", "a", "a", "b", "a"):
        assert team.exchange(mine) == [mine, mine]
    assert sent == ["a", "b", "a"]
