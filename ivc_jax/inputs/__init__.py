"""From prompts and pictures to the padded arrays of one compiled program, in NumPy on the host."""
