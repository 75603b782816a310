"""What pruning and repair cost, from shapes alone: floating point operations and bytes. Nothing here is run."""
