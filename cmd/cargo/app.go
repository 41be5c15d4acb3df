package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"

	"github.com/monochromegane/cargo/artifact"
	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/queue"
)

// Exit statuses. After exitUsage a service manager need not try again.
const (
	exitOK     = 0
	exitFailed = 1 // it broke, or what it needs is away
	exitUsage  = 2 // it could not start with what it was given
)

// A usageError is something that whoever started the program can put right.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run is the program: it returns its exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := &cli.App{
		Name:            "cargo",
		Usage:           "a build proxy for Go apps",
		HideVersion:     true,
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		Commands:        []*cli.Command{serveCommand(stderr), workerCommand(stderr), queueCommand(stderr), fsckCommand(stderr), cacheCommand(stderr), versionCommand()},
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    onUsageError,
		CommandNotFound: nil,
		Action:          helpOrNoSuch,
	}
	err := app.RunContext(ctx, args)
	if err == nil {
		return exitOK
	}
	for _, line := range lines(err) {
		fmt.Fprintln(stderr, "cargo:", line)
	}
	if _, ok := errors.AsType[usageError](err); ok && !passing(err) {
		return exitUsage
	}
	return exitFailed
}

// passing reports whether err may go away by itself: after a power failure all
// machines start at once, and what others need comes in any order; and a command
// that looks at the queue has its directory for a moment.
func passing(err error) bool {
	err = artifact.Unavailable(err) // of a disk that is full, say
	for _, away := range []error{artifact.ErrUnavailable, queue.ErrUnavailable, queue.ErrInUse, executor.ErrUnavailable} {
		if errors.Is(err, away) {
			return true
		}
	}
	return false
}

// helpOrNoSuch is what a command does that has commands, where none of them is named.
func helpOrNoSuch(c *cli.Context) error {
	if c.Args().Present() {
		return usageError{fmt.Errorf("no such command %q; `%s --help` lists the commands", c.Args().First(), c.Command.HelpName)}
	}
	if c.Command.Name == c.App.Name {
		return cli.ShowAppHelp(c)
	}
	return cli.ShowSubcommandHelp(c)
}

// onUsageError keeps the library from printing the whole help for one wrong flag.
func onUsageError(c *cli.Context, err error, _ bool) error {
	return usageError{fmt.Errorf("%w; `%s --help` lists the flags", err, c.Command.HelpName)}
}

// lines are the errors that err joins, or err alone.
func lines(err error) []error {
	if u, ok := errors.AsType[usageError](err); ok {
		err = u.error
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:         "version",
		Usage:        "print version, commit and Go version",
		OnUsageError: onUsageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError{fmt.Errorf("unexpected argument %q", c.Args().First())}
			}
			v := programVersion()
			_, err := fmt.Fprintf(c.App.Writer, "cargo %s\ncommit %s\n%s %s/%s\n", v.version, v.commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

type version struct{ version, commit string }

// programVersion reads what the go command recorded in the program.
func programVersion() version {
	v := version{version: "(devel)", commit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.version = info.Main.Version
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.commit = s.Value
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified {
		v.commit += " (modified)"
	}
	return v
}
