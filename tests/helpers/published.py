"""IVC sets of published models, worked out by hand; cells in raster order."""

# Example D: Qwen2.5-VL on a 15 x 23 grid at position 15, 34 cells a component.
D_COS = [*range(6), 9, *range(23, 28), *range(46, 51), *range(69, 75), 78, 79, *range(92, 97)]
D_COS += [115, 118, 207, 210]
D_SIN = [11, 17, 18, 41, 64, 87, 103, 109, 110, 126, 132, 133, 134, 155, 156, 179, 225, 241, 247]
D_SIN += [248, 257, 258, 263, 264, 265, 270, 271, 272, 287, 288, 293, 294, 295, 317]

# Example E: LLaVA-1.5, 576 tokens from position 35 (or 5, as its code is written), 29 each.
E_COS = [*range(11), *range(13, 18), *range(21, 25), *range(30, 34), 40, 41, 42, 53, 66]
E_SIN = [149, 192, 211, 212, 249, 250, 293, 294, 343, 344, 345, 368, *range(401, 405)]
E_SIN += [430, 431, 432, 469, 470, 471, 502, 503, *range(546, 551)]
