"""The directory of nodes: what owners tell, and what holds while a node changes hands."""

from __future__ import annotations

from bridge.fleet.directory import BETWEEN_OWNERS, Directory
from bridge.messages.fleet import NodeEntry, WorkerEntry


def test_a_node_that_changes_hands_is_what_it_was_for_a_while() -> None:
    now = 100.0
    one = WorkerEntry("w1", "w1.a", 1.0, owned=(NodeEntry(name="fs1", state="UP"), NodeEntry(name="fs2", state="UP")))
    members = {"w1": one}
    directory = Directory(lambda: members, lambda: now)
    found = directory.find("fs1")
    assert found is not None
    assert (found.state, directory.owner("fs1")) == ("UP", "w1")
    members = {}
    found = directory.find("fs1")
    assert found is not None
    assert (found.state, directory.owner("fs1")) == ("UP", "")
    members = {"w2": WorkerEntry("w2", "w2.a", 2.0, owned=(NodeEntry(name="fs1", state="SYNCING"),))}
    found = directory.find("fs1")
    assert found is not None
    assert (found.state, directory.owner("fs1")) == ("SYNCING", "w2")
    now += BETWEEN_OWNERS + 1
    members = dict(members)
    assert directory.find("fs1") is not None
    assert directory.find("fs2") is None
