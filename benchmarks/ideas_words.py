"""What the page of benchmarks/ideas.py says beside its tables."""

ABOUT = """{date}, {processor}."""
G = "gradient(power=1.0,unit=True)"
IDEAS = [
    {
        "title": "Gradient-weighted statistics",
        "text": "",
        "verdict": "",
        "variants": ("plain", G, "gradient(power=1.0)", "image(weight=0.1)"),
        "names": ("all tokens alike", "gradient", "gradient of the plain loss", "image=0.1"),
    },
]
UNRUN = ""
