"""What VLMs of 7 B to 70 B need, by the arithmetic of `ressa inspect --plan`: `python benchmarks/scale_table.py`.

Writes the table of docs/scale.md anew. No weight is made and nothing is measured: the configs are the published ones or
put together from the published language models, behind the vision tower of LLaVA-1.5.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ressa.inspection.plan import plan
from ressa.inspection.settings import Plan

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
LLAVA = json.loads((ROOT / "tests" / "configs" / "llava-1.5-7b-hf.json").read_text(encoding="utf-8"))
TEXT: dict[str, dict[str, Any]] = {  # sizes of the language model: those of Vicuna-7B and 13B, Yi-34B, Llama-2-70B
    "7B": {},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "34B": {"hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56}
    | {"num_key_value_heads": 8, "vocab_size": 64064},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8},
}
SPEED = {"H100": 400e12, "16 cores": 1.0e12}  # operations a second in matrix products, assumed: the page says why
STEPS = {"prune: magnitude": "prune, magnitude", "prune: wanda": "prune, wanda", "prune: sparsegpt": "prune, sparsegpt"}
STEPS |= {"prune: admm": "prune, admm", "load": "evaluate, compare (the weights)", "repair": "repair"}


def rows(work: Path) -> list[str]:
    table = ["| model | verb | memory GB | on the device GB | TFLOP | hours, H100 | hours, 16 cores |"]
    table.append("|---|---|---:|---:|---:|---:|---:|")
    for name, text in TEXT.items():
        config = work / f"{name}.json"
        told = LLAVA | {"dtype": "bfloat16", "text_config": LLAVA["text_config"] | text}
        config.write_text(json.dumps(told), encoding="utf-8")
        planned = plan(config, settings=Plan())
        disk = planned["disk"]["bfloat16"]["dense"]
        head = f"{name}, {planned['parameters'] / 1e9:.1f} B, {disk / 1e9:.0f} GB on disk"
        for step, words in STEPS.items():
            row = planned["steps"][step]
            cells = [head, words, f"{row['bytes'] / 1e9:.1f}"]
            cells.append(f"{row['device_bytes'] / 1e9:.1f}" if "device_bytes" in row else "")
            cells += [f"{row['flop'] / 1e12:,.0f}" if row["flop"] else ""]
            cells += [_hours(row["flop"] / speed / 3600) if row["flop"] else "" for speed in SPEED.values()]
            table.append(f"| {' | '.join(cells)} |")
            head = ""
    return table


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{60 * hours:.1f} min"


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- arithmetic -->\n")
    after = rest.partition("<!-- end of arithmetic -->")[2]
    with tempfile.TemporaryDirectory() as work:
        table = "\n".join(rows(Path(work)))
    PAGE.write_text(f"{before}<!-- arithmetic -->\n{table}\n<!-- end of arithmetic -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
