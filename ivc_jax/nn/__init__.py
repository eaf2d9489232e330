"""Model parts: pure functions and linen modules; state is passed in and returned."""
