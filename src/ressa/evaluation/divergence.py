"""Next-token distributions on the reference answers of held-out records: how sure the model is of them (perplexity),
and how far it is from the dense model (KL). The models need not be in memory at one time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from ressa import parallel
from ressa.answering.generate import eval_mode
from ressa.calibration.logits import decoder_token_ids, forced, logits_at
from ressa.data.prompts import IGNORED, encode, shortest_first, to_device
from ressa.data.records import Record
from ressa.errors import RessaError
from ressa.files.folders import nearest
from ressa.settings import Progress

Sums = tuple[float, float, float, int]  # of a record: KL, own and dense negative log-likelihood, tokens


@contextmanager
def kept_beside(out: Path | None) -> Iterator[Path]:
    """A folder in which `own_sums` keeps what `compared` reads, beside `out` or where the system has such."""
    with TemporaryDirectory(prefix=".likelihoods-", dir=out and nearest(out)) as folder:
        yield Path(folder)


def own_sums(
    model: torch.nn.Module,
    processor: Any,
    records: Sequence[Record],
    batch_size: int,
    progress: Progress | None,
    folder: Path | None,
) -> list[Sums]:
    """For each record the sum of the model's negative log-likelihood over the tokens of its reference answer (end token
    included), and their number; float32.

    Args:
        folder: where log-probabilities of all words at these tokens are kept, 4 bytes each, for `compared`.

    Raises:
        RessaError: the disk has no room for them.
    """

    def told(number: int, batch: dict[str, torch.Tensor]) -> list[Sums]:
        with eval_mode(model):
            logp_NV, labels_N, counts = answer_log_probs(model, batch)
        if folder is not None:
            _keep(logp_NV, folder / f"{number}.npy")
        nll_N = -logp_NV.gather(1, labels_N[:, None]).squeeze(1)
        return [(0.0, float(nll.sum()), 0.0, len(nll)) for nll in nll_N.split(counts)]

    return _over(getattr(model, "config", None), processor, records, batch_size, progress, told)


def compared(
    dense: torch.nn.Module,
    config: Any,
    processor: Any,
    records: Sequence[Record],
    batch_size: int,
    progress: Progress | None,
    folder: Path,
) -> list[Sums]:
    """For each record, over the tokens of its reference answer: the sums of KL(dense || model), of the model's and of
    the dense model's negative log-likelihood, in nats, and their number.

    Both models, which share a vocabulary, read the same teacher-forced batches, one model after the other.

    Args:
        config: the model's own, by which batches were made.
        folder: what `own_sums` kept of the model, for the same records and batches.
    """

    def told(number: int, batch: dict[str, torch.Tensor]) -> list[Sums]:
        with eval_mode(dense):
            reference_NV, labels_N, counts = answer_log_probs(dense, batch)
        logp_NV = torch.from_numpy(np.load(folder / f"{number}.npy")).to(reference_NV.device)
        nll_N, theirs_N = (-one_NV.gather(1, labels_N[:, None]).squeeze(1) for one_NV in (logp_NV, reference_NV))
        kl_N = F.kl_div(logp_NV, reference_NV, reduction="none", log_target=True).sum(-1)
        parts = zip(*(x_N.split(counts) for x_N in (kl_N, nll_N, theirs_N)), strict=True)
        return [(float(kl.sum()), float(nll.sum()), float(theirs.sum()), len(kl)) for kl, nll, theirs in parts]

    return _over(config, processor, records, batch_size, progress, told)


def _over(
    config: Any,
    processor: Any,
    records: Sequence[Record],
    batch_size: int,
    progress: Progress | None,
    told: Callable[[int, dict[str, torch.Tensor]], list[Sums]],
) -> list[Sums]:
    """What is `told` of each record, batch by batch; several processes share the batches and all get all."""
    order = shortest_first(processor, records, answers=True)
    batches = parallel.shard([order[i : i + batch_size] for i in range(0, len(order), batch_size)])
    found: dict[str, Sums] = {}
    for number, chunk in enumerate(batches):
        if progress:
            progress(min(len(found) * parallel.world_size(), len(order)), len(order), "comparing")
        batch = encode(processor, [records[i] for i in chunk], config, answers=True)
        found |= zip(map(str, chunk), told(number, batch), strict=True)
    found = parallel.all_gather(found)
    if progress:
        progress(len(order), len(order), "comparing")
    return [found[str(i)] for i in range(len(records))]


def _keep(logp_NV: torch.Tensor, file: Path) -> None:
    try:
        np.save(file, logp_NV.cpu().numpy())
    except OSError as error:
        raise RessaError(
            f"{file.parent}: what the model says of the answers cannot be kept there ({error.strerror}); name an out "
            "folder on a disk with more room, or ask fewer questions (limit)"
        ) from None


def answer_log_probs(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Log-probabilities (N, V) at the N positions that predict an answer token, those tokens (N), and their number for
    each row of the batch."""
    inputs, targets_BT = forced(to_device(batch, model), decoder_token_ids(model.config))
    mask_BT = targets_BT != IGNORED
    logits_NV = logits_at(model, inputs, mask_BT)
    return logits_NV.float().log_softmax(-1), targets_BT[mask_BT], mask_BT.sum(1).tolist()
