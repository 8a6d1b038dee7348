"""aiokafka, on asyncio."""

import asyncio
import sys

import dialog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka.errors import KafkaError


def produce(*arguments):
    asyncio.run(write(*arguments))


def consume(*arguments):
    asyncio.run(read_all(*arguments))


def group(*arguments):
    asyncio.run(join(*arguments))


async def write(bootstrap, topic, first, count, idempotent):
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=idempotent)
    await producer.start()
    for ten in dialog.tens(first, count):
        sent = [await producer.send(topic, value, key) for key, value in ten]
        await asyncio.wait_for(asyncio.gather(*sent), 60)
    await producer.stop()


async def read_all(bootstrap, topic, count):
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    seen = 0
    while seen < count:
        seen += await read(consumer)
    await consumer.stop()


class Listener(ConsumerRebalanceListener):
    def on_partitions_revoked(self, revoked):
        dialog.assigned([])

    def on_partitions_assigned(self, assigned):
        dialog.assigned(each.partition for each in assigned)


async def join(bootstrap, topic, name):
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=name, auto_offset_reset="earliest")
    consumer.subscribe([topic], listener=Listener())
    commands = dialog.Commands()
    await consumer.start()
    while (command := commands.next()) != "close":
        if command == "commit":
            try:
                await consumer.commit()
                dialog.say("committed")
            except KafkaError as error:
                dialog.say("failed", error)
        await read(consumer)
    await consumer.stop()


async def read(consumer):
    polled = await consumer.getmany(timeout_ms=100)
    for messages in polled.values():
        for message in messages:
            dialog.record(message.partition, message.offset, message.key, message.value)
    return sum(map(len, polled.values()))


dialog.main(sys.modules[__name__])
