"""The largest batch that fits, from few compiles: memory grows nearly as a line."""

from collections.abc import Callable

_TRIES = 4  # a compile takes minutes; the line is good to a sample after two or three


def find_largest_batch(
    peak_at: Callable[[int], int | None], first: int, step: int, limit: int
) -> int:
    """Find the largest multiple of `step` whose programs fit.

    Two sizes give a line; where it meets the limit is compiled and drawn into the line, a few
    times. What is returned has been compiled and fits; that nothing larger does is the line's word
    unless the next size has been compiled as well.

    Args:
        peak_at: compiles for a batch and returns the bytes of a device, None if it cannot.
        first: a batch to begin with, a multiple of `step`.
        step: the `data` axis of the mesh.
        limit: bytes of a device.

    Returns:
        The batch; 0 if not even `step` samples fit.
    """
    peaks: dict[int, int] = {}
    good, bad = 0, None  # largest that fits, smallest that does not, as far as compiled
    guess = first
    # bytes
    # limit |- - - - - x -      a and b are compiled; the next guess is x, rounded down to a
    #       |      b            multiple of `step`
    #       |  a
    #       +------------ batch
    for _ in range(2 + _TRIES):
        peak = peak_at(guess)
        if peak is not None:
            peaks[guess] = peak
        # a peak above the limit still helps to draw the line
        if peak is not None and peak <= limit:
            good = guess
        else:
            bad = guess
        guess = _choose_next(peaks, good, bad, step, limit)
        if guess == good:
            break
    return good


def _choose_next(peaks: dict[int, int], good: int, bad: int | None, step: int, limit: int) -> int:
    """Choose the next batch to compile, above what is good and below what is bad."""
    if len(peaks) > 1:
        (small, low), (large, high) = sorted(peaks.items())[-2:]
        # bytes a sample; at least 1: a flat line meets the limit nowhere
        slope = max((high - low) / (large - small), 1.0)
        guess = int((limit - high) / slope + large) // step * step
    else:
        guess = 2 * good if bad is None else bad  # one point: double it, or go below what failed
    # the line lied: halve between what is known
    if bad is not None and guess >= bad:
        guess = (good + bad) // 2 // step * step
    return max(guess, good)  # good itself: nothing is left to try
