"""`python -m ressa.cli`, for launchers that start modules."""

from ressa.cli import main

main()
