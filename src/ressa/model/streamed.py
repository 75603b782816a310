"""A model whose blocks stay in their files: each is read when it is run or pruned, and dropped.

Everything else (embeddings, norms, biases, routers, the connector's and the head's) is in memory. So a model takes what
is outside its blocks and one block, however deep it is. A block's parameters are on the device "meta" while it is not
there, which makes a use that nobody foresaw an error and not a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ressa.errors import RessaError, one_line
from ressa.model.described import check_generation, described
from ressa.model.load import auto_class, load, read_config, resolve
from ressa.model.matrix import AsLinear
from ressa.model.pickles import check_pickle
from ressa.model.pieces import Place, owners_of, pieces_of, places_in
from ressa.model.processor import load_processor
from ressa.model.quantised import plain_dtype
from ressa.model.resident import InMemory
from ressa.model.sound import check_loaded, check_numbers, check_stored
from ressa.model.spill import spill
from ressa.model.stored import Converted, Stored, files_of, state_of
from ressa.model.structure import Block, structure

GENERATION: dict[str, Any] = {  # how `from_pretrained` has generation_config.json read, if nothing is asked for
    **dict.fromkeys(("generation_config", "from_pipeline", "cache_dir", "proxies", "token", "revision")),
    **dict.fromkeys(("from_auto_class", "force_download", "local_files_only", "trust_remote_code"), False),
    "subfolder": "",
}


def load_streamed(
    name: str | Path, mine: slice = slice(None), *, runs: bool = True
) -> tuple[PreTrainedModel, Any, Streamed]:
    """(model in eval mode, processor, its blocks) of a folder, a hub name or an embedded model; as `load`.

    Quantised weights that are made plain are loaded whole, for their scales belong to no block.

    Args:
        mine: the blocks that this process looks at; others look at the rest.
        runs: what is outside of its blocks is in memory; else nothing is, where the files allow it (`model.pieces`).

    Raises:
        RessaError: as `load`; every weight is looked at once, so that nothing is found out late.
    """
    source = resolve(name)
    check_pickle(source)
    config = read_config(name)
    if getattr(config, "quantization_config", None) is not None:
        net, processor = load(name)
        return net, processor, Streamed(net)
    plain_dtype(name, config, "auto")  # refuses what is quantised otherwise
    auto = auto_class(config, name)
    processor = load_processor(name, source, text_only=auto is AutoModelForCausalLM)
    net = read_outside(name, config, auto, runs)
    streamed = Streamed(net, Stored(name, files_of(name, source)), runs)
    for block in (streamed.pieces or structure(net).blocks())[mine]:
        with streamed.present(block):
            check_numbers(name, ((place.name, place.parameter) for place in streamed.places.get(block.name, ())))
    return net, processor, streamed


def read_outside(name: str | Path, config: Any, auto: Any, runs: bool = True) -> PreTrainedModel:
    """The model as `from_pretrained` makes it, with its blocks' matrices (or all) on "meta"; in eval mode.

    Raises:
        RessaError: as `load`, but for what the values of the blocks' matrices are.
    """
    source = resolve(name)
    check_generation(name, source)
    skeleton = described(name, config, auto)
    check_stored(name, source, sum(parameter.numel() for parameter in skeleton.parameters()), False)
    stored = Stored(name, files_of(name, source))
    left = [place.name for places in places_of(skeleton, runs).values() for place in places]
    state = state_of(stored, Converted(skeleton, stored).sources(left))
    told = {"dtype": "auto", "output_loading_info": True, "ignore_mismatched_sizes": True}  # refused by name below
    kind: Any = type(skeleton)
    try:
        net, info = kind.from_pretrained(None, config=config, state_dict=state, **told)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise RessaError(f"{name}: its weights cannot be loaded from safetensors: {one_line(error)}") from None
    net.config.name_or_path = source
    if net.can_generate():
        net.adjust_generation_fn(pretrained_model_name_or_path=source, **GENERATION)
    check_loaded(name, net, info)
    return net.eval()


def places_of(net: PreTrainedModel, runs: bool = True) -> dict[str, list[Place]]:
    """The parameters that leave memory, by block: matrices of linears that belong to one module alone.

    Of a model that `runs`, the first parameter of a sub-model stays, for that is where transformers looks up its
    device. Of another one everything leaves that has a piece of its own.
    """
    if not runs and (pieces := pieces_of(net)):
        whole = {block.name: matrices(block) for block in structure(net).blocks()}
        return whole | {piece.name: places_in(piece) for piece in pieces}
    owners = owners_of(net)
    models = (module for module in net.modules() if isinstance(module, PreTrainedModel))
    first = {id(next(model.parameters(), None)) for model in models}
    found = {}
    for block in structure(net).blocks():
        places = [place for place in matrices(block) if owners[id(place.parameter)] == 1]
        found[block.name] = [place for place in places if id(place.parameter) not in first]
    return {name: places for name, places in found.items() if places}


def matrices(block: Block) -> list[Place]:
    """The parameters that hold the matrices of the block's linears; experts share one."""
    names = {id(module): name for name, module in block.module.named_modules(prefix=block.name)}
    found: dict[str, Place] = {}
    for linear in block.linears.values():
        module, attribute = (linear.module, linear.tensor) if isinstance(linear, AsLinear) else (linear, "weight")
        name = f"{names[id(module)]}.{attribute}"
        found[name] = Place(name, module, attribute)
    return list(found.values())


