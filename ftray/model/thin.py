"""Have the compiler join thin products that share a factor, such as those of adapters.

Layers with the same input (queries, keys and values; gate and up) each multiply it with an A of
`rank` rows. A GPU takes about as long for one of them as for all: it reads the input for each, and
most of it has nothing to do. So it is with the gradients of these A, and with what adapters add to
their input's gradient: the sum of all Lᵢ·Aᵢ is one product, and one term of a sum, not several.
With dropout each layer has an input of its own, and nothing is joined.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

_ATEN = torch.ops.aten
_MM, _ADD, _PERMUTE = _ATEN.mm.default, _ATEN.add.Tensor, _ATEN.permute.default
_CONTIGUOUS = _ATEN.clone.default
_VIEWS = (_ATEN.reshape.default, _ATEN.view.default)
_THIN = 16  # times narrower than what it multiplies: what is not is worth a product of its own


class Joining(CustomGraphPass):
    """What the compiler has to do with a graph before it makes kernels of it."""

    def __call__(self, graph: fx.Graph) -> None:
        """Join what can be."""
        join(graph)

    def uuid(self) -> Any:
        """What the compiler's cache knows this by: its source."""
        return get_hash_for_files((__file__,))


# for `Module.compile`; always the same, else layers of one kind are compiled anew
JOINED: dict[str, Any] = {"post_grad_custom_pre_pass": Joining()}


def join(graph: fx.Graph) -> None:
    """Join thin products in a graph of ATen operations, in place.

    x·B₁, x·B₂, … are columns of x·[B₁ B₂ …]; L₁·x, L₂·x, … are rows of [L₁; L₂; …]·x; and
    L₁·A₁ + L₂·A₂ + … is [L₁ L₂ …]·[A₁; A₂; …], rounded once.
    """
    joiner = _Joiner(graph)
    joiner.join_sums()
    graph.eliminate_dead_code()
    joiner.join_sharing(0)
    joiner.join_sharing(1)
    _sort(graph)
    graph.eliminate_dead_code()


class _Joiner:
    """Puts joined products somewhere in a graph, which is sorted afterwards."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._concatenations: dict[tuple[int, tuple[fx.Node, ...]], fx.Node] = {}

    def join_sharing(self, shared: int) -> None:
        """Join products with the same factor, the left one (`shared` = 0) or the right one (1)."""
        own, groups = 1 - shared, defaultdict(list)
        for product in self._products():
            factors = _nodes(product)
            if _is_thin(_value(factors[own]).shape[own], factors[shared]):
                groups[factors[shared]].append(product)
        for products in groups.values():
            if len(products) > 1 and not _need_one_another(products):
                self._join_factors(products, own)

    def _join_factors(self, products: Sequence[fx.Node], own: int) -> None:
        with self._graph.inserting_before(products[0]):
            factors = _nodes(products[0])
            factors[own] = self._concatenated([_nodes(product)[own] for product in products], own)
            joined, start = self._call(_MM, *factors), 0
            for product in products:
                end = start + _value(product).shape[own]
                part = self._call(_ATEN.slice.Tensor, joined, own, start, end)
                if any(user.op == "output" for user in product.users):  # whose strides are known
                    part = self._call(_CONTIGUOUS, part)
                product.replace_all_uses_with(part)
                start = end

    def join_sums(self) -> None:
        """Join products that are terms of one sum, and nothing else."""
        sums = defaultdict(list)
        for product in self._products():
            left, right = _nodes(product)
            total = _sum_with(_as_used(product))
            if total is not None and _is_thin(_value(left).shape[1], right):
                sums[_outermost(total), _value(product).shape].append(product)
        for (total, _), products in sums.items():
            if len(products) > 1:
                self._join_terms(total, products)

    def _join_terms(self, total: fx.Node, products: Sequence[fx.Node]) -> None:
        with self._graph.inserting_before(total.next):
            lefts, rights = zip(*map(_nodes, products), strict=True)
            joined = self._call(_MM, self._concatenated(lefts, 1), self._concatenated(rights, 0))
            term = self._call(_ATEN.reshape.default, joined, list(_value(total).shape))
            new = self._call(_ADD, total, term)
        total.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        for product in products:
            _take_out(_as_used(product))

    def _products(self) -> list[fx.Node]:
        found = self._graph.find_nodes(op="call_function", target=_MM)
        return [one for one in found if all(map(_is_tensor, _nodes(one)))]

    def _concatenated(self, nodes: Sequence[fx.Node], dim: int) -> fx.Node:
        """Concatenate matrices; transposed ones as what they are made of."""
        if all(node.target == _PERMUTE and node.args[1] == [1, 0] for node in nodes):
            plain = self._concatenated([_nodes(node)[0] for node in nodes], 1 - dim)
            return self._call(_PERMUTE, plain, [1, 0])
        key = (dim, tuple(nodes))
        if key not in self._concatenations:
            self._concatenations[key] = self._call(_ATEN.cat.default, list(nodes), dim)
        return self._concatenations[key]

    def _call(self, target: Any, *args: Any) -> fx.Node:
        node = self._graph.call_function(target, args)
        node.meta["val"] = target(*cast("Any", fx.node.map_arg(args, _value)))
        return node


def _nodes(node: fx.Node) -> list[fx.Node]:
    return [one for one in node.args if isinstance(one, fx.Node)]


def _value(node: fx.Node) -> Tensor:
    """What stands for a node's result: its shape and type, without memory."""
    return cast("Tensor", node.meta["val"])


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_thin(narrow: Any, other: fx.Node) -> bool:
    """Whether a size, where it is known, is small beside the width of a matrix."""
    wide: Any = _value(other).shape[1]
    return isinstance(narrow, int) and isinstance(wide, int) and narrow * _THIN <= wide


