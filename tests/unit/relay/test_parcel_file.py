"""Bodies in one file: each comes back as it was, room is used again, and a file that nobody needs shrinks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.bus.base import Message
from bridge.relay.parcel_file import BLOCK, SLACK, ParcelFile, Piece, Place, Room


def piece(size: int, mark: str) -> list[Piece]:
    return [Piece(0, [], "e", size, 1.0, [Message("t", mark.encode() * size, mark)], 0)]


@pytest.fixture
def file(tmp_path: Path) -> ParcelFile:
    one = ParcelFile(tmp_path / "bodies")
    one.open(())
    return one


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5))))
def test_room_is_given_once(steps: list[tuple[int, int]]) -> None:
    """Against a set of blocks: nothing is given twice, ``end`` is right, and taken blocks alone rebuild it."""
    room, taken = Room(), []
    for which, count in steps:
        if taken and which % 3 == 0:
            room.give(*taken.pop(which % len(taken)))
        else:
            taken.append((room.take(count), count))
        blocks = [block for start, size in taken for block in range(start, start + size)]
        assert len(blocks) == len(set(blocks))
        assert room.end == max(blocks, default=-1) + 1
    again = Room(taken)
    assert (again.end, again._free) == (room.end, room._free)


def test_room_in_front_is_used_first(file: ParcelFile, tmp_path: Path) -> None:
    places = [file.write(piece(BLOCK * 2, mark)) for mark in "abc"]
    file.remove(places[0])
    again = file.write(piece(BLOCK, "d"))
    assert again.start == 0
    assert (tmp_path / "bodies").stat().st_size <= places[2].start + 3 * BLOCK
    assert file.read(places[1])[0].messages[0].id == "b"
    assert file.read(again)[0].messages[0].id == "d"


def test_what_was_written_over_is_not_taken_for_what_it_was(file: ParcelFile) -> None:
    place = file.write(piece(BLOCK, "a"))
    file.remove(place)
    file.write(piece(BLOCK, "b"))
    assert file.read(place) == []


def test_the_file_shrinks_when_it_is_not_needed(file: ParcelFile, tmp_path: Path) -> None:
    path = tmp_path / "bodies"
    many = [file.write(piece(1 << 20, "a")) for _ in range(SLACK // (1 << 20) + 4)]
    full = path.stat().st_size
    assert full > SLACK
    for place in many[1:]:
        file.remove(place)
    assert path.stat().st_size < full
    file.remove(many[0])
    file.close()
    assert not path.exists()


def test_what_is_known_is_kept_when_it_is_opened(file: ParcelFile, tmp_path: Path) -> None:
    first, second = file.write(piece(10, "a")), file.write(piece(10, "b"))
    file.close()
    again = ParcelFile(tmp_path / "bodies")
    again.open([second])
    assert again.write(piece(10, "c")).start == first.start
    assert again.read(second)[0].messages[0].id == "b"
    assert again.read(Place(second.start, second.length, second.checksum ^ 1)) == []
