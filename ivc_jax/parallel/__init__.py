"""How a program runs on many devices: mesh, batches on it, processes, splits of activations."""
