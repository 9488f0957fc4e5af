"""Compares a PNG with the same picture rendered by one process, pixel by pixel, and with the recorded digest.

    python3 check.py mandelbrot.png       exit 0 only if they agree

Decodes the PNG by itself: the compressed bytes may differ between versions of zlib, the pixels may not.
"""

import hashlib
import pathlib
import struct
import sys
import zlib

SIDE = 512


def decoded(png):
    """The pixels of a grey 8-bit PNG whose rows use no filter."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n", "not a PNG"
    at, packed = 8, b""
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        (crc,) = struct.unpack(">I", png[at + 8 + length : at + 12 + length])
        assert crc == zlib.crc32(kind + body), f"chunk {kind} is damaged"
        if kind == b"IHDR":
            assert struct.unpack(">IIBB", body[:10]) == (SIDE, SIDE, 8, 0), "not 512 by 512 in 8-bit grey"
        if kind == b"IDAT":
            packed += body
        at += 12 + length
    rows = zlib.decompress(packed)
    assert len(rows) == SIDE * (SIDE + 1), "wrong number of bytes"
    assert not any(rows[:: SIDE + 1]), "a row has a filter"
    return b"".join(rows[row * (SIDE + 1) + 1 : (row + 1) * (SIDE + 1)] for row in range(SIDE))


def rendered():
    pixels = bytearray()
    for row in range(SIDE):
        for column in range(SIDE):
            z, c, steps = 0j, complex(-2.2 + 3.0 * column / SIDE, -1.5 + 3.0 * row / SIDE), 0
            while steps < 255 and z.real * z.real + z.imag * z.imag <= 4.0:
                z = complex(z.real * z.real - z.imag * z.imag + c.real, 2.0 * z.real * z.imag + c.imag)
                steps += 1
            pixels.append(steps if z.real * z.real + z.imag * z.imag > 4.0 else 0)
    return bytes(pixels)


answer = decoded(pathlib.Path(sys.argv[1]).read_bytes())
expected = rendered()
digest = hashlib.sha256(expected).hexdigest()
recorded = pathlib.Path(__file__).with_name("expected.sha256").read_text().split()[0]
if digest != recorded:
    sys.exit(f"this machine renders {digest}, recorded is {recorded}")
if answer != expected:
    sys.exit("the picture differs from the one rendered by one process")
print(f"{digest}  pixels agree")
