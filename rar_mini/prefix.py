"""The prefix tree: many sequences that share their beginnings, in one forward pass that reads each beginning
once.

A tree of segments is packed into one flat row of tokens, a parent before its children:

    ids        [ prompt ........ | completion 0 ... | completion 1 . | completion 2 ..... ]
    positions  [ 0 1 2 ... n - 1 | n n+1 n+2 ...    | n n+1 ...      | n n+1 ...          ]

A token attends to its own segment's past and to the whole of its segment's ancestors, so that every sequence
gets the numbers that it would get alone. With G completions of c tokens to a prompt of n tokens, the pass
costs n + G c tokens instead of G (n + c). In a conversation each later turn is a segment a level deeper.

Attention has two forms. `loop` calls scaled_dot_product_attention once a segment, over its path's keys: it
runs everywhere. `flex` is one FlexAttention kernel for the whole row, which skips the blocks that nothing
sees: for a GPU, where hundreds of small calls would wait for each other. On a CPU its forward pass runs,
slowly, so that the mask can be tested; its backward pass does not exist there.

Both give the same gradients when they are run again, bit for bit: a resumed run depends on it.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from rar_mini.config import Attention

Ids = Sequence[int]
BLOCK = 128  # tokens, the side of a block of FlexAttention's mask
NARROWEST = 16  # channels of a head that FlexAttention takes on CUDA: a matrix product of Triton's has 16

ROOMY = 163 * 1024  # bytes of shared memory that a program may have on an A100; on newer ones more
SIDES = ((64, 2), (32, 2), (32, 1), (16, 1))  # tokens and stages of a tile for others, best first


class Heard(NamedTuple):
    """What stands in a conversation behind the first `after` tokens of a completion, and the policy did not
    write: a user's turn and the template's tokens around it. With `instead` it stands in the place of the
    completion's tokens since the last turn, which are then a branch of their own: a teacher's words, say,
    where the conversation went on with others."""

    after: int
    ids: Ids
    instead: bool = False


@dataclass
class Tree:
    """Segments of token ids with their parents; `add` returns the new segment's number."""

    segments: list[Ids] = field(default_factory=list)
    parents: list[int | None] = field(default_factory=list)
    known: dict[tuple[int | None, tuple[int, ...]], int] = field(default_factory=dict)

    def add(self, ids: Ids, parent: int | None = None) -> int:
        assert parent is None or 0 <= parent < len(self.segments), "a parent is added before its children"
        self.segments.append(ids)
        self.parents.append(parent)
        return len(self.segments) - 1

    def shared(self, ids: Ids, parent: int | None) -> int | None:
        """The one segment of these ids behind this parent, for all who ask; the parent, if there are no
        ids."""
        if not ids:
            return parent
        key = parent, tuple(ids)
        if key not in self.known:
            self.known[key] = self.add(ids, parent)
        return self.known[key]

    def turns(self, ids: Ids, heard: Sequence[Heard], root: int) -> Iterator[tuple[int, int | None, int]]:
        """Add a completion behind its prompt, the `root`. Yields for each of its turns the segment before it,
        its own (None if it is a single token, which is only predicted) and how many tokens it has.

        What a conversation went on with is shared by all that have the same words up to there.
        """
        above, start = root, 0
        for after, said, instead in heard:
            own = ids[start:after]
            if instead:
                branch = self.add(own[:-1], above) if len(own) > 1 else None
                below = self.shared(said, above)
            else:
                branch = below = self.shared([*own, *said], above)
            yield above, branch, len(own)
            above, start = below, after
        last = ids[start:]
        # The last token predicts nothing that was sampled, so it is never read.
        yield above, self.add(last[:-1], above) if len(last) > 1 else None, len(last)

    def ancestors(self, segment: int) -> list[int]:
        """The segments before this one on its path, the root first."""
        path = []
        parent = self.parents[segment]
        while parent is not None:
            path.append(parent)
            parent = self.parents[parent]
        return path[::-1]

    def sequence(self, segment: int) -> list[int]:
        """The token ids from the root to this segment's end: what it would be alone."""
        return [token for each in (*self.ancestors(segment), segment) for token in self.segments[each]]


