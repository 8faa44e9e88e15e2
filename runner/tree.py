"""Summing the lanes' gradients in a fixed binary tree, over lanes and processes: the same bits for any sharing.

Floating-point addition commutes but does not associate, so the order of the additions must not depend on which
process runs which lane. With `num_lanes = odd x 2^k`, every run of `odd` neighbouring lanes is summed in a row, and
the 2^k sums in a balanced binary tree. A process that runs a block of lanes holds a whole subtree; the rest of the
tree pairs processes, and each pair adds the same two numbers.
"""

import torch
from torch import nn

from runner.errors import ConfigError
from runner.lanes import divisors

Gradients = list[torch.Tensor | None]


class Tree:
    """Adds up the gradients of one step after another; used on every process alike."""

    def __init__(self, model: nn.Module, num_lanes: int, process: int, num_processes: int) -> None:
        check_tree(num_lanes, num_processes)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.row = odd_part(num_lanes)
        self.process = process
        self.num_processes = num_processes
        self.in_row: Gradients | None = None
        self.rows_done = 0
        self.lanes_in_row = 0
        self.stack: list[tuple[int, Gradients]] = []

    def add_lane(self) -> None:
        """Take the gradients that a lane's backward left in the parameters."""
        gradients: Gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        self.in_row = gradients if self.in_row is None else _sum(self.in_row, gradients)
        self.lanes_in_row += 1
        if self.lanes_in_row < self.row:
            return
        level, merged = 0, self.in_row
        self.in_row, self.lanes_in_row = None, 0
        # A binary counter: two subtrees of one height become one of the next, so log2(lanes) sums are held.
        while self.stack and self.stack[-1][0] == level:
            merged = _sum(self.stack.pop()[1], merged)
            level += 1
        self.stack.append((level, merged))

    def clear(self) -> None:
        """Forget what was added of this step."""
        self.in_row, self.lanes_in_row, self.stack = None, 0, []

    def finish(self) -> None:
        """Put the sum over all lanes of all processes into the parameters' gradients."""
        (_, local), self.stack = self.stack.pop(), []
        total = self._over_processes(local) if self.num_processes > 1 else local
        for parameter, gradient in zip(self.parameters, total, strict=True):
            parameter.grad = gradient

    def _over_processes(self, gradients: Gradients) -> Gradients:
        """Recursive doubling: at each height, exchange with the process whose subtree is the neighbour."""
        used = torch.tensor([gradient is not None for gradient in gradients], dtype=torch.float32)
        whole = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.parameters, gradients, strict=True)
        ]
        flat = torch.cat([used.to(whole[0].device), *(gradient.reshape(-1).float() for gradient in whole)])
        distance = 1
        while distance < self.num_processes:
            partner = self.process ^ distance
            received = torch.empty_like(flat)
            exchange = [
                torch.distributed.P2POp(torch.distributed.isend, flat, partner),
                torch.distributed.P2POp(torch.distributed.irecv, received, partner),
            ]
            for request in torch.distributed.batch_isend_irecv(exchange):
                request.wait()
            flat = flat + received
            distance *= 2
        anywhere, *parts = flat.split([len(used), *(parameter.numel() for parameter in self.parameters)])
        return [
            part.reshape(parameter.shape).to(parameter.dtype) if seen else None
            for seen, part, parameter in zip(anywhere.tolist(), parts, self.parameters, strict=True)
        ]


def _sum(left: Gradients, right: Gradients) -> Gradients:
    both = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    if both:
        torch._foreach_add_([a for a, _ in both], [b for _, b in both])
    return [b if a is None else a for a, b in zip(left, right, strict=True)]


def odd_part(number: int) -> int:
    """The largest odd divisor."""
    while number % 2 == 0:
        number //= 2
    return number


def check_tree(num_lanes: int, num_processes: int) -> None:
    """Raises ConfigError where the processes do not fall on subtrees."""
    fitting = [size for size in divisors(num_lanes) if odd_part(size) == 1]
    if num_processes not in fitting:
        raise ConfigError(
            f"--deterministic sums {num_lanes} lanes in a binary tree, which {num_processes} processes do not divide.\n"
            f"Start with one of {', '.join(map(str, fitting))} processes, or leave --deterministic out."
        )
