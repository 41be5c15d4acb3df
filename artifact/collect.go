package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// Bounds of a walk, above anything that a compiler leaves behind.
const (
	maxEntries = 1 << 20 // files and directories in the tree
	maxDepth   = 100     // directories in each other; each holds two descriptors open
	maxPath    = 1024    // bytes of a collected file's path
	maxSkipped = 100
	batch      = 256 // names read from a directory at a time
)

// Collect finds what a build added to tree. It must run after everything that
// can write to the tree has ended.
//
// It takes every file that is not Tracked and either is an executable for
// GOOS/GOARCH (by its content, whatever its mode, and even if git ignores it)
// or would not be ignored by git: scripts, shared objects, archives and data
// are such other files. An executable for another platform is skipped. So is
// what is no plain file with a plain name: links of both kinds, devices, FIFOs,
// sockets, names that a terminal, a shell or an unpacker could misread. It
// follows no link, and enters no directory called .git.
//
// Where ELF does not say which system it is for, it counts for each one that
// uses ELF on that machine.
//
// The error is ErrWrongPlatform if there are executables and none is for
// GOOS/GOARCH, whatever else there is; ErrNoArtifact if there is nothing;
// ErrTooLarge if there is more than Limit or Files, or if the tree has more
// entries than could be looked at. Collected.Skipped is valid with the first two.
func Collect(ctx context.Context, tree *os.Root, o CollectOptions) (Collected, error) {
	c := collector{ctx: ctx, o: o, limit: o.Limit, files: o.Files}
	if c.limit == 0 {
		c.limit = DefaultLimit
	}
	if c.files == 0 {
		c.files = DefaultFiles
	}
	switch err := c.dir(tree, "", false, 0); {
	case errors.Is(err, ErrTooLarge):
		return Collected{}, err
	case err != nil:
		return Collected{}, fmt.Errorf("collect what the build made: %w", err)
	}
	slices.SortFunc(c.out.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(c.out.Skipped, func(a, b Skipped) int { return strings.Compare(a.Path, b.Path) })
	return c.out, c.verdict()
}

type collector struct {
	ctx   context.Context
	o     CollectOptions
	limit int64
	files int

	out     Collected
	entries int
	bytes   int64
	native  bool    // an executable for the target was found
	foreign Skipped // an executable for another platform, if one was found
}

func (c *collector) verdict() error {
	switch platform := c.o.GOOS + "/" + c.o.GOARCH; {
	case !c.native && c.foreign.Why != "":
		return fmt.Errorf("%w: the build made no executable for %s: %s %s", ErrWrongPlatform, platform, c.foreign.Path, c.foreign.Why)
	case len(c.out.Files) > 0:
		return nil
	case len(c.out.Skipped) > 0:
		s := c.out.Skipped[0]
		return fmt.Errorf("%w: the build made nothing that can be kept: %s %s", ErrNoArtifact, s.Path, s.Why)
	default:
		return fmt.Errorf("%w: the build ended well but added no executable for %s and no file that git does not ignore", ErrNoArtifact, platform)
	}
}

// dir walks the directory d, whose path from the root is at.
func (c *collector) dir(d *os.Root, at string, ignored bool, depth int) error {
	f, err := d.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
		names, err := f.Readdirnames(batch)
		for _, name := range names {
			if c.entries++; c.entries > maxEntries {
				return fmt.Errorf("%w: the build left more than %d files and directories behind", ErrTooLarge, maxEntries)
			}
			if err := c.entry(d, name, path.Join(at, name), ignored, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *collector) entry(d *os.Root, name, at string, ignored bool, depth int) error {
	if strings.EqualFold(name, ".git") {
		return nil
	}
	info, err := d.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() && c.o.Tracked != nil && c.o.Tracked(at) {
		return nil
	}
	ignored = ignored || c.o.Ignored != nil && c.o.Ignored(at, info.IsDir())
	switch {
	case info.IsDir() && depth == maxDepth:
		c.skip(at, fmt.Sprintf("lies deeper than %d directories", maxDepth))
		return nil
	case info.IsDir():
		return c.enter(d, name, at, info, ignored, depth)
	}
	why := refusal(at, info)
	if why == "" {
		return c.file(d, name, at, info, ignored)
	}
	if !ignored || info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		c.skip(at, why)
	}
	return nil
}

func (c *collector) enter(d *os.Root, name, at string, info fs.FileInfo, ignored bool, depth int) error {
	sub, err := d.OpenRoot(name)
	if errors.Is(err, fs.ErrPermission) {
		c.skip(at, "cannot be read")
		return nil
	}
	if err != nil {
		return err
	}
	defer sub.Close()
	opened, err := sub.Stat(".")
	if err != nil {
		return err
	}
	if !os.SameFile(info, opened) {
		return fmt.Errorf("%s changed while it was collected", plain(at))
	}
	err = c.dir(sub, at, ignored, depth+1)
	if errors.Is(err, fs.ErrPermission) {
		c.skip(at, "cannot be read")
		return nil
	}
	return err
}

func (c *collector) file(d *os.Root, name, at string, info fs.FileInfo, ignored bool) error {
	f, err := open(d, name, info)
	if errors.Is(err, fs.ErrPermission) {
		c.skip(at, "cannot be read")
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	exe, ok, err := identify(f, info.Size())
	if err != nil {
		return err
	}
	switch {
	case ok && !exe.runsOn(c.o.GOOS, c.o.GOARCH):
		why := "is " + exe.String()
		c.skip(at, why)
		if c.foreign.Why == "" || at < c.foreign.Path {
			c.foreign = Skipped{at, why}
		}
		return nil
	case !ok && ignored:
		return nil
	}
	c.native = c.native || ok
	return c.add(File{Path: at, Size: info.Size(), Executable: ok || info.Mode()&0o111 != 0, info: info})
}

func (c *collector) add(f File) error {
	if len(c.out.Files) == c.files {
		return fmt.Errorf("%w: the build made more than %d files", ErrTooLarge, c.files)
	}
	if f.Size > c.limit-c.bytes {
		return fmt.Errorf("%w: with %s (%d bytes) the build made more than the %d bytes that --artifact-limit allows",
			ErrTooLarge, f.Path, f.Size, c.limit)
	}
	c.bytes += f.Size
	c.out.Files = append(c.out.Files, f)
	return nil
}

func (c *collector) skip(at, why string) {
	if len(c.out.Skipped) == maxSkipped {
		c.out.Omitted++
		return
	}
	c.out.Skipped = append(c.out.Skipped, Skipped{plain(at), why})
}

// refusal says why something that is not a directory cannot be taken, or "".
func refusal(at string, info fs.FileInfo) string {
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		return "is a symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "is a FIFO"
	case mode&fs.ModeSocket != 0:
		return "is a socket"
	case mode&fs.ModeDevice != 0:
		return "is a device"
	case !mode.IsRegular():
		return "is not a regular file"
	case info.Sys().(*syscall.Stat_t).Nlink != 1:
		return "is a hard link"
	case len(at) > maxPath:
		return fmt.Sprintf("has a path of more than %d bytes", maxPath)
	case !plainPath(at):
		return "has a name that is not plain: control characters, one of " + reserved + ", a leading dash, a final dot or space, or no valid UTF-8"
	}
	return ""
}

// reserved are the characters that a file name cannot have on Windows, where
// some of them lead to another drive or into another stream of a file.
const reserved = `\:*?"<>|`

// plainPath reports whether every element of a slash path is safe to print,
// to type and to unpack, on Windows too.
func plainPath(at string) bool {
	if !utf8.ValidString(at) || strings.ContainsFunc(at, func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune(reserved, r) }) {
		return false
	}
	for name := range strings.SplitSeq(at, "/") {
		if strings.HasPrefix(name, "-") || strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") {
			return false
		}
	}
	return true
}

// plain is a path as it can be shown: quoted where it is not plain, cut where it is long.
func plain(at string) string {
	const shown = 200
	cut := ""
	if len(at) > shown {
		at, cut = at[:shown], "..."
	}
	if !plainPath(at) {
		at = strconv.QuoteToASCII(at)
	}
	return at + cut
}

var errChanged = errors.New("changed while it was collected")

// open opens the regular file that Lstat of name described as info, and
// nothing else: Root follows links that stay inside it, even with O_NOFOLLOW,
// so the file is compared. O_NONBLOCK keeps a FIFO from blocking the open.
func open(d *os.Root, name string, info fs.FileInfo) (*os.File, error) {
	f, err := d.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	opened, err := f.Stat()
	if err == nil && (!os.SameFile(info, opened) || !opened.Mode().IsRegular() || opened.Size() != info.Size()) {
		err = fmt.Errorf("%s %w", plain(name), errChanged)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
