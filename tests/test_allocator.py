"""The simulated allocator, by sequences worked out by hand, and by what holds after any."""

import pytest
import torch
from allocator import MIB, Allocator, Event, Full, Trace, least
from hypothesis import given
from hypothesis import strategies as st

THREE = [(1, 6 * MIB), (2, 6 * MIB), (3, 6 * MIB)]  # of one segment of 20 MiB, in which 2 MiB are left


def test_the_driver_is_asked_for_a_segment_where_no_block_suffices() -> None:
    a = Allocator()
    for number, size, used, reserved in (
        (1, 300, 512, 2 * MIB),
        (2, 1 * MIB, 512 + MIB, 2 * MIB),  # the last that is small
        (3, 3 * MIB, 512 + 4 * MIB, 22 * MIB),
        (4, 11 * MIB, 512 + 15 * MIB, 22 * MIB),  # what is left of the 20
        (5, 15 * MIB, 512 + 30 * MIB, 38 * MIB),  # rounded to 16, of which the rest of 1 MiB is not split off
    ):
        a.make(number, size)
        used += MIB if number == 5 else 0
        assert (a.used, a.reserved) == (used, reserved), number


def test_the_smallest_block_that_suffices_is_taken_and_neighbours_join() -> None:
    a = Allocator().play([*THREE, (4, 30 * MIB), (4, None), (2, None)])
    a.make(5, 5 * MIB)  # into the second's 6 MiB, not into 30
    a.make(6, 25 * MIB)
    assert a.reserved == 50 * MIB
    a.play([(1, None), (5, None)])
    a.make(7, 12 * MIB)  # the first and the second, side by side
    assert (a.used, a.reserved) == (43 * MIB, 50 * MIB)


@pytest.mark.parametrize("expandable", [False, True])
def test_of_a_full_gpu_what_is_free_goes_back(expandable: bool) -> None:
    a = Allocator(40 * MIB, expandable).play([*THREE, *((number, None) for number, _ in THREE)])
    a.make(4, 40 * MIB)
    assert a.used == a.reserved == 40 * MIB
    with pytest.raises(Full):
        a.make(5, 600)


def test_what_is_partly_in_use_stays() -> None:
    """A segment whose first block is free, and of pages the one in which another block ends."""
    a = Allocator().play([*THREE, (1, None)])
    a._give_back()
    assert a.reserved == 20 * MIB
    b = Allocator(expandable=True).play([(1, 15 * MIB), (2, 25 * MIB), (2, None)])
    b._give_back()
    assert b.reserved == 20 * MIB


def test_blocks_of_ten_mebibytes_have_segments_of_their_own() -> None:
    for size, reserved in ((10 * MIB - 512, 20 * MIB), (10 * MIB, 10 * MIB), (10 * MIB + 512, 12 * MIB)):
        assert Allocator().play([(1, size)]).reserved == reserved


def test_blocks_join_over_pages_and_not_over_segments() -> None:
    """Six of 9 MiB: two are in each segment of 20 MiB, and in pages they lie side by side."""
    made: list[Event] = [(number, 9 * MIB) for number in range(6)]
    events = [*made, (1, None), (2, None), (6, 18 * MIB)]
    assert Allocator(60 * MIB, expandable=True).play(events).reserved == 60 * MIB
    with pytest.raises(Full):
        Allocator(60 * MIB).play(events)


def test_addresses_go_on_behind_what_is_free_before_them() -> None:
    a = Allocator(expandable=True).play([(1, 15 * MIB), (2, 30 * MIB)])
    assert a.reserved == 60 * MIB, "the second begins in the first's page"
    a.play([(2, None)])
    a.make(3, 60 * MIB)
    assert a.reserved == 80 * MIB, "15, and 60 in what was free and a page more"


def test_a_block_that_can_grow_counts_as_what_it_may_become() -> None:
    """Of 12 MiB inside and 15 MiB at the end the first is taken for 10, as the other one may grow."""
    a = Allocator(expandable=True).play([(1, 12 * MIB), (2, 13 * MIB), (1, None)])
    assert a.reserved == 40 * MIB, "15 are left at the end"
    a.play([(3, 10 * MIB), (4, 20 * MIB)])
    assert a.reserved == 60 * MIB, "the fourth grew out of the 15"
    b = Allocator(expandable=True).play([(1, 17 * MIB), (2, 13 * MIB), (1, None)])
    assert b.reserved == 40 * MIB, "10 are left at the end"
    b.play([(3, 10 * MIB), (4, 12 * MIB)])
    assert b.reserved == 60 * MIB, "17 were taken for the third, so that the 10 could grow"


def test_the_lowest_addresses_that_suffice_get_pages_first() -> None:
    """Those of a block whose page went back, for one that was too large for them."""
    four: list[Event] = [(number, 20 * MIB) for number in range(4)]
    a = Allocator(80 * MIB, expandable=True).play([*four, (1, None), (3, None), (4, 40 * MIB)])
    a.capacity = 100 * MIB
    a.make(5, 20 * MIB)
    assert a._held[5][1].start == a._held[0][1].end


def test_pages_keep_small_rests() -> None:
    for expandable, used in ((True, 19.5), (False, 20.0)):
        assert Allocator(expandable=expandable).play([(1, int(19.5 * MIB))]).used == used * MIB


def test_the_smallest_gpu_is_found() -> None:
    events: list[Event] = [(1, 50 * MIB), (1, None), (2, 100 * MIB), (2, None), (3, 20 * MIB)]
    assert Allocator().play(events).most_reserved == 150 * MIB
    assert least(events, expandable=False, within=0) == (100 * MIB, 100 * MIB)


def test_what_is_traced_are_the_storages_of_tensors_without_data() -> None:
    trace = Trace()
    with trace:
        a = torch.empty(10, device="meta")
        b = a.view(2, 5) + 1
        torch.ones(3)
        a.add_(1)
        b.t()
    del a
    assert trace.events == [(1, 40), (2, 40), (1, None)]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60 * MIB)), max_size=60), st.booleans())
def test_blocks_neither_overlap_nor_vanish(drawn: list[tuple[bool, int]], expandable: bool) -> None:
    a, held = Allocator(300 * MIB, expandable), []
    for number, (frees, size) in enumerate(drawn):
        if frees and held:
            a.free(held.pop(size % len(held)))
        else:
            try:
                a.make(number, size)
                held.append(number)
            except Full:
                assert a.reserved + size + 20 * MIB > 300 * MIB
        whole(a)
    for number in held:
        a.free(number)
    whole(a)
    a._give_back()
    assert a.used == a.reserved == 0


def whole(a: Allocator) -> None:
    """Blocks tile what the driver has given, and no two free ones of a kind lie side by side."""
    used = reserved = 0
    for pool in (a.small, a.large):
        taken = [block for own, block in a._held.values() if own is pool]
        blocks = sorted([*pool.blocks.values(), *taken], key=lambda block: block.start)
        assert len(pool.blocks) == len(pool.free) + len(pool.unmapped)
        for block in blocks:
            used += 0 if block.free else block.size
            reserved += block.size if block.mapped else 0
        for first, second in zip(blocks, blocks[1:], strict=False):
            assert first.end <= second.start
            assert first.mapped or not (first.start % pool.page or first.end % pool.page)
            alike = first.free and second.free and first.mapped == second.mapped
            assert (first.behind is second) == (first.end == second.start) == (second.before is first)
            assert not (alike and first.behind is second)
    assert (used, reserved) == (a.used, a.reserved)
    assert a.used <= a.reserved <= a.capacity
