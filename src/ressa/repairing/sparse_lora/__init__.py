"""SparseLoRA: a low-rank update that lives only where a pruned weight is not zero, as a peft method.

    W_eff = W + (alpha / rank) * (B @ A) * [W != 0]

The zeros of the weight are the mask: there is no mask buffer, and merging cannot fill a zero. `masked_product` has the
arithmetic.

Shapes: O out, I in, R rank.

    >>> config = SparseLoraConfig(rank=8, alpha=16, target_modules=["q_proj", "v_proj"])    # doctest: +SKIP
    >>> model = peft.get_peft_model(pruned, config)                                         # doctest: +SKIP
    >>> repaired = model.merge_and_unload()                                                 # doctest: +SKIP
"""

from ressa.repairing.sparse_lora.experts import SparseLoraExperts
from ressa.repairing.sparse_lora.layer import SparseLoraConfig, SparseLoraLinear
from ressa.repairing.sparse_lora.tuner import SparseLoraModel

__all__ = ["SparseLoraConfig", "SparseLoraExperts", "SparseLoraLinear", "SparseLoraModel"]
