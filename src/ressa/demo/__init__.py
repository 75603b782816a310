"""What ressa carries: the dense model `emoji-llava`, known everywhere as `demo`."""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "emoji-llava"
