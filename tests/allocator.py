"""PyTorch's allocator of CUDA memory, simulated: how much of a GPU a sequence of tensors takes, with holes.

The rules are those of c10/cuda/CUDACachingAllocator.cpp, for one stream and no private pool. Memory is handed
out in blocks of a multiple of 512 bytes, the smallest free block that suffices first, and what is left of it
is a block again. Blocks up to 1 MiB come from one pool, larger ones from another. If no block suffices, the
driver is asked:

- by default for a segment, whose blocks never join those of another: 2 MiB for small blocks, 20 MiB for those
  below 10 MiB, else the block's own size in whole 2 MiB. A large block keeps a rest of up to 1 MiB. When the
  GPU is full, segments of which nothing is in use go back.
- with `expandable_segments` for pages behind those that a pool has (2 MiB and 20 MiB): addresses go on, and
  blocks join. When the GPU is full, every page of which nothing is in use goes back, and its addresses stay.
"""

import weakref
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20
APART = 2**45 * 20  # addresses between two segments: more than any of them has, and a multiple of pages

Event = tuple[int, int | None]
"""A tensor's number and its bytes when it is made, None when it goes."""


class Trace(TorchDispatchMode):
    """What becomes of memory while it is active: the storages of tensors of the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._known: dict[int, int] = {}
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return made

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.is_meta and storage._cdata not in self._known:
            self._count += 1
            self._known[storage._cdata] = self._count
            self.events.append((self._count, storage.nbytes()))
            weakref.finalize(storage, self._goes, storage._cdata)

    def _goes(self, place: int) -> None:
        self.events.append((self._known.pop(place), None))


class Full(Exception):
    """There is no room for a block."""


@dataclass
class Block:
    start: int  # an address
    size: int
    free: bool = True
    mapped: bool = True
    before: "Block | None" = None
    behind: "Block | None" = None

    @property
    def end(self) -> int:
        return self.start + self.size


class Pool:
    """The free blocks of a size class, by size, and the addresses without memory behind them, in order."""

    def __init__(self, page: int) -> None:
        self.page = page
        self.blocks: dict[int, Block] = {}
        self.free: list[tuple[int, int]] = []  # (size, start)
        self.unmapped: list[int] = []

    def insert(self, block: Block) -> None:
        self.blocks[block.start] = block
        if block.mapped:
            insort(self.free, (block.size, block.start))
        else:
            insort(self.unmapped, block.start)

    def remove(self, block: Block) -> None:
        del self.blocks[block.start]
        places, key = (self.free, (block.size, block.start)) if block.mapped else (self.unmapped, block.start)
        assert places.pop(bisect_left(places, key)) == key

    def fitting(self, size: int) -> Block | None:
        """The smallest free block that suffices; one that can grow counts as large as it may become."""
        sizes = iter(self.free[bisect_left(self.free, (size, 0)) :])
        best = next((self.blocks[start] for _, start in sizes), None)
        for _, start in sizes if best else ():
            if room(self.blocks[start]) >= room(best):
                break
            best = self.blocks[start]
        return best


def room(block: Block) -> int:
    behind = block.behind
    return block.size + (behind.size if behind and not behind.mapped else 0)


class Allocator:
    """Play events with `make` and `free`. `reserved` is what the driver has given, `used` what is in use."""

    def __init__(self, capacity: float = float("inf"), expandable: bool = False) -> None:
        self.capacity, self.expandable = capacity, expandable
        self.small, self.large = Pool(2 * MIB), Pool(20 * MIB)
        self.used = self.reserved = self.most_used = self.most_reserved = self._segments = 0
        self._held: dict[int, tuple[Pool, Block]] = {}

    def play(self, events: Iterable[Event]) -> "Allocator":
        for number, size in events:
            if size is None:
                self.free(number)
            elif size:
                self.make(number, size)
        return self

    def make(self, number: int, size: int) -> None:
        """Hand out a block. Raises Full if the GPU has no room for it."""
        size = -(-size // 512) * 512
        pool = self.small if size <= MIB else self.large
        block = pool.fitting(size)
        if block is None:
            block = self._ask(pool, size)
            if block is None:
                self._give_back()
                block = self._ask(pool, size)
            if block is None:
                raise Full(f"{size} bytes beside {self.used} in use and {self.reserved} reserved")
        pool.remove(block)
        rest = block.size - size
        if rest >= 512 if self.expandable or pool is self.small else rest > MIB:
            pool.insert(self._split(block, size))
        block.free = False
        self._held[number] = pool, block
        self.used += block.size
        self.most_used = max(self.most_used, self.used)

    def free(self, number: int) -> None:
        if number in self._held:  # a tensor without bytes has no block
            pool, block = self._held.pop(number)
            self.used -= block.size
            block.free = True
            pool.insert(self._join(pool, block))

    def _ask(self, pool: Pool, size: int) -> Block | None:
        """A free block that suffices, with memory from the driver; None if it has none."""
        if self.expandable:
            return self._grow(pool, size)
        least = 2 * MIB if pool is self.small else 20 * MIB if size < 10 * MIB else size
        return self._new(pool, -(-least // (2 * MIB)) * 2 * MIB)

    def _new(self, pool: Pool, size: int, mapped: bool = True) -> Block | None:
        if mapped and not self._reserve(size):
            return None
        self._segments += 1
        block = Block(self._segments * APART, size, mapped=mapped)
        pool.insert(block)
        return block

    def _reserve(self, size: int) -> bool:
        fits = self.reserved + size <= self.capacity
        if fits:
            self.reserved += size
            self.most_reserved = max(self.most_reserved, self.reserved)
        return fits

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """Map pages behind the first addresses that suffice, counting free blocks before and between them."""
        for start in pool.unmapped:
            block = pool.blocks[start]
            if block.before and block.before.free:
                block = block.before
            if sum(each.size for each in _free_from(block)) >= size:
                break
        else:
            block = self._new(pool, APART // 2, mapped=False)
        while not block.mapped or block.size < size:
            bare = block.behind if block.mapped else block
            have = block.size if block.mapped else 0
            pages = -(-min(bare.size, size - have) // pool.page) * pool.page
            if not self._reserve(pages):
                return None
            pool.remove(bare)
            if bare.size > pages:
                pool.insert(self._split(bare, pages))
            bare.mapped = True
            block = self._join(pool, bare)
            pool.insert(block)
        return block

    def _give_back(self) -> None:
        for pool in (self.small, self.large):
            for _, start in list(pool.free):
                block = pool.blocks[start]
                if self.expandable:
                    self._unmap(pool, block)
                elif block.before is block.behind is None:
                    pool.remove(block)
                    self.reserved -= block.size

    def _unmap(self, pool: Pool, block: Block) -> None:
        """Give back the pages that lie within a free block."""
        first, last = -(-block.start // pool.page) * pool.page, block.end // pool.page * pool.page
        if first >= last:
            return
        pool.remove(block)
        if block.end > last:
            pool.insert(self._split(block, last - block.start))
        if block.start < first:
            middle = self._split(block, first - block.start)
            pool.insert(block)
            block = middle
        block.mapped = False
        self.reserved -= block.size
        pool.insert(self._join(pool, block))

    @staticmethod
    def _split(block: Block, size: int) -> Block:
        """Cut a block. Returns what lies behind, which is in no pool yet."""
        rest = Block(block.start + size, block.size - size, True, block.mapped, block)
        rest.behind, block.behind, block.size = block.behind, rest, size
        if rest.behind:
            rest.behind.before = rest
        return rest

    @staticmethod
    def _join(pool: Pool, block: Block) -> Block:
        """A block that is in no pool with the free ones beside it that are as it is, mapped or not."""
        for other in (block.before, block.behind):
            if other and other.free and other.mapped == block.mapped:
                pool.remove(other)
                first, second = (other, block) if other is block.before else (block, other)
                first.size, first.behind = first.size + second.size, second.behind
                if first.behind:
                    first.behind.before = first
                block = first
        return block


def _free_from(block: Block | None) -> Iterator[Block]:
    while block and block.free:
        yield block
        block = block.behind


def least(events: list[Event], expandable: bool, within: int = 4 * MIB) -> tuple[int, int]:
    """The most bytes that are in use at a time, and the smallest GPU on which the events can be played."""
    unbounded = Allocator(expandable=expandable).play(events)
    low, high = unbounded.most_used, unbounded.most_reserved
    while high - low > within:
        middle = (low + high) // 2
        try:
            Allocator(middle, expandable).play(events)
            high = middle
        except Full:
            low = middle
    return unbounded.most_used, high
