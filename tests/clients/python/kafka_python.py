"""kafka-python, a client of its own."""

import sys

import dialog
from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError


def produce(bootstrap, topic, first, count, idempotent):
    config = {"enable_idempotence": True} if idempotent else {}
    producer = KafkaProducer(bootstrap_servers=bootstrap, **config)
    for ten in dialog.tens(first, count):
        for future in [producer.send(topic, value, key) for key, value in ten]:
            future.get(60)
    producer.close()


def consume(bootstrap, topic, count):
    consumer = KafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    seen = 0
    while seen < count:
        seen += read(consumer)
    consumer.close()


class Listener(ConsumerRebalanceListener):
    def on_partitions_revoked(self, revoked):
        dialog.assigned([])

    def on_partitions_assigned(self, assigned):
        dialog.assigned(each.partition for each in assigned)


def group(bootstrap, topic, name):
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=name, auto_offset_reset="earliest")
    consumer.subscribe([topic], listener=Listener())
    commands = dialog.Commands()
    while (command := commands.next()) != "close":
        if command == "commit":
            try:
                consumer.commit()
                dialog.say("committed")
            except KafkaError as error:
                dialog.say("failed", error)
        read(consumer)
    consumer.close()


def read(consumer):
    polled = consumer.poll(100)
    for messages in polled.values():
        for message in messages:
            dialog.record(message.partition, message.offset, message.key, message.value)
    return sum(map(len, polled.values()))


dialog.main(sys.modules[__name__])
