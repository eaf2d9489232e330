"""Questions beyond the tables of a run: ablations, layer choice, the paper, plans, IVC sets."""
