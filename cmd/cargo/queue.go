package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/monochromegane/cargo/build"
	"github.com/monochromegane/cargo/queue"
)

// queueFlags say where a queue is.
func queueFlags() []string {
	return []string{"data-dir", "queue", "queue-creds", "queue-token-file", "queue-ca", "queue-cert", "queue-key", "queue-replicas", "lease"}
}

// queueCommand looks after a queue by hand, beside a server that has it open or without one.
func queueCommand(stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:            "queue",
		Usage:           "look after the queue and its workers",
		HideHelpCommand: true,
		OnUsageError:    onUsageError,
		Action:          helpOrNoSuch,
		Subcommands: []*cli.Command{
			{
				Name: "status", Usage: "print what waits, what runs and who works", OnUsageError: onUsageError,
				Flags:  append(only(queueFlags()...), &cli.BoolFlag{Name: "json", Usage: "as one JSON object"}),
				Action: queueAction(stderr, 0, queueStatus),
			},
			{
				Name: "drain", Usage: "let a worker, or those with a label, end their builds and take no more", ArgsUsage: "NAME|KEY=VALUE", OnUsageError: onUsageError,
				Flags:  append(only(queueFlags()...), &cli.BoolFlag{Name: "undo", Usage: "let them take builds again"}),
				Action: queueAction(stderr, 1, queueDrain),
			},
			{
				Name: "requeue", Usage: "take a build from its worker, or put one back that was lost or broke on our side", ArgsUsage: "BUILD_ID", OnUsageError: onUsageError,
				Flags: only(queueFlags()...), Action: queueAction(stderr, 1, queueRequeue),
			},
		},
	}
}

// queueAction opens the queue for do, whose argument count is args.
func queueAction(stderr io.Writer, args int, do func(c *cli.Context, q *queue.Queue, cfg config) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() != args {
			return usageError{fmt.Errorf("want %s, after the flags: `%s --help` shows how", count(args, "argument"), c.Command.HelpName)}
		}
		cfg, err := parse(parser{c: c, arguments: true})
		if err != nil {
			return err
		}
		q, err := openQueue(c.Context, cfg, false, slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError})))
		if err != nil {
			return err
		}
		return errors.Join(do(c, q, cfg), q.Close())
	}
}

// openQueue opens the cluster's queue, that of the server which runs on the
// data directory, or the directory itself where none does. It must be there,
// unless a fresh one may be made.
func openQueue(ctx context.Context, cfg config, fresh bool, log *slog.Logger) (*queue.Queue, error) {
	o := queueOptions(cfg)
	o.Log = log
	name, err := workerName(cfg.dataDir)
	if err != nil {
		return nil, err
	}
	o.Worker, o.Guest = name, !fresh
	if cfg.cluster == nil {
		o.Retention = 0 // what is remembered is for the server to say
	}
	if cfg.cluster == nil {
		if _, err := os.Stat(cfg.queueDir); errors.Is(err, fs.ErrNotExist) && !fresh {
			return nil, usageError{fmt.Errorf("--data-dir %s: there is no queue in it; name the data directory of a server, or a cluster with --queue", cfg.dataDir)}
		}
		q, err := queue.Dial(ctx, filepath.Join(cfg.queueDir, "socket"), o)
		if err == nil {
			return q, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) { // a server that was killed leaves the file
			return nil, usageError{err}
		}
	}
	q, err := queue.Open(ctx, o)
	if err != nil {
		return nil, usageError{err}
	}
	return q, nil
}

// A status is what cargo queue status prints.
type status struct {
	Queued  int          `json:"queued"`
	Running int          `json:"running"`
	Unsafe  []string     `json:"unsafe,omitempty"` // in words
	Workers []crewMember `json:"workers"`
	Builds  []heldBuild  `json:"builds"` // that run
}

type heldBuild struct {
	build.Build
	Worker string `json:"worker"`
}

