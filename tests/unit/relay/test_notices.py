from __future__ import annotations

import pytest

from bridge.messages.codec import JSON
from bridge.messages.notice import LogNotice, NodeNotice, SnapshotNotice
from bridge.relay import notices
from bridge.relay.notices import NoticeBoard


def tell(board: NoticeBoard, number: int, size: int = 10) -> None:
    channels = [{"uuid": str(number), "data": "x" * size}]
    board.tell(SnapshotNotice(snapshot="s", part=1, parts=1, channels=channels), node="fs1")


def numbers(board: NoticeBoard) -> list[int]:
    taken = board.take()
    found = [int(JSON.decode(message.payload)["data"]["channels"][0]["uuid"]) for message in taken]
    board.put_back(taken)
    return found


@pytest.fixture
def board() -> NoticeBoard:
    return NoticeBoard(worker="w", instance="i", codec="json")


def test_they_wait_in_order_and_can_be_put_back(board: NoticeBoard) -> None:
    for number in range(5):
        tell(board, number)
    taken = board.take()
    tell(board, 5)
    board.put_back(taken[2:])
    assert numbers(board) == [2, 3, 4, 5]
    assert board.dropped == 0


def test_while_the_bus_is_away_so_many_wait(board: NoticeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_WAITING_LIMIT", 10)
    for number in range(100):
        tell(board, number)
    assert numbers(board) == list(range(90, 100))
    assert board.dropped == 90


def test_while_the_bus_is_away_so_many_bytes_wait(board: NoticeBoard) -> None:
    """Every new link tells a snapshot; a busy node's is some MB."""
    for number in range(200):
        tell(board, number, size=1024 * 1024)
    waiting = numbers(board)
    assert waiting == list(range(200 - len(waiting), 200))
    assert sum(len(message.payload) for message in board.take()) <= 16 * 1024 * 1024
    assert board.dropped == 200 - len(waiting)


def test_what_is_put_back_counts(board: NoticeBoard) -> None:
    for number in range(15):
        tell(board, number, size=1024 * 1024)
    taken = board.take()
    for number in range(15, 25):
        tell(board, number, size=1024 * 1024)
    board.put_back(taken)
    assert len(board) == 15
    assert numbers(board)[-1] == 24


def test_one_that_is_too_large_stays_alone(board: NoticeBoard) -> None:
    tell(board, 1)
    tell(board, 2, size=20 * 1024 * 1024)
    assert numbers(board) == [2]


def log(board: NoticeBoard, text: str) -> None:
    board.tell(LogNotice(level=7, text=text), node="fs1")


def test_log_lines_drive_nothing_else_out(board: NoticeBoard) -> None:
    """A node at debug level says thousands of lines a second; that it went down is said once."""
    for state in ("DOWN", "CONNECTING", "UP"):
        board.tell(NodeNotice(state=state), node="fs1")
        for number in range(12_000):
            log(board, f"{state} {number}")
    taken = [JSON.decode(message.payload) for message in board.take()]
    assert len(taken) <= 10_000
    assert [one["data"]["state"] for one in taken if one["type"].endswith(".node")] == ["DOWN", "CONNECTING", "UP"]
    lines = [one["data"]["text"] for one in taken if one["type"].endswith(".log")]
    assert lines == [f"UP {number}" for number in range(12_000 - len(lines), 12_000)]
    assert len(lines) > 8_000
    assert len(taken) + board.dropped == 36_003


def test_nor_do_long_ones(board: NoticeBoard) -> None:
    board.tell(NodeNotice(state="DOWN"), node="fs1")
    for _ in range(50):
        log(board, "x" * 1024 * 1024)
    taken = board.take()
    board.put_back(taken)
    log(board, "y" * 1024 * 1024)
    waiting = board.take()
    assert waiting[0].topic == "fs.bridge.node"
    assert sum(len(message.payload) for message in waiting) <= 16 * 1024 * 1024


def test_where_only_others_wait_the_oldest_goes(board: NoticeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_WAITING_LIMIT", 10)
    log(board, "first")
    for number in range(20):
        tell(board, number)
    assert numbers(board) == list(range(10, 20))
    assert board.dropped == 11
