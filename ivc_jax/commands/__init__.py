"""The commands of `ivc-jax`, one file a command."""
