"""What the experts of a mixture read: each the tokens that are sent to it.

Fused experts are one parameter and no modules, so nothing of them is called. While a block runs, the arguments of its
experts' module are caught; then the module's own forward runs again on the tokens that count, watched: a product with
a slice of the parameter is that expert reading its input. transformers' faster forwards (grouped and batched products)
sort the tokens first, so the plain one behind them is used; the routing is the block's own.

Shapes: T tokens, I inputs, H width, E experts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ressa.calibration.tokens import TokenWeights
from ressa.model.matrix import AsLinear, is_expert
from ressa.model.structure import Block

PRODUCTS: list[Any] = [nn.functional.linear, torch.matmul, torch.mm, torch.bmm]
PRODUCTS += [Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm]


class Experts:
    """Catches what each expert of a block (or of `only` these) reads. False where the block has no experts."""

    def __init__(self, block: Block, only: Collection[str] | None = None) -> None:
        self.block = block
        self._reads: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._names: dict[nn.Module, dict[tuple[str, int], str]] = {}
        for name, linear in block.linears.items():
            if isinstance(linear, AsLinear) and is_expert(linear) and (only is None or name in only):
                assert linear.expert is not None
                self._names.setdefault(linear.module, {})[linear.tensor, linear.expert] = name

    def __bool__(self) -> bool:
        return bool(self._names)

    @contextmanager
    def captured(self, tokens: TokenWeights) -> Iterator[None]:
        """While the block runs within, what its experts read is kept; `tokens` are the weights of its batch."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with torch.no_grad():
                self._replay(module, (*args, *kwargs.values()), tokens)

        with ExitStack() as stack:
            for module in self._names:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def taken(self) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
        """[((expert,), [(tokens sent to it (T, I), their weights)])] since it was last asked; of those that got any."""
        reads, self._reads = self._reads, {}
        return [((name,), list(read)) for name, read in reads.items()]

    def _replay(self, module: nn.Module, args: tuple[Any, ...], tokens: TokenWeights) -> None:
        """Runs the experts on the tokens of each weight in turn, so that what they read need not be traced back."""
        names, x = self._names[module], args[0].reshape(-1, args[0].shape[-1])
        routed = sum(isinstance(arg, Tensor) for arg in args) > 1
        copies = 1 if routed else int(module.num_experts)  # type: ignore[arg-type]  # Llama 4: all tokens for each expert
        name, one = next(iter(names.values())), x[: len(x) // copies]
        counts_T = tokens.of(self.block, name, one, crossed=False)
        counts_T = torch.ones(len(one)) if counts_T is None else counts_T.float().cpu()
        forward = getattr(type(module).forward, "__wrapped__", type(module).forward)
        for count in counts_T[counts_T != 0].unique():
            rows = (counts_T == count).repeat(copies).to(x.device)
            chosen = [arg.reshape(len(x), -1)[rows] if isinstance(arg, Tensor) else arg for arg in args]
            with _Watch(module, self.block.linears, names) as watch:
                forward(module, *chosen)
            for name, x_TI in watch.reads:
                self._add(name, x_TI, count)

    def _add(self, name: str, x_TI: Tensor, count: Tensor) -> None:
        x_TI = x_TI[x_TI.any(dim=-1)]  # where every expert gets all tokens, those that were not sent to it are zero
        if len(x_TI):
            self._reads.setdefault(name, []).append((x_TI, count.expand(len(x_TI))))


class _Watch(TorchFunctionMode):
    """Notes what is multiplied with a slice of the experts' parameters: `reads`, (name, (T, I))."""

    def __init__(self, module: nn.Module, linears: Any, names: dict[tuple[str, int], str]) -> None:
        super().__init__()
        self.names, self.reads = names, list[tuple[str, Tensor]]()
        self.fused = {module.get_parameter(n).untyped_storage().data_ptr(): n for n in {name for name, _ in names}}
        self.module = module

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor):
            self._note(args[0].detach(), args[1])
        return func(*args, **(kwargs or {}))

    def _note(self, x: Tensor, weight: Tensor) -> None:
        tensor = self.fused.get(weight.untyped_storage().data_ptr())
        if tensor is None:
            return
        whole = self.module.get_parameter(tensor)
        first = (weight.storage_offset() - whole.storage_offset()) // whole[0].numel()
        for expert, x_TI in enumerate(x if weight.ndim == 3 else [x.reshape(-1, x.shape[-1])], first):
            name, last = self.names.get((tensor, expert)), self.reads[-1] if self.reads else None
            if name and not (last and last[0] == name and last[1].data_ptr() == x_TI.data_ptr()):  # gate, then up
                self.reads.append((name, x_TI))
