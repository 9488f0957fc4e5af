"""The reduce step: reads the tiles as results, one a line, and writes the whole picture as PNG to standard output."""

import base64
import json
import struct
import sys
import zlib

import plane


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def stdout_bytes(result):
    """Output that is not UTF-8 comes as base64, and the field `encoding` says so."""
    if result.get("encoding") == "base64":
        return base64.b64decode(result["stdout"])
    return result["stdout"].encode()


tiles = {}
for result in map(json.loads, sys.stdin):
    if result["outcome"] != "succeeded":
        sys.exit(f"tile {result['task_id']} ended as {result['outcome']}; the picture would have a hole")
    pixels = stdout_bytes(result)
    if len(pixels) != plane.TILE * plane.TILE:
        sys.exit(f"tile {result['task_id']} has {len(pixels)} bytes, not {plane.TILE * plane.TILE}")
    tiles[int(result["task_id"])] = pixels
missing = set(range(plane.TILES_A_SIDE**2)) - tiles.keys()
if missing:
    sys.exit(f"no result for tiles {sorted(missing)}")

rows = bytearray()
for row in range(plane.SIDE):
    rows.append(0)  # PNG's filter of the row: none
    for across in range(plane.TILES_A_SIDE):
        tile = tiles[row // plane.TILE * plane.TILES_A_SIDE + across]
        start = row % plane.TILE * plane.TILE
        rows += tile[start : start + plane.TILE]

header = struct.pack(">IIBBBBB", plane.SIDE, plane.SIDE, 8, 0, 0, 0, 0)  # 8 bits, grey
sys.stdout.buffer.write(
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows), 9)) + chunk(b"IEND", b"")
)
