"""One file a kind of task: how its answers are parsed, scored and aggregated."""
