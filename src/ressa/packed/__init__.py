"""Models that stay packed in memory: `import ressa.packed` lets `from_pretrained` load their folders."""

from ressa.packed import loading as loading