type crewMember struct {
	Name        string            `json:"name"`
	State       string            `json:"state"`
	Labels      map[string]string `json:"labels,omitempty"`
	Executor    string            `json:"executor"`
	Running     int               `json:"running"`
	Concurrency int               `json:"concurrency"`
	Version     string            `json:"version"`
	Image       string            `json:"image"`
	Started     time.Time         `json:"started"`
	Silent      float64           `json:"silent_seconds"`
}

func queueStatus(c *cli.Context, q *queue.Queue, cfg config) error {
	workers, err := q.Workers(c.Context)
	if err != nil {
		return err
	}
	s := status{Queued: q.Depth(), Running: q.Running(), Unsafe: q.Warnings(), Workers: []crewMember{}, Builds: []heldBuild{}}
	for _, w := range workers {
		s.Workers = append(s.Workers, crewMember{
			Name: w.Name, State: stateOf(w, cfg.lease), Labels: w.Labels, Executor: w.Executor, Running: w.Running, Concurrency: w.Concurrency,
			Version: w.Version, Image: w.Image, Started: w.Started, Silent: w.Silent.Seconds(),
		})
	}
	running, _, err := q.List(c.Context, queue.Filter{State: build.Running})
	if err != nil {
		return err
	}
	holders := q.Holders()
	for _, b := range running {
		s.Builds = append(s.Builds, heldBuild{b, holders[b.ID]})
	}
	if c.Bool("json") {
		return json.NewEncoder(c.App.Writer).Encode(s)
	}
	return s.write(c.App.Writer)
}

func (s status) write(out io.Writer) error {
	fmt.Fprintf(out, "%d queued, %d running, %s\n", s.Queued, s.Running, count(len(s.Workers), "worker"))
	for _, why := range s.Unsafe {
		fmt.Fprintln(out, "unsafe:", why)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(s.Workers) > 0 {
		fmt.Fprintln(w, "\nWORKER\tSTATE\tBUILDS\tEXECUTOR\tLABELS\tVERSION\tSTARTED\tHEARD OF")
	}
	for _, m := range s.Workers {
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
			labels = append(labels, k+"="+m.Labels[k])
		}
		fmt.Fprintf(w, "%s\t%s\t%d of %d\t%s\t%s\t%s\t%s\t%v ago\n", m.Name, m.State, m.Running, m.Concurrency, m.Executor,
			strings.Join(labels, ","), m.Version, m.Started.UTC().Format(time.DateTime), time.Duration(m.Silent*float64(time.Second)).Round(time.Second))
	}
	if len(s.Builds) > 0 {
		fmt.Fprintln(w, "\nBUILD\tREPOSITORY\tFOR\tVERSION\tATTEMPT\tSTARTED\tWORKER")
	}
	for _, b := range s.Builds {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", b.ID, b.Repository, b.Platform(), b.Version, b.Attempt, b.StartedAt.UTC().Format(time.DateTime), b.Worker)
	}
	return w.Flush()
}

func queueDrain(c *cli.Context, q *queue.Queue, _ config) error {
	who := c.Args().First()
	workers, err := q.Workers(c.Context)
	if err != nil {
		return err
	}
	var found []string
	for _, w := range workers {
		if called(w, who) {
			found = append(found, w.Name)
		}
	}
	if len(found) == 0 {
		return usageError{fmt.Errorf("no worker is called %s; `cargo queue status` lists them", who)}
	}
	for _, name := range found {
		if err := q.Drain(c.Context, name, !c.Bool("undo")); err != nil {
			return err
		}
		does := "ends its builds and takes no more"
		if c.Bool("undo") {
			does = "takes builds again"
		}
		fmt.Fprintln(c.App.Writer, name, does)
	}
	return nil
}

// called reports whether who is the name of w, or one of its labels.
func called(w queue.Worker, who string) bool {
	if w.Name == who {
		return true
	}
	key, value, labelled := strings.Cut(who, "=")
	label, has := w.Labels[key]
	return labelled && has && label == value
}

func queueRequeue(c *cli.Context, q *queue.Queue, _ config) error {
	b, err := q.Requeue(c.Context, build.ID(c.Args().First()))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s is %s\n", b.ID, b.State)
	return err
}

// count is a number of things, in words.
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
