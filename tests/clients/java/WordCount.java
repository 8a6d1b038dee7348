import java.util.Arrays;
import java.util.Locale;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Produced;

/**
 * The word count of Kafka Streams at its defaults, which are at least once: BOOTSTRAP INPUT OUTPUT ID STATE_DIR.
 * Says "running" when it is, and ends with standard input. The words are counted by themselves, so that their
 * counts go through a topic of its own.
 */
public final class WordCount {
    public static void main(String[] arguments) throws Exception {
        Properties config = new Properties();
        config.put("bootstrap.servers", arguments[0]);
        config.put("application.id", arguments[3]);
        config.put("state.dir", arguments[4]);
        config.put("default.key.serde", Serdes.StringSerde.class);
        config.put("default.value.serde", Serdes.StringSerde.class);
        // a result is wanted in a second, and not after 30
        config.put("commit.interval.ms", 500);
        StreamsBuilder builder = new StreamsBuilder();
        KStream<String, String> lines = builder.stream(arguments[1]);
        lines.flatMapValues(line -> Arrays.asList(line.toLowerCase(Locale.ROOT).split("\\W+")))
            .groupBy((key, word) -> word, Grouped.with(Serdes.String(), Serdes.String()))
            .count()
            .mapValues(String::valueOf)
            .toStream()
            .to(arguments[2], Produced.with(Serdes.String(), Serdes.String()));
        KafkaStreams streams = new KafkaStreams(builder.build(), config);
        streams.setStateListener((next, before) -> {
            System.out.println(next.toString().toLowerCase(Locale.ROOT));
        });
        streams.start();
        while (System.in.read() >= 0) {
            // until it ends
        }
        streams.close();
    }
}
