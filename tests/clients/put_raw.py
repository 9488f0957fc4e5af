"""Puts files as they are, each as one message, on a queue in RabbitMQ: put_raw.py AMQP_URL QUEUE FILE..."""

import sys

import pika

amqp_url, queue, *files = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
channel = connection.channel()
channel.confirm_delivery()
for name in files:
    with open(name, "rb") as file:
        channel.basic_publish("", queue, file.read(), mandatory=True)
connection.close()