@dataclass(frozen=True)
class Packed:
    """A tree as one row of T tokens, with the attention that keeps its sequences apart."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,) the place in its own sequence
    spans: list[tuple[int, int]]  # where each segment lies in the row
    paths: list[list[int]]  # each segment's ancestors, the root first, and itself
    attention: Attention

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over the tree: q (T, H, d), k and v (T, KV, d) -> (T, H, d)."""
        return self._flex(q, k, v) if self.flexes(q.shape[-1]) else self._loop(q, k, v)

    def flexes(self, width: int = NARROWEST) -> bool:
        """Whether FlexAttention does it, for heads of so many channels."""
        # A single block would have a kernel of its own: sizes of 1 are compiled in.
        possible = self.ids.is_cuda and len(self.ids) > BLOCK and width >= NARROWEST
        return self.attention == "flex" or (self.attention == "auto" and possible)

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """For the loop: (own length, path's length) a segment, True where a token sees another.

        None at roots: is_causal aligns its triangle at the top left, which is right for a root alone.
        """
        masks = []
        for path in self.paths:
            *before, own = (end - start for start, end in (self.spans[segment] for segment in path))
            first = sum(before)
            sees = torch.ones(own, first + own, dtype=torch.bool, device=self.ids.device) if before else None
            masks.append(sees if sees is None else sees.tril_(first))
        return masks

    @cached_property
    def blocks(self) -> Any:
        """FlexAttention's mask of the whole row."""
        return _blocks(self.paths, self.spans, self.ids.device)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, T, d)
        attention, options = (_compiled(), _options(q)) if q.is_cuda else (flex_attention, None)
        out = attention(q, k, v, block_mask=self.blocks, enable_gqa=True, kernel_options=options)
        return out[0].transpose(0, 1)

    def _loop(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A child copies its ancestors' keys, n x KV x d numbers: small beside its matrix products."""
        lengths = [end - start for start, end in self.spans]
        # Split, not sliced: each slice's gradient would be a whole (T, KV, d) of zeros, to be added up.
        q, k, v = (x.split(lengths) for x in (q, k, v))
        out = []
        for own, path, mask in zip(q, self.paths, self.masks, strict=True):
            keys, values = (torch.cat([x[segment] for segment in path]) for x in (k, v))  # (S, KV, d)
            out.append(_masked(own, keys, values, mask))
        return torch.cat(out)

    def last(self, segment: int) -> int:
        """The place in the row of a segment's last token."""
        return self.spans[segment][1] - 1


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q (L, H, d) against k, v (S, KV, d) under a mask (L, S); without one, causally, and L = S.

    On CUDA by plain matrix products: the fused kernel that takes a mask adds up the gradient of q by atomics,
    in an order that changes from one call to the next.
    """
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, length, d)
    with sdpa_kernel(SDPBackend.MATH) if q.is_cuda else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return out[0].transpose(0, 1)


def _options(q: Tensor) -> dict[str, int]:
    if torch.version.hip:  # has its own tiles, for 64 KB
        return {}
    shared = torch.cuda.get_device_properties(q.device).shared_memory_per_block_optin
    return tiles(shared, q.shape[-1], q.itemsize)


def tiles(shared: int, width: int, size: int) -> dict[str, int]:
    """FlexAttention's `kernel_options` on a GPU where a program may have `shared` bytes of shared memory, for
    heads of `width` channels and numbers of `size` bytes.

    It tries one tile, which is right for an A100 or H100. Cards with 99 KB (sm_86, sm_89, sm_120) stop there
    at 128 channels: forward it needs 112 to 128 KB. These fit by the count of what may lie in shared memory
    together: the tiles that stay (of queries; in the backward pass two) and two more for each stage. What is
    compiled for these cards takes less. The backward pass of float32 has 16 x 16, and fits.
    """
    channels = max(NARROWEST, 1 << (width - 1).bit_length())  # rounded as in the kernels

    def need(rows: int, columns: int, stages: int, stay: int) -> int:
        return (stay * rows + 2 * stages * columns) * channels * size

    if shared >= ROOMY or need(128, 64, 3, stay=1) <= shared:
        return {}
    kernels = [("fwd", 1, "M N"), ("bwd", 2, "M1 N1 M2 N2")]
    options = {}
    for kernel, stay, names in kernels[: 1 if size == 4 else 2]:
        fitting = [(side, stages) for side, stages in SIDES if need(side, side, stages, stay) <= shared]
        side, stages = (fitting or SIDES[-1:])[0]
        options |= {f"{kernel}_BLOCK_{name}": side for name in names.split()}
        options[f"{kernel}_num_stages"] = stages
    return options


@cache
def _compiled() -> Any:
    """FlexAttention as a kernel, compiled once for trees of any shape (and each model and gradient mode).

    Not more often: after the eighth time PyTorch would call it uncompiled, which holds all T x T scores.
    With `fullgraph` that is an error.
    """
    compiled, config = (
        torch.compile(flex_attention, dynamic=True, fullgraph=True),
        torch.fx.experimental._config,
    )

    def attention(*tensors: Tensor, **options: Any) -> Tensor:
        # Else sizes that are equal by chance, 9 segments and 9 heads, are taken to be equal ever after. Set
        # in each call: it is a thread's own, and checkpointed layers are computed again in one of autograd's.
        with config.patch(use_duck_shape=False):
            return compiled(*tensors, **options)

    return attention


def pack(tree: Tree, device: torch.device | str = "cpu", attention: Attention = "auto") -> Packed:
    """Lay a tree out as one row of tokens. Empty segments are refused: they have no place to be read from."""
    assert tree.segments and all(len(segment) for segment in tree.segments), "an empty segment"
    spans = list(pairwise(accumulate(map(len, tree.segments), initial=0)))
    paths = [[*tree.ancestors(segment), segment] for segment in range(len(spans))]
    ids, positions = [], []
    for tokens, path in zip(tree.segments, paths, strict=True):
        first = sum(len(tree.segments[segment]) for segment in path[:-1])
        ids.extend(tokens)
        positions.extend(range(first, first + len(tokens)))
    ids, positions = (torch.tensor(x, device=device) for x in (ids, positions))
    packed = Packed(ids, positions, spans, paths, attention)
    if packed.flexes():
        _ = packed.blocks  # now, while its T x T temporaries lie beside no activations
    return packed


def _blocks(paths: list[list[int]], spans: list[tuple[int, int]], device: torch.device | str) -> Any:
    """Which blocks of BLOCK x BLOCK tokens hold a token that sees another, and the rule for those within."""
    S, T = len(spans), spans[-1][1]
    size = max(S, 2)  # or a lone segment would have a kernel of its own
    above = torch.zeros(size, size, dtype=torch.bool, device=device)  # above[s, a]: a is s or above it
    for segment, path in enumerate(paths):
        above[segment, path] = True
    lengths = torch.tensor([end - start for start, end in spans], device=device)
    owner = torch.arange(S, device=device).repeat_interleave(lengths, output_size=T)  # (T,)

    def sees(batch: Tensor, head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return above[owner[q], owner[kv]] & (kv <= q)  # an ancestor lies before its descendants

    return create_block_mask(sees, None, None, T, T, device=device, BLOCK_SIZE=BLOCK)