def _as_used(product: fx.Node) -> fx.Node:
    """The product in the shape in which it is used."""
    node = product
    while len(node.users) == 1 and next(iter(node.users)).target in _VIEWS:
        node = next(iter(node.users))
    return node


def _sum_with(term: fx.Node) -> fx.Node | None:
    """The sum that is all that uses a term, and uses it once."""
    users = list(term.users)
    is_one = len(users) == 1 and _is_sum(users[0]) and _nodes(users[0]).count(term) == 1
    return users[0] if is_one else None


def _outermost(total: fx.Node) -> fx.Node:
    """The sum that a sum is a part of, and of nothing else."""
    while (larger := _sum_with(total)) is not None:
        total = larger
    return total


def _is_sum(node: fx.Node) -> bool:
    """Whether it adds two tensors of one type and one known shape."""
    terms = _nodes(node)
    if node.target != _ADD or node.kwargs or len(terms) < 2 or not all(map(_is_tensor, terms)):
        return False  # such as a tensor and a number
    values = [_value(one) for one in (node, *terms)]
    if not all(isinstance(size, int) for value in values for size in value.shape):
        return False
    return len({(value.dtype, value.shape) for value in values}) == 1


def _take_out(term: fx.Node) -> None:
    """Leave a term out of the sum that uses it."""
    (total,) = term.users
    left, right = _nodes(total)
    total.replace_all_uses_with(right if left is term else left)
    total.graph.erase_node(total)


def _need_one_another(nodes: Sequence[fx.Node]) -> bool:
    """Whether one of them is computed from another."""
    seen: set[fx.Node] = set()
    waiting = [one for node in nodes for one in node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node in nodes:
            return True
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return False


def _sort(graph: fx.Graph) -> None:
    """Put each node behind what it is computed from, and otherwise leave the order as it is."""
    order: dict[fx.Node, None] = {}
    waiting: list[fx.Node] = []
    for node in graph.nodes:
        waiting.append(node)
        while ready := [one for one in waiting if order.keys() >= set(one.all_input_nodes)]:
            order |= dict.fromkeys(ready)
            waiting = [one for one in waiting if one not in order]
    for before, after in pairwise(order):
        before.append(after)
