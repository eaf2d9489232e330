"""Tasks, their prompts, and how answers are parsed and scored."""
