"""A second device that torch has everywhere: tensors that say `second:0`, hold their numbers on the CPU, and refuse to
be mixed with tensors that are not there, as a GPU's would. For a process of its own: torch keeps the name."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = torch.device("cpu")
moved: list[int] = []  # elements of each tensor that came from elsewhere


class Second(torch.Tensor):
    """A tensor on the second device around one on the CPU."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Second:
        self = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        self.held = inner
        return self

    def tolist(self) -> Any:
        return self.held.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, shape = tree_flatten((args, kwargs or {}))
        crossing = func._schema.name in ("aten::copy_", "aten::_to_copy", "aten::_copy_from")
        strangers = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, cls) and x.dim()]
        if strangers and not crossing:
            raise RuntimeError(
                f"{func}: expected all tensors on {DEVICE}, got one of {tuple(strangers[0].shape)} on cpu"
            )
        moved.extend(x.numel() for x in strangers)
        owners = {id(x.held): x for x in leaves if isinstance(x, cls)}
        stays = (kwargs or {}).get("device", DEVICE)
        inner = [x.held if isinstance(x, cls) else torch.device("cpu") if x == DEVICE else x for x in leaves]
        inner_args, inner_kwargs = tree_unflatten(inner, shape)
        out = func(*inner_args, **inner_kwargs)
        if torch.device(stays).type == "cpu":
            return out
        # what an operation in place gives back is its own argument
        return tree_map(lambda x: owners.get(id(x), cls(x)) if isinstance(x, torch.Tensor) else x, out)


def register() -> torch.device:
    """The device, known to torch from now on."""
    global DEVICE
    _setup_privateuseone_for_python_backend("second")
    DEVICE = torch.device("second", 0)
    aten = torch.library.Library("aten", "IMPL")

    def empty(size: Any, *, dtype: Any = None, **more: Any) -> torch.Tensor:
        return Second(torch.empty(size, dtype=dtype))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **more: Any) -> torch.Tensor:
        return Second(torch.empty_strided(size, stride, dtype=dtype))

    aten.impl("empty.memory_format", empty, "PrivateUse1")
    aten.impl("empty_strided", empty_strided, "PrivateUse1")
    register.library = aten  # type: ignore[attr-defined]  # it lives as long as it is held
    return DEVICE


def main(folder: str, data: str, out: str) -> None:
    """Prunes a model on the CPU and on the second device; complains where they are not the same."""
    from pathlib import Path

    import ressa
    from ressa import machine
    from ressa.model.load import load, load_to_ask

    register()
    asked: dict[str, dict[str, Any]] = {
        "wanda": {"method": "wanda", "sparsity": "2:4"},
        "admm": {"method": "admm", "sparsity": "2:4", "order": "layer"},
        "owl": {"method": "sparsegpt", "sparsity": "50%", "allocation": "owl", "asymmetric": 0.5},
        "dense": {"method": "dsnot", "sparsity": "2:4", "propagate": "dense", "keep_dense": 1},
    }
    for device, there in (
        ("cpu", machine.Found({}, frozenset())),
        ("second", machine.Found({"second": 1}, frozenset())),
    ):
        machine.found = lambda there=there: there  # type: ignore[assignment]
        for name, settings in asked.items():
            told = ressa.prune(folder, Path(out, device, name), data=data, samples=6, batch_size=3, **settings)
            assert told["machine"]["device"] == device
        assert bool(moved) == (device == "second")
        assert load_to_ask(folder)[0].device.type == device
    for name in asked:
        here, elsewhere = (load(Path(out, device, name))[0].state_dict() for device in ("cpu", "second"))
        for key, weight in here.items():
            assert torch.equal(weight == 0, elsewhere[key] == 0), (name, key)
            assert torch.allclose(weight, elsewhere[key], atol=1e-4), (name, key, (weight - elsewhere[key]).abs().max())
