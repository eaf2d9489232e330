"""Plan a TPU slice without one: compile ahead of time and read the programs."""
