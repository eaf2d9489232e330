"""Prefill with pruning and greedy decode, both compiled with static shapes."""
