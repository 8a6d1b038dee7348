import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;

/** The Java clients of Apache Kafka. */
public final class Client {
    private static final String SERIALIZER = "org.apache.kafka.common.serialization.StringSerializer";
    private static final String DESERIALIZER = "org.apache.kafka.common.serialization.StringDeserializer";

    public static void main(String[] arguments) throws Exception {
        String bootstrap = arguments[0];
        String topic = arguments[2];
        switch (arguments[1]) {
            // idempotent by default
            case "produce", "idempotent" ->
                produce(bootstrap, topic, Integer.parseInt(arguments[3]), Integer.parseInt(arguments[4]));
            case "consume" -> consume(bootstrap, topic, Integer.parseInt(arguments[3]));
            default -> group(bootstrap, topic, arguments[3]);
        }
    }

    private static void produce(String bootstrap, String topic, int first, int count) throws Exception {
        Map<String, Object> config = Map.of("bootstrap.servers", bootstrap,
            "key.serializer", SERIALIZER, "value.serializer", SERIALIZER);
        try (var producer = new KafkaProducer<String, String>(config)) {
            for (int start = first; start < first + count; start += 10) {
                List<Future<?>> sent = new ArrayList<>();
                for (int n = start; n < Math.min(start + 10, first + count); n++) {
                    sent.add(producer.send(new ProducerRecord<>(topic, "key-" + n % 10, "" + n)));
                }
                for (Future<?> one : sent) {
                    one.get();
                }
            }
        }
    }

    private static void consume(String bootstrap, String topic, int count) {
        Map<String, Object> config = Map.of("bootstrap.servers", bootstrap,
            "key.deserializer", DESERIALIZER, "value.deserializer", DESERIALIZER);
        try (var consumer = new KafkaConsumer<String, String>(config)) {
            List<TopicPartition> all = consumer.partitionsFor(topic).stream()
                .map(each -> new TopicPartition(topic, each.partition())).toList();
            consumer.assign(all);
            consumer.seekToBeginning(all);
            int seen = 0;
            while (seen < count) {
                seen += read(consumer);
            }
        }
    }

    private static void group(String bootstrap, String topic, String group) {
        Map<String, Object> config = Map.of("bootstrap.servers", bootstrap, "group.id", group,
            "auto.offset.reset", "earliest",
            "key.deserializer", DESERIALIZER, "value.deserializer", DESERIALIZER);
        BlockingQueue<String> commands = commands();
        try (var consumer = new KafkaConsumer<String, String>(config)) {
            consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> revoked) {
                    var left = new ArrayList<>(consumer.assignment());
                    left.removeAll(revoked);
                    assigned(left);
                }

                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> assigned) {
                    assigned(consumer.assignment());
                }
            });
            String command = null;
            while (!"close".equals(command)) {
                if ("commit".equals(command)) {
                    commit(consumer);
                }
                read(consumer);
                command = commands.poll();
            }
        }
    }

    private static void commit(KafkaConsumer<String, String> consumer) {
        try {
            consumer.commitSync();
            say("committed");
        } catch (KafkaException error) {
            say("failed " + error);
        }
    }

    private static int read(KafkaConsumer<String, String> consumer) {
        var records = consumer.poll(Duration.ofMillis(100));
        for (ConsumerRecord<String, String> each : records) {
            say("record " + each.partition() + " " + each.offset() + " " + each.key() + " " + each.value());
        }
        return records.count();
    }

    private static void assigned(Collection<TopicPartition> partitions) {
        say(partitions.stream().map(TopicPartition::partition).sorted().map(String::valueOf)
            .collect(Collectors.joining(" ", "assigned ", "")).strip());
    }

    private static BlockingQueue<String> commands() {
        BlockingQueue<String> commands = new LinkedBlockingQueue<>();
        Thread reader = new Thread(() -> {
            try (var lines = new BufferedReader(new InputStreamReader(System.in))) {
                lines.lines().forEach(commands::add);
            } catch (IOException error) {
                System.err.println(error);
            }
            commands.add("close");
        });
        reader.setDaemon(true);
        reader.start();
        return commands;
    }

    private static synchronized void say(String line) {
        System.out.println(line);
    }
}
