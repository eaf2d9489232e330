"""What a model's visual tokens say when they are read as words (EmbedLens, arXiv 2603.00510)."""
