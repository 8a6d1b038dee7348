// sarama.
package main

import (
	"context"
	"log"
	"os"

	"github.com/IBM/sarama"

	"kedge.test/clients/dialog"
)

type client struct{}

func main() {
	sarama.Logger = log.New(os.Stderr, "", log.Lmicroseconds)
	dialog.Main(client{})
}

func (client) Produce(bootstrap, topic string, first, count int, idempotent bool) error {
	config := sarama.NewConfig()
	// a synchronous producer must have it
	config.Producer.Return.Successes = true
	if idempotent {
		config.Producer.Idempotent = true
		// sarama refuses to start without these two
		config.Producer.RequiredAcks = sarama.WaitForAll
		config.Net.MaxOpenRequests = 1
	}
	producer, err := sarama.NewSyncProducer([]string{bootstrap}, config)
	if err != nil {
		return err
	}
	defer producer.Close()
	for _, ten := range dialog.Tens(first, count) {
		var messages []*sarama.ProducerMessage
		for _, pair := range ten {
			messages = append(messages, &sarama.ProducerMessage{
				Topic: topic, Key: sarama.StringEncoder(pair.Key), Value: sarama.StringEncoder(pair.Value),
			})
		}
		if err := producer.SendMessages(messages); err != nil {
			return err
		}
	}
	return nil
}

func (client) Consume(bootstrap, topic string, count int) error {
	consumer, err := sarama.NewConsumer([]string{bootstrap}, sarama.NewConfig())
	if err != nil {
		return err
	}
	defer consumer.Close()
	partitions, err := consumer.Partitions(topic)
	if err != nil {
		return err
	}
	messages := make(chan *sarama.ConsumerMessage)
	for _, partition := range partitions {
		part, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
		if err != nil {
			return err
		}
		go func() {
			for message := range part.Messages() {
				messages <- message
			}
		}()
	}
	for range count {
		message := <-messages
		dialog.Record(message.Partition, message.Offset, message.Key, message.Value)
	}
	return nil
}

func (client) Group(bootstrap, topic, group string) error {
	config := sarama.NewConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	member, err := sarama.NewConsumerGroup([]string{bootstrap}, group, config)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	handler := &handler{topic: topic, commits: make(chan struct{})}
	go func() {
		for command := range dialog.Commands() {
			if command == "commit" {
				handler.commits <- struct{}{}
			}
		}
		stop()
	}()
	for ctx.Err() == nil {
		// a session ends at each rebalance and each fault
		if err := member.Consume(ctx, []string{topic}, handler); err != nil {
			log.Print("session: ", err)
		}
	}
	return member.Close()
}

type handler struct {
	topic   string
	commits chan struct{}
}

func (handler *handler) Setup(session sarama.ConsumerGroupSession) error {
	dialog.Assigned(session.Claims()[handler.topic])
	go func() {
		for {
			select {
			case <-session.Context().Done():
				return
			case <-handler.commits:
				session.Commit()
				dialog.Committed(nil)
			}
		}
	}()
	return nil
}

func (handler *handler) Cleanup(sarama.ConsumerGroupSession) error {
	dialog.Assigned(nil)
	return nil
}

func (handler *handler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for message := range claim.Messages() {
		dialog.Record(message.Partition, message.Offset, message.Key, message.Value)
		session.MarkMessage(message, "")
	}
	return nil
}
