// kafkajs.
const { createInterface } = require('node:readline')
const { Kafka } = require('kafkajs')

const [bootstrap, task, topic, ...rest] = process.argv.slice(2)
const kafka = new Kafka({ brokers: [bootstrap] })

const say = (...words) => process.stdout.write(words.join(' ') + '\n')
const record = (partition, { offset, key, value }) => say('record', partition, offset, key, value)

async function produce(first, count, idempotent) {
  const producer = kafka.producer(idempotent ? { idempotent: true } : {})
  await producer.connect()
  for (let start = first; start < first + count; start += 10) {
    const numbers = Array.from({ length: Math.min(10, first + count - start) }, (_, index) => start + index)
    const messages = numbers.map(n => ({ key: `key-${n % 10}`, value: `${n}` }))
    await producer.send({ topic, messages })
  }
  await producer.disconnect()
}

// It reads in groups only.
async function consume(count) {
  const consumer = kafka.consumer({ groupId: `all-of-${topic}` })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  let seen = 0
  await new Promise(done => {
    consumer.run({
      eachMessage: async ({ partition, message }) => {
        record(partition, message)
        if (++seen === count) done()
      },
    })
  })
  await consumer.disconnect()
}

async function group(groupId) {
  const consumer = kafka.consumer({ groupId })
  let next = new Map()
  consumer.on(consumer.events.GROUP_JOIN, ({ payload }) => {
    next = new Map()
    say('assigned', ...(payload.memberAssignment[topic] ?? []).sort())
  })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({
    eachMessage: async ({ partition, message }) => {
      record(partition, message)
      next.set(partition, (BigInt(message.offset) + 1n).toString())
    },
  })
  for await (const command of createInterface({ input: process.stdin })) {
    if (command !== 'commit') continue
    const offsets = [...next].map(([partition, offset]) => ({ topic, partition, offset }))
    try {
      if (offsets.length) await consumer.commitOffsets(offsets)
      say('committed')
    } catch (error) {
      say('failed', error.message)
    }
  }
  await consumer.disconnect()
}

const tasks = {
  produce: () => produce(...rest.map(Number), false),
  idempotent: () => produce(...rest.map(Number), true),
  consume: () => consume(Number(rest[0])),
  group: () => group(rest[0]),
}
tasks[task]().then(() => process.exit(0), error => {
  console.error(error)
  process.exit(1)
})
