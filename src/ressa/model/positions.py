"""How many words a model embeds, and for how many tokens it learned a place (OPT, GPT-2, BART, BERT ...).

Rotary and relative positions go on beyond what a config calls the longest; a table that is left ends in an IndexError.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ressa.families import POSITIONS, QFORMER
from ressa.model.roots import find_roots, home


def longest(model: PreTrainedModel) -> dict[str, int]:
    """How many tokens each reader of `model` has a learned place for; one without such a table is not in it.

    OPT and BART leave the first rows of their table (`offset`) unused, RoBERTa those up to its padding.
    """
    roots, found = find_roots(model), dict[str, int]()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or name.rpartition(".")[2] not in POSITIONS:
            continue
        root = home(name, roots)
        reader: str | None = None
        if root and root.part == "language":
            reader = root.stack
        elif root and root.part == "connector" and QFORMER in name:
            reader = "qformer"
        if reader:
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            places = module.num_embeddings - getattr(module, "offset", unused)
            found[reader] = min(places, found.get(reader, places))
    return found


def embedded(model: PreTrainedModel) -> int | None:
    """How many words a model embeds; None where it does not tell, or embeds pictures first."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return len(embedding.weight) if isinstance(embedding, nn.Embedding) else None
