"""Prune vision-language models, repair them, and prove what it did."""
