// franz-go.
package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"kedge.test/clients/dialog"
)

type franz struct{}

func main() { dialog.Main(franz{}) }

// Produce is idempotent by default.
func (franz) Produce(bootstrap, topic string, first, count int, _ bool) error {
	// creation is off by default, on the client's side
	client, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.AllowAutoTopicCreation())
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, ten := range dialog.Tens(first, count) {
		var records []*kgo.Record
		for _, pair := range ten {
			records = append(records, &kgo.Record{Topic: topic, Key: []byte(pair.Key), Value: []byte(pair.Value)})
		}
		if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
			return err
		}
	}
	return nil
}

func (franz) Consume(bootstrap, topic string, count int) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.ConsumeTopics(topic))
	if err != nil {
		return err
	}
	defer client.Close()
	for seen := 0; seen < count; {
		seen += read(context.Background(), client)
	}
	return nil
}

func (franz) Group(bootstrap, topic, group string) error {
	held := holding{topic: topic, partitions: map[int32]bool{}}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap), kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, more map[string][]int32) { held.change(more, true) }),
		kgo.OnPartitionsRevoked(func(ctx context.Context, client *kgo.Client, less map[string][]int32) {
			// the default callback does so too, and is replaced by this one
			_ = client.CommitUncommittedOffsets(ctx)
			held.change(less, false)
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, less map[string][]int32) { held.change(less, false) }),
	)
	if err != nil {
		return err
	}
	commands := dialog.Commands()
	for {
		select {
		case command, open := <-commands:
			if !open {
				client.Close()
				return nil
			}
			if command == "commit" {
				dialog.Committed(client.CommitUncommittedOffsets(context.Background()))
			}
		default:
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			read(ctx, client)
			cancel()
		}
	}
}

// What a member holds: it is told what is added and what is taken.
type holding struct {
	sync.Mutex
	topic      string
	partitions map[int32]bool
}

func (held *holding) change(by map[string][]int32, holds bool) {
	held.Lock()
	defer held.Unlock()
	for _, partition := range by[held.topic] {
		if holds {
			held.partitions[partition] = true
		} else {
			delete(held.partitions, partition)
		}
	}
	dialog.Assigned(slices.Collect(maps.Keys(held.partitions)))
}

func read(ctx context.Context, client *kgo.Client) int {
	fetches := client.PollFetches(ctx)
	fetches.EachRecord(func(record *kgo.Record) {
		dialog.Record(record.Partition, record.Offset, record.Key, record.Value)
	})
	return fetches.NumRecords()
}
