"""The prefix tree: many sequences that share their beginnings, in one forward pass that reads each beginning
once.

A tree of segments is packed into one flat row of tokens, a parent before its children:

    ids        [ prompt ........ | completion 0 ... | completion 1 . | completion 2 ..... ]
    positions  [ 0 1 2 ... n - 1 | n n+1 n+2 ...    | n n+1 ...      | n n+1 ...          ]

A token attends to its own segment's past and to the whole of its segment's ancestors, so that every sequence
gets the numbers that it would get alone. With G completions of c tokens to a prompt of n tokens, the pass
costs n + G c tokens instead of G (n + c).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

Ids = Sequence[int]


@dataclass
class Tree:
    """Segments of token ids with their parents; `add` returns the new segment's number."""

    segments: list[Ids] = field(default_factory=list)
    parents: list[int | None] = field(default_factory=list)

    def add(self, ids: Ids, parent: int | None = None) -> int:
        assert parent is None or 0 <= parent < len(self.segments), "a parent is added before its children"
        self.segments.append(ids)
        self.parents.append(parent)
        return len(self.segments) - 1

    def ancestors(self, segment: int) -> list[int]:
        """The segments before this one on its path, the root first."""
        path = []
        parent = self.parents[segment]
        while parent is not None:
            path.append(parent)
            parent = self.parents[parent]
        return path[::-1]


@dataclass(frozen=True)
class Packed:
    """A tree as one row of T tokens, with the attention that keeps its sequences apart."""

    ids: Tensor  # (T,)
    positions: Tensor  # (T,) the place in its own sequence
    spans: list[tuple[int, int]]  # where each segment lies in the row
    context: list[list[tuple[int, int]]]  # the spans of each segment's ancestors

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over the tree: q (T, H, d), k and v (T, KV, d) -> (T, H, d).

        One call of scaled_dot_product_attention a segment, over its ancestors' keys and its own. Nothing is
        copied for a root; a child copies its ancestors' keys, n x KV x d numbers, which is small beside its
        matrix products.
        """
        out = []
        for (start, end), context in zip(self.spans, self.context, strict=True):
            keys = torch.cat([k[a:b] for a, b in context] + [k[start:end]])  # (S, KV, d)
            values = torch.cat([v[a:b] for a, b in context] + [v[start:end]])
            out.append(_causal(q[start:end], keys, values))
        return torch.cat(out)

    def last(self, segment: int) -> int:
        """The place in the row of a segment's last token."""
        return self.spans[segment][1] - 1


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (L, H, d) against k, v (S, KV, d) with S >= L: the queries are the last L of the S positions."""
    L, S = q.shape[0], k.shape[0]
    # is_causal aligns the mask at the top left, which is right for a root alone; others bring their own mask.
    mask = None if L == S else torch.ones(L, S, dtype=torch.bool, device=q.device).tril(S - L)
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, length, d)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return out[0].transpose(0, 1)


def pack(tree: Tree, device: torch.device | str = "cpu") -> Packed:
    """Lay a tree out as one row of tokens. Empty segments are refused: they have no place to be read from."""
    assert tree.segments and all(len(segment) for segment in tree.segments), "an empty segment"
    spans = list(pairwise(accumulate(map(len, tree.segments), initial=0)))
    ids, positions, context = [], [], []
    for segment, tokens in enumerate(tree.segments):
        above = tree.ancestors(segment)
        first = sum(len(tree.segments[a]) for a in above)
        ids.extend(tokens)
        positions.extend(range(first, first + len(tokens)))
        context.append([spans[a] for a in above])
    return Packed(torch.tensor(ids, device=device), torch.tensor(positions, device=device), spans, context)
