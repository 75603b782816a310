"""What a model answers to records: greedily, in batches that do not decide it, kept on disk as it comes."""