class Streamed:
    """The blocks of `net`, read from `stored` (None: they are all in memory, and stay there).

    A block that was written (`kept`) is read from there from then on. A model that never `runs` is read in `pieces`.
    """

    def __init__(self, net: PreTrainedModel, stored: Stored | None = None, runs: bool = True) -> None:
        self.net, self.stored = net, stored
        self.places = places_of(net, runs) if stored else {}
        self.pieces = pieces_of(net) if stored and not runs else []
        self.empty = {name: [place.parameter for place in places] for name, places in self.places.items()}
        self._input = Converted(net, stored) if stored else None
        self._output: Converted | None = None
        self._kept: set[str] = set()
        self._dense: set[str] = set()
        self._there: set[str] = set()
        self._standing_in, self._resident = False, InMemory()
        self.spill_to: Path | None = None  # where activations wait; None: in memory
        self.when_read: Callable[[str], None] | None = None  # called with the name of a block that was just read
        self._blocks = [block for block in structure(net).blocks() if block.name in self.places and not self.pieces]
        self._wrap()

    def write_to(self, stored: Stored) -> None:
        """Blocks that are `kept` are read from here."""
        self._output = Converted(self.net, stored)

    def kept(self, block: Block) -> None:
        """The block now stands in the output."""
        self._kept.add(block.name)

    @contextmanager
    def present(self, block: Block, *, dense: bool = False) -> Iterator[None]:
        """The block's weights are in memory: as they were written, if they were, else (or if `dense`) as read."""
        if block.name in self._there or block.name not in self.places:
            yield
            return
        self._there.add(block.name)
        try:
            self._read(block.name, dense or block.name in self._dense)
            yield
        finally:
            for place, empty in zip(self.places[block.name], self.empty[block.name], strict=True):
                place.put(empty)
            self._there.discard(block.name)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All blocks are in memory."""
        with ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(self.present(block))
            yield

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Zeros of the right shape stand in for the weights of blocks: nothing is read, and no number is right."""
        self._standing_in = True
        try:
            yield
        finally:
            self._standing_in = False

    def put_back(self, block: Block) -> None:
        """The weights that were written, in the place of those in memory; one that is read anew each time has them."""
        if block.name not in self.places and self._output is not None:
            with _staying(block):
                self._output.read(self._output.sources(place.name for place in matrices(block)))

    def settle(self, tree: Any) -> None:
        """Tensors that wait go to the disk, if they are to. Raises RessaError if it has no room."""
        try:
            if self.spill_to:
                spill(tree, self.spill_to)
        except OSError as error:
            raise RessaError(f"{self.spill_to}: activations cannot be kept there ({error.strerror})") from None

    def remember(self, block: Block) -> None:
        """The block's dense weights can be had again, for `go_dense`."""
        if block.name not in self.places:
            self._resident.remember(block)

    def go_dense(self, block: Block) -> None:
        """Until `go_changed`, the block, which is in memory, is as it was read."""
        if block.name not in self.places:
            return self._resident.go_dense(block)
        self._dense.add(block.name)
        with _staying(block):
            self._read(block.name, True)

    def go_changed(self, block: Block) -> None:
        if block.name not in self.places:
            return self._resident.go_changed(block)
        self._dense.discard(block.name)

    def copy(self, blocks: Sequence[Block]) -> tuple[Streamed, Sequence[Block]]:
        """The same model once more, of which nothing is written, and these blocks in it."""
        self._unwrap()
        try:
            net, copied = deepcopy((self.net, blocks))
        finally:
            self._wrap()
        return Streamed(net, self.stored), copied

    def _read(self, name: str, dense: bool) -> None:
        places = self.places[name]
        if self._standing_in:
            for place, empty in zip(places, self.empty[name], strict=True):
                place.put(nn.Parameter(_stand_in(empty), requires_grad=False))
            return
        source = self._output if self._output and name in self._kept and not dense else self._input
        assert source is not None
        source.read(source.sources(place.name for place in places))
        for place in places:
            if place.parameter.is_meta:
                raise RessaError(f"{source.stored.name}: {place.name} is not stored with its block")
        if self.when_read and not dense:
            self.when_read(name)

    def _wrap(self) -> None:
        """Blocks are read when they run, whoever runs them."""
        for block in self._blocks:
            block.module.forward = partial(self._run, block, block.module.forward)

    def _unwrap(self) -> None:
        for block in self._blocks:
            del block.module.forward

    def _run(self, block: Block, forward: Any, *args: Any, **kwargs: Any) -> Any:
        with self.present(block):
            return forward(*args, **kwargs)


@contextmanager
def _staying(block: Block) -> Iterator[None]:
    """What is read meanwhile goes to where the block is."""
    device = next(block.module.parameters()).device
    yield
    block.module.to(device)


def _stand_in(empty: Tensor) -> Tensor:
    """Zeros; of a matrix one number, of the experts of a mixture all: their products take no strides of 0."""
    shape = empty.shape if empty.ndim > 2 else ()
    return torch.zeros(shape, dtype=empty.dtype).expand(empty.shape)
