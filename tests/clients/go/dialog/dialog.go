// Package dialog has what the Go programs of the matrix share: the words, the records, the command line.
package dialog

import (
	"bufio"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
)

// Tasks is what a program can do.
type Tasks interface {
	Produce(bootstrap, topic string, first, count int, idempotent bool) error
	Consume(bootstrap, topic string, count int) error
	Group(bootstrap, topic, group string) error
}

var out sync.Mutex

// Say writes a line.
func Say(words ...any) {
	out.Lock()
	defer out.Unlock()
	fmt.Println(words...)
}

// Record says that one was read.
func Record(partition int32, offset int64, key, value []byte) {
	Say("record", partition, offset, string(key), string(value))
}

// Assigned says all that a member holds.
func Assigned(partitions []int32) {
	sort.Slice(partitions, func(a, b int) bool { return partitions[a] < partitions[b] })
	Say(strings.TrimSpace("assigned " + strings.Trim(fmt.Sprint(partitions), "[]")))
}

// Committed says how a commit went.
func Committed(err error) {
	if err != nil {
		Say("failed", err)
		return
	}
	Say("committed")
}

// Pair is a record to write.
type Pair struct{ Key, Value string }

// Tens gives the records in tens.
func Tens(first, count int) (tens [][]Pair) {
	for n := first; n < first+count; n++ {
		if (n-first)%10 == 0 {
			tens = append(tens, nil)
		}
		last := &tens[len(tens)-1]
		*last = append(*last, Pair{Key: fmt.Sprintf("key-%d", n%10), Value: strconv.Itoa(n)})
	}
	return tens
}

// Commands gives the lines of standard input; it is closed with it.
func Commands() <-chan string {
	commands := make(chan string)
	go func() {
		defer close(commands)
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			commands <- lines.Text()
		}
	}()
	return commands
}

// Main runs the task that the command line names: BOOTSTRAP TASK TOPIC ARGUMENTS.
func Main(tasks Tasks) {
	if err := run(tasks, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(tasks Tasks, arguments []string) error {
	if len(arguments) < 4 {
		return fmt.Errorf("usage: BOOTSTRAP TASK TOPIC ARGUMENTS")
	}
	bootstrap, task, topic := arguments[0], arguments[1], arguments[2]
	if task == "group" {
		return tasks.Group(bootstrap, topic, arguments[3])
	}
	var numbers []int
	for _, argument := range arguments[3:] {
		number, err := strconv.Atoi(argument)
		if err != nil {
			return err
		}
		numbers = append(numbers, number)
	}
	if task == "consume" {
		return tasks.Consume(bootstrap, topic, numbers[0])
	}
	return tasks.Produce(bootstrap, topic, numbers[0], numbers[1], task == "idempotent")
}
