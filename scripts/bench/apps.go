package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/monochromegane/cargo/gitsrc/gitsrctest"
	"github.com/monochromegane/cargo/scripts/modrepo"
)

// An app is a repository on the lab's own git host. Where file is set it has two commits.
type app struct {
	path    string // below the remote: owner/name
	version string // of the first commit
	main    string // directory of the main package; "" for an app with a Makefile
	file    string // of the main package, which the second commit adds a line to
}

const (
	remote     = "github.com"
	nextCommit = "v9.0.1" // version of the second commit
)

// Names of the apps.
const (
	hey    = "hey"
	fzf    = "fzf"
	gum    = "gum"
	peco   = "peco"
	second = "second" // made up, with the dependencies of gum
	chatty = "chatty" // made up, prints logBytes
	ticker = "ticker" // made up, prints lines that say when
	bulky  = "bulky"  // made up, makes a file of bulkyBytes
	crowd  = "crowd"  // made up, with many tags; see crowd.go
)

// catalog is every app. What is not made up is the zip of its module, unchanged.
var catalog = map[string]app{
	hey:    {path: "rakyll/hey", version: "v0.1.4", main: ".", file: "hey.go"},
	fzf:    {path: "junegunn/fzf", version: "v0.65.2", main: ".", file: "main.go"},
	gum:    {path: "charmbracelet/gum", version: "v0.17.0", main: ".", file: "main.go"},
	peco:   {path: "peco/peco", version: "v0.5.11", main: "./cmd/peco", file: "cmd/peco/peco.go"},
	second: {path: "bench/second", version: "v1.0.0", main: ".", file: "main.go"},
	chatty: {path: "bench/chatty", version: "v1.0.0"},
	ticker: {path: "bench/ticker", version: "v1.0.0"},
	bulky:  {path: "bench/bulky", version: "v1.0.0"},
	crowd:  {path: "bench/crowd", version: crowdVersion(0)},
}

// compiled says whether an app is built by the go command, so that it needs a library and modules.
func compiled(name string) bool { return catalog[name].main != "" }

// An appHost serves apps as git repositories on loopback.
type appHost struct {
	url    string
	dir    string
	names  []string // in the order in which they are built
	server *http.Server
	ended  chan struct{}
}

// order is that in which apps are made and built.
var order = []string{hey, peco, fzf, gum, second, chatty, ticker, bulky, crowd}

// newAppHost makes the repositories of the apps that are keys of needed below dir, and serves them until close.
func newAppHost(ctx context.Context, dir string, needed map[string][]string) (*appHost, error) {
	h := &appHost{dir: dir, ended: make(chan struct{})}
	for _, name := range order {
		if len(needed[name]) == 0 {
			continue
		}
		progress("making the repository of %s", name)
		if err := h.publish(ctx, name); err != nil {
			return nil, fmt.Errorf("make the repository of %s: %w", name, err)
		}
		h.names = append(h.names, name)
	}
	handler := gitsrctest.Handler(filepath.Join(dir, "bare"), nil)
	if len(needed[crowd]) > 0 {
		var err error
		if handler, err = newCrowd(ctx, handler); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h.url = "http://" + ln.Addr().String()
	h.server = &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(h.ended)
		_ = h.server.Serve(ln) // ends with close
	}()
	return h, nil
}

func (h *appHost) close() {
	_ = h.server.Close()
	<-h.ended
}

// work is the tree of an app, in which bare builds run.
func (h *appHost) work(name string) modrepo.Work {
	return modrepo.Work{Dir: filepath.Join(h.dir, "work", name)}
}

func (h *appHost) publish(ctx context.Context, name string) error {
	a, tree := catalog[name], h.work(name).Dir
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	w, err := modrepo.New(ctx, tree)
	if err != nil {
		return err
	}
	switch name {
	case second:
		err = secondFiles(ctx, w)
	case chatty:
		err = chattyFiles(w)
	case ticker:
		err = tickerFiles(w)
	case bulky:
		err = makefile(w, fmt.Sprintf("app:\n\t@head -c %d /dev/urandom > app\n", bulkyBytes))
	case crowd:
		err = crowdTags(ctx, w)
	default:
		_, err = w.Unpack(ctx, remote+"/"+a.path+"@"+a.version)
	}
	if err != nil {
		return err
	}
	if err := w.Commit(ctx, a.version); err != nil {
		return err
	}
	if a.file != "" {
		if err := addLine(filepath.Join(tree, a.file)); err != nil {
			return err
		}
		if err := w.Commit(ctx, nextCommit); err != nil {
			return err
		}
	}
	return w.Publish(ctx, filepath.Join(h.dir, "bare", filepath.FromSlash(a.path)+".git"))
}

// addLine is the second commit.
func addLine(file string) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "\nvar addedByTheSecondCommit = %q\n", nextCommit)
	return err
}

// secondFiles are a module that requires what gum requires and imports what it
// imports, as far as that can be imported.
func secondFiles(ctx context.Context, w modrepo.Work) error {
	if _, err := w.Unpack(ctx, remote+"/"+catalog[gum].path+"@"+catalog[gum].version); err != nil {
		return err
	}
	var list bytes.Buffer
	if err := command(ctx, w.Dir, goEnv, &list, "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "."); err != nil {
		return err
	}
	mod, err := os.ReadFile(filepath.Join(w.Dir, "go.mod"))
	if err != nil {
		return err
	}
	sum, err := os.ReadFile(filepath.Join(w.Dir, "go.sum"))
	if err != nil {
		return err
	}
	gumPath := remote + "/" + catalog[gum].path
	var main strings.Builder
	main.WriteString("package main\n\nimport (\n")
	for p := range strings.FieldsSeq(list.String()) {
		if p != gumPath && !strings.HasPrefix(p, gumPath+"/") && !strings.Contains("/"+p+"/", "/internal/") {
			fmt.Fprintf(&main, "\t_ %q\n", p)
		}
	}
	main.WriteString(")\n\nfunc main() { println(\"second\") }\n")
	if err := clear(w.Dir); err != nil {
		return err
	}
	return writeFiles(w.Dir, map[string]string{
		"go.mod":  strings.Replace(string(mod), "module "+gumPath, "module "+remote+"/"+catalog[second].path, 1),
		"go.sum":  string(sum),
		"main.go": main.String(),
	})
}

// clear removes all files of a work tree.
func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != ".git" {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// logBytes is what chatty prints.
const logBytes = 100 << 20

// chattyFiles are a Makefile that prints logBytes in lines of 1000 bytes.
func chattyFiles(w modrepo.Work) error {
	line := strings.Repeat("0123456789", 100)[:999]
	return makefile(w, fmt.Sprintf("app:\n\t@yes %s | head -c %d\n\t@cp Makefile app\n", line, logBytes))
}

func makefile(w modrepo.Work, rules string) error {
	return writeFiles(w.Dir, map[string]string{"Makefile": rules})
}

func writeFiles(dir string, files map[string]string) error {
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}
