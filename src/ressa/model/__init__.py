"""Models: loading them, where their parts are, and their folders on disk."""
