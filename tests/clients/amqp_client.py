"""Puts one task on the queue p.todo in RabbitMQ and prints its result: amqp_client.py AMQP_URL GIT_URL"""

import json
import sys

import pika

amqp_url, git_url = sys.argv[1:]
channel = pika.BlockingConnection(pika.URLParameters(amqp_url)).channel()
channel.confirm_delivery()

# Passive: the queues are there, and what settings they have is the broker's business.
channel.queue_declare("p.todo", passive=True)
task = {"project_id": "p", "task_id": "17", "git_url": git_url, "command": "echo $((6 * 7))"}
channel.basic_publish("", "p.todo", json.dumps(task), mandatory=True)
for method, _, body in channel.consume("p.done", inactivity_timeout=60):
    if method is None:
        sys.exit("no result within a minute")
    channel.basic_ack(method.delivery_tag)
    print(json.dumps(json.loads(body)))
    break
channel.connection.close()
