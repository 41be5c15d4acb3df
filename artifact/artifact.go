// Package artifact takes what a build made out of its tree, packs it so that
// equal builds give equal bytes, and keeps the archive under its SHA-256.
//
// The tree belongs to whoever wrote the repository: nothing in it is trusted,
// and all of it is reached through an [os.Root].
package artifact

import (
	"errors"
	"io/fs"
)

// Errors that this package returns, wrapped with a sentence for the person who
// asked for the build.
var (
	ErrNoArtifact    = errors.New("no artifact")
	ErrWrongPlatform = errors.New("wrong platform")
	ErrTooLarge      = errors.New("artifact too large")

	// ErrNotFound is what a store returns for what it does not hold.
	ErrNotFound = errors.New("artifact not found")
	// ErrCorrupt is an ErrNotFound: the store holds something else than it
	// recorded; the next Put of that slot mends it.
	ErrCorrupt error = corruptError{}
	// ErrUnavailable is for a store that cannot do its work just now, through
	// no fault of who asked: its disk is full or broken, its server is away.
	// Nothing was decided, and trying again later is safe.
	ErrUnavailable = errors.New("the artifact store does not answer")
	// ErrSuperseded is what Put and PutLog return to an attempt of a build
	// when a later attempt of the same build has stored already.
	ErrSuperseded = errors.New("a later attempt of this build has stored its result")
)

type corruptError struct{}

func (corruptError) Error() string { return "stored artifact is corrupt" }
func (corruptError) Unwrap() error { return ErrNotFound }

// Limits that are in force where the caller gives zero.
const (
	DefaultLimit = 512 << 20 // bytes
	DefaultFiles = 10_000
)

// CollectOptions say what a build was for and what was there before it.
type CollectOptions struct {
	GOOS, GOARCH string

	// Tracked reports whether the file at a slash path came with the commit;
	// nil: none did.
	Tracked func(path string) bool
	// Ignored reports whether git would ignore path; nil: it ignores nothing.
	// It is asked about no path below a directory that is itself ignored.
	Ignored func(path string, isDir bool) bool

	Limit int64 // bytes of all files together; 0 means DefaultLimit
	Files int   // number of files; 0 means DefaultFiles
}

// Collected is what a build made.
type Collected struct {
	Files   []File    // sorted by path
	Skipped []Skipped // sorted by path; at most maxSkipped of them
	Omitted int       // how many more were skipped than Skipped lists
}

// A File is a regular file that a build added. Only Collect makes them.
type File struct {
	Path       string // slash path from the root of the tree; valid UTF-8, printable
	Size       int64  // bytes
	Executable bool   // packed with mode 0755 instead of 0644

	info fs.FileInfo // the file that Collect saw, which is the only one Pack accepts
}

// Skipped is something that a build added and that is not in its artifact.
type Skipped struct {
	Path string // quoted and cut where it is not plain
	Why  string // completes "bin/app ...": "is a darwin/arm64 executable"
}
