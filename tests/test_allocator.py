"""The simulated allocator, by sequences worked out by hand, and by what holds after any."""

import pytest
import torch
from allocator import MB, Allocator, Event, Full, Trace, least
from hypothesis import given
from hypothesis import strategies as st

THREE = [(1, 6 * MB), (2, 6 * MB), (3, 6 * MB)]  # of one segment of 20 MB, in which 2 MB are left


def test_the_driver_is_asked_for_a_segment_where_no_block_suffices() -> None:
    a = Allocator()
    for number, size, used, reserved in (
        (1, 300, 512, 2 * MB),
        (2, 1 * MB, 512 + MB, 2 * MB),  # the last that is small
        (3, 3 * MB, 512 + 4 * MB, 22 * MB),
        (4, 11 * MB, 512 + 15 * MB, 22 * MB),  # what is left of the 20
        (5, 15 * MB, 512 + 30 * MB, 38 * MB),  # rounded to 16, of which the rest of 1 MB is not split off
    ):
        a.make(number, size)
        used += MB if number == 5 else 0
        assert (a.used, a.reserved) == (used, reserved), number


def test_the_smallest_block_that_suffices_is_taken_and_neighbours_join() -> None:
    a = Allocator().play([*THREE, (4, 30 * MB), (4, None), (2, None)])
    a.make(5, 5 * MB)  # into the second's 6 MB, not into 30
    a.make(6, 25 * MB)
    assert a.reserved == 50 * MB
    a.play([(1, None), (5, None)])
    a.make(7, 12 * MB)  # the first and the second, side by side
    assert (a.used, a.reserved) == (43 * MB, 50 * MB)


@pytest.mark.parametrize("expandable", [False, True])
def test_of_a_full_gpu_what_is_free_goes_back(expandable: bool) -> None:
    a = Allocator(40 * MB, expandable).play([*THREE, *((number, None) for number, _ in THREE)])
    a.make(4, 40 * MB)
    assert a.used == a.reserved == 40 * MB
    with pytest.raises(Full):
        a.make(5, 600)


def test_blocks_join_over_pages_and_not_over_segments() -> None:
    """Six of 9 MB: two are in each segment of 20 MB, and in pages they lie side by side."""
    made: list[Event] = [(number, 9 * MB) for number in range(6)]
    events = [*made, (1, None), (2, None), (6, 18 * MB)]
    assert Allocator(60 * MB, expandable=True).play(events).reserved == 60 * MB
    with pytest.raises(Full):
        Allocator(60 * MB).play(events)


def test_addresses_go_on_behind_what_is_free_before_them() -> None:
    a = Allocator(expandable=True).play([(1, 15 * MB), (2, 30 * MB)])
    assert a.reserved == 60 * MB, "the second begins in the first's page"
    a.play([(2, None)])
    a.make(3, 60 * MB)
    assert a.reserved == 80 * MB, "15, and 60 in what was free and a page more"


def test_the_smallest_gpu_is_found() -> None:
    events: list[Event] = [(1, 50 * MB), (1, None), (2, 100 * MB), (2, None), (3, 20 * MB)]
    assert Allocator().play(events).most_reserved == 150 * MB
    assert least(events, expandable=False, within=0) == (100 * MB, 100 * MB)


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


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 60 * MB)), max_size=60), st.booleans())
def test_blocks_neither_overlap_nor_vanish(drawn: list[tuple[bool, int]], expandable: bool) -> None:
    a, held = Allocator(300 * MB, expandable), []
    for number, (frees, size) in enumerate(drawn):
        if frees and held:
            a.free(held.pop(size % len(held)))
        else:
            try:
                a.make(number, size)
                held.append(number)
            except Full:
                assert a.reserved + size + 20 * MB > 300 * MB - a.used
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
            alike = first.free and second.free and first.mapped == second.mapped
            assert (first.behind is second) == (first.end == second.start) == (second.before is first)
            assert not (alike and first.behind is second)
    assert (used, reserved) == (a.used, a.reserved)
    assert a.used <= a.reserved <= a.capacity
