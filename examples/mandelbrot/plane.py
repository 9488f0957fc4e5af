"""The picture: 512 by 512 pixels of the Mandelbrot set, cut into 4 by 4 tiles, one grey byte a pixel."""

SIDE = 512
TILES_A_SIDE = 4
TILE = SIDE // TILES_A_SIDE
LIMIT = 255


def shade(column, row):
    """How many steps the point of a pixel takes to escape, at most 255; a member of the set is 0, black.

    Plain IEEE arithmetic, no library functions: the same bytes on every machine.
    """
    x0 = -2.2 + 3.0 * column / SIDE
    y0 = -1.5 + 3.0 * row / SIDE
    x = y = 0.0
    for step in range(1, LIMIT + 1):
        x, y = x * x - y * y + x0, 2.0 * x * y + y0
        if x * x + y * y > 4.0:
            return step
    return 0
