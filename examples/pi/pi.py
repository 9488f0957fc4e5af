"""One task: throws points at a square and counts those inside the circle. The seed makes it repeatable."""

import argparse
import json
import random

arguments = argparse.ArgumentParser()
arguments.add_argument("--seed", type=int, required=True)
arguments.add_argument("--points", type=int, default=100_000)
asked = arguments.parse_args()

throw = random.Random(asked.seed).random
inside = sum(throw() ** 2 + throw() ** 2 <= 1.0 for _ in range(asked.points))
print(json.dumps({"points": asked.points, "inside": inside}))
