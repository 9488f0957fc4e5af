"""Puts one task on the queue p.todo over REST and prints its result: rest_client.py ADDRESS TOKEN GIT_URL"""

import json
import sys
import time

import requests

address, token, git_url = sys.argv[1:]
session = requests.Session()
session.headers["Authorization"] = f"Bearer {token}"

session.post(f"{address}/rabbit/", json={"name": "p.todo"}).raise_for_status()
task = {"project_id": "p", "task_id": "17", "git_url": git_url, "command": "echo $((6 * 7))"}
session.post(f"{address}/rabbit/p.todo/", json={"message": task}).raise_for_status()
for _ in range(600):
    answer = session.get(f"{address}/rabbit/p.done/")
    answer.raise_for_status()
    if answer.status_code == 200:
        print(json.dumps(answer.json()["message"]))
        break
    time.sleep(0.1)
else:
    sys.exit("no result within a minute")
