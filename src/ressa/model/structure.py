"""Where a model keeps its vision, connector and language: their repeated blocks and the linears in them.

Nothing is listed per architecture. `roots.py` finds where parts begin; blocks are the outermost lists of modules with
linears in them; a block belongs to the part it stands below. What is left over between the parts is the connector if
its name says so; a block list that stands nowhere is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from ressa.errors import RessaError, unknown
from ressa.model.matrix import AsLinear, Convolution, fused_experts, is_patch_embedding, seen_as_linear
from ressa.model.roots import PartName, Root, Stack, below, find_roots, home
from ressa.packed.linear import PackedLinear

PARTS: tuple[PartName, ...] = ("vision", "connector", "language")  # in the order of the forward pass
BY_DEFAULT: tuple[PartName, ...] = ("vision", "language")  # pruned unless told otherwise
ORDER: tuple[PartName, ...] = ("vision", "audio", "connector", "language")  # sound is told of and never pruned


@dataclass(frozen=True)
class Block:
    """What is pruned in one go, and stands on the device alone. `linears` go by their names in the model.

    `passed`: batches meet here so that the block is read once for all of them, and nothing is gathered or changed.
    """

    name: str
    part: PartName
    module: nn.Module
    linears: dict[str, nn.Linear | AsLinear]
    stack: Stack | None = None
    passed: bool = False


@dataclass(frozen=True)
class Part:
    """`modules` are the highest modules that hold nothing but this part; `parameters` counts each tensor once."""

    name: PartName
    modules: tuple[str, ...]
    blocks: tuple[Block, ...]
    parameters: int


@dataclass(frozen=True)
class Structure:
    """The parts of a model, and for every linear, convolution or embedding that is never pruned the reason (`kept`)."""

    parts: dict[str, Part]
    kept: dict[str, str]

    def blocks(self, names: Iterable[str] = PARTS) -> list[Block]:
        """The blocks of the named parts in the order of the forward pass. Raises RessaError for a part it has not."""
        wanted = set(names)
        for name in wanted - self.parts.keys():
            if name not in PARTS:
                raise unknown("part", name, PARTS)
        return [block for name, part in self.parts.items() if name in wanted for block in part.blocks]


def structure(model: PreTrainedModel, *, patch_embedding: bool = False) -> Structure:
    """Places every block of `model`, with eyes or without (docs/models.md lists what it was tried on).

    With `patch_embedding`, the convolution that cuts pictures into patches is the vision tower's first block.

    Raises:
        RessaError: blocks that cannot be placed with certainty, with the names of what was found.
    """
    roots = find_roots(model)
    lists = list(_block_lists(model))
    if lost := [name for name, _ in lists if home(name, roots) is None]:
        raise RessaError(f"{type(model).__name__}: cannot tell which part these blocks belong to: {', '.join(lost)}")
    lists = [found for found in lists if getattr(home(found[0], roots), "part", None) != "audio"]
    members = [member for _, blocks in lists for member in blocks]
    members += _loose_connectors(model, roots, [name for name, _ in lists])
    once = {id(module): (name, module) for name, module in reversed(members)}  # a shared block goes by its first name
    kept: dict[str, str] = {}
    owners = _owners(model)
    blocks = [_block(name, module, roots, owners, kept) for name, module in reversed(once.values())]
    if not any(block.linears for block in blocks if block.part == "language"):
        raise RessaError(f"{type(model).__name__}: no repeated blocks with linear layers found in its language model")
    if patch_embedding:
        blocks = _patch_embeddings(model, roots, blocks) + blocks
    kept |= _others(model, roots, {name for block in blocks for name in block.linears} | kept.keys())
    return Structure(_parts(model, roots, blocks), kept)


def same_blocks(blocks: Iterable[Block], model: nn.Module) -> list[Block]:
    """The blocks of these names in `model`, without their linears: in another model of the same architecture, or in
    the same one, where modules were replaced.

    Raises:
        RessaError: one is not there.
    """
    found = []
    for block in blocks:
        try:
            found.append(replace(block, module=model.get_submodule(block.name), linears={}))
        except AttributeError:
            raise RessaError(f"the dense model has no {block.name}: name the original of the pruned model") from None
    return found


def _block_lists(model: nn.Module) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """The outermost lists of modules of which each holds at least two linears: (name, its named members).

    Layers of several kinds may take turns (mixtures, cross-attention); a list of lists (stages) is looked into.
    """
    done: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(below(name, other) for other in done):
            continue
        members = list(module.named_children())  # a module that is listed twice comes once
        if _all_blocks(module) and not all(_all_blocks(member) for _, member in members):
            done.append(name)
            yield name, [(f"{name}.{index}", member) for index, member in members]


def _all_blocks(module: nn.Module) -> bool:
    """Whether it is a list whose every member holds at least two linears."""
    members = list(module.children())
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    return listed and bool(members) and all(len(_linears(member)) > 1 for member in members)


def _linears(module: nn.Module) -> list[nn.Module]:
    return [inner for inner in module.modules() if seen_as_linear(inner) or fused_experts(inner)]


def _patch_embeddings(model: PreTrainedModel, roots: list[Root], blocks: list[Block]) -> list[Block]:
    """Each as a block of its own. Raises RessaError if there is none."""
    found = []
    for name, module in model.named_modules():
        root, within = home(name, roots), any(below(name, block.name) for block in blocks)
        if root and root.part == "vision" and not within and is_patch_embedding(module):
            found.append(Block(name, "vision", module, {name: AsLinear(module)}, root.stack))
    if not found:
        raise RessaError(f"{type(model).__name__}: no patch embedding whose patches do not overlap: leave it out")
    return found


def _loose_connectors(model: nn.Module, roots: list[Root], lists: list[str]) -> list[tuple[str, nn.Module]]:
    """Projections: the highest modules named as connectors that hold linears, and neither a root nor a block list."""
    taken, found = list(lists), []
    for name, module in model.named_modules():
        separate = not any(below(name, other) or below(other, name) for other in taken)
        separate = separate and not any(below(root.name, name) for root in roots)
        root = home(name, roots)
        if separate and root and root.part == "connector" and _linears(module):
            taken.append(name)
            found.append((name, module))
    return found


def _owners(model: nn.Module) -> dict[int, dict[int, str]]:
    """For every parameter the modules that own it, with their names: more than one module means that it is tied."""
    owners: dict[int, dict[int, str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), {})[id(module)] = name
    return owners


def _block(
    name: str, module: nn.Module, roots: list[Root], owners: dict[int, dict[int, str]], kept: dict[str, str]
) -> Block:
    """The block with its prunable linears; those that cannot be pruned go to `kept`."""
    root = home(name, roots)
    assert root is not None  # structure() refuses the others
    linears: dict[str, nn.Linear | AsLinear] = {}
    uncalled = {id(inner.out_proj) for inner in module.modules() if isinstance(inner, nn.MultiheadAttention)}
    routers = _routers(module)
    for inner_name, inner in module.named_modules():
        full = f"{name}.{inner_name}" if inner_name else name
        linears |= {f"{full}.{expert}": linear for expert, linear in fused_experts(inner).items()}
        linear = seen_as_linear(inner)
        if linear is None:
            continue
        if aliases := [
            owner for key, owner in owners.get(id(inner._parameters.get("weight")), {}).items() if key != id(inner)
        ]:
            kept[full] = f"tied to {aliases[0]}"
        elif id(inner) in uncalled:
            kept[full] = "inside nn.MultiheadAttention, which reads its weight without calling it"
        elif id(inner) in routers:
            kept[full] = "chooses among experts"
        else:
            linears[full] = linear
    return Block(name, root.part, module, linears, root.stack)


def _routers(block: nn.Module) -> set[int]:
    """The linears that stand beside experts, alone in their module, with an output for each expert."""
    found = set()
    for mixture in block.modules():
        counts = {experts.num_experts for experts in mixture.children() if fused_experts(experts)}
        for child in mixture.children() if counts else ():
            linears = [linear for linear in child.modules() if isinstance(linear, nn.Linear)]
            if len(linears) == 1 and linears[0].out_features in counts:
                found.add(id(linears[0]))
    return found


def _others(model: PreTrainedModel, roots: list[Root], known: set[str]) -> dict[str, str]:
    """Every other linear, convolution and embedding, and why it is not pruned."""
    others, head = {}, model.get_output_embeddings()
    for name, module in model.named_modules():
        if name in known:
            continue
        if module is head:
            others[name] = "output head"
        elif isinstance(module, nn.Embedding):
            others[name] = "embedding"
        elif isinstance(module, Convolution):
            root = home(name, roots)
            prunable = root and root.part == "vision" and is_patch_embedding(module)
            others[name] = "patch embedding: only if asked" if prunable else "convolution"
        elif seen_as_linear(module):
            others[name] = _why_kept(home(name, roots))
    return others


def _why_kept(root: Root | None) -> str:
    if root and root.part == "audio":
        return "hears sound: only vision, connector and language are pruned"
    return f"outside the repeated blocks of {root.part}" if root else "outside vision and language"


def _parts(model: nn.Module, roots: list[Root], blocks: list[Block]) -> dict[str, Part]:
    """The parts that the model has. What is below no root and no connector (embeddings, heads) is language."""
    part_of: dict[str, PartName] = {}
    sizes: dict[PartName, int] = {}
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    packed = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    counts |= {f"{name}.weight": module.out_features * module.in_features for name, module in packed.items()}
    for name, count in counts.items():
        root = home(name, roots)
        part_of[name] = root.part if root else "language"
        sizes[part_of[name]] = sizes.get(part_of[name], 0) + count
    tops = {part: _tops(part, part_of) for part in sizes}
    # whichever was registered first, the encoder runs before the decoder
    order = sorted(blocks, key=lambda block: block.stack == "decoder")
    own = {part: tuple(block for block in order if block.part == part) for part in ORDER}
    return {part: Part(part, tops[part], own[part], sizes[part]) for part in ORDER if part in sizes}


def _tops(part: PartName, part_of: dict[str, PartName]) -> tuple[str, ...]:
    """The shortest name prefixes under which every parameter is of this part."""
    mixed = {prefix for name, other in part_of.items() if other != part for prefix in _prefixes(name)}
    tops: dict[str, None] = {}  # ordered, without repeats
    for name in (name for name, other in part_of.items() if other == part):
        tops[next(prefix for prefix in _prefixes(name) if prefix not in mixed)] = None
    return tuple(tops)


def _prefixes(name: str) -> list[str]:
    """From the top down: a.b.c gives a, a.b and a.b.c."""
    pieces = name.split(".")
    return [".".join(pieces[: end + 1]) for end in range(len(pieces))]
