"""Official downloads, and any other table, as data folders: `ressa data NAME SOURCE OUT`. One small file a source."""

from ressa.data.prepare.sums import check
from ressa.data.prepare.verb import SOURCES, prepare

__all__ = ["SOURCES", "check", "prepare"]
