"""The paper's grounding and VQA tables, measured anew beside the published numbers."""
