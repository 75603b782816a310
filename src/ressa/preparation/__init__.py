"""Official downloads, and any other table, as data folders: `ressa data NAME SOURCE OUT`. One small file a source."""

from ressa.preparation.sums import check
from ressa.preparation.verb import SOURCES, prepare

__all__ = ["SOURCES", "check", "prepare"]
