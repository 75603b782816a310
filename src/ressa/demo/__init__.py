"""What ressa carries: the dense models `emoji-llava`, known everywhere as `demo`, and `emoji-instructblip`."""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "emoji-llava"
INSTRUCTBLIP = Path(__file__).parent / "emoji-instructblip"
CARRIED = {"demo": EMBEDDED, "emoji-llava": EMBEDDED, "emoji-instructblip": INSTRUCTBLIP}  # by name
