"""IVC sets of the grids of real models: numbers, figures, a report; no model is run."""
