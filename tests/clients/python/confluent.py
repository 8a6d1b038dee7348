"""confluent-kafka-python, on librdkafka."""

import sys

import dialog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition


def produce(bootstrap, topic, first, count, idempotent):
    config = {"bootstrap.servers": bootstrap}
    if idempotent:
        config["enable.idempotence"] = True
    producer = Producer(config)
    failed = []
    for ten in dialog.tens(first, count):
        for key, value in ten:
            producer.produce(topic, value, key, on_delivery=lambda error, _: error and failed.append(str(error)))
        if producer.flush(60) or failed:
            sys.exit(f"not delivered: {failed}")


def consume(bootstrap, topic, count):
    # librdkafka wants the name of a group even where it is not used
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, 30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    seen = 0
    while seen < count:
        seen += read(consumer)
    consumer.close()


def group(bootstrap, topic, name):
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": name, "auto.offset.reset": "earliest"})
    consumer.subscribe(
        [topic],
        on_assign=lambda _, partitions: dialog.assigned(each.partition for each in partitions),
        on_revoke=lambda *_: dialog.assigned([]),
        on_lost=lambda *_: dialog.assigned([]),
    )
    commands = dialog.Commands()
    while (command := commands.next()) != "close":
        if command == "commit":
            commit(consumer)
        read(consumer)
    consumer.close()


def commit(consumer):
    try:
        consumer.commit(asynchronous=False)
    except KafkaException as error:
        if error.args[0].code() != KafkaError._NO_OFFSET:
            dialog.say("failed", error)
            return
    dialog.say("committed")


def read(consumer):
    message = consumer.poll(0.1)
    if message is None:
        return 0
    if message.error():
        dialog.say("error", message.error())
        return 0
    dialog.record(message.partition(), message.offset(), message.key(), message.value())
    return 1


dialog.main(sys.modules[__name__])
