"""One task: renders tile N, 0 to 15 in reading order, and writes its raw pixels to standard output."""

import sys

import plane

number = int(sys.argv[1])
top = number // plane.TILES_A_SIDE * plane.TILE
left = number % plane.TILES_A_SIDE * plane.TILE
pixels = bytearray()
for row in range(top, top + plane.TILE):
    for column in range(left, left + plane.TILE):
        pixels.append(plane.shade(column, row))
sys.stdout.buffer.write(pixels)
