"""Official downloads, and any other table, as data folders: `ressa data NAME SOURCE OUT`."""
