package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// preparedOn are the systems whose standard library is warm on both sides, on
// this machine's processor.
var preparedOn = []string{"linux", "windows"}

// platforms is what --prepare takes.
func platforms(systems []string) string {
	if len(systems) == 0 {
		return "none"
	}
	var list []string
	for _, goos := range systems {
		list = append(list, goos+"/"+runtime.GOARCH)
	}
	return strings.Join(list, ",")
}

// seed makes what the builds of apps start from: a data directory in which nothing
// but the standard library is compiled, one that has the modules too, and the
// same for bare builds, with the compiler that the image has.
func (l *lab) seed(ctx context.Context) error {
	if l.canPrepare {
		progress("preparing the standard library for %s", platforms(preparedOn))
	} else {
		l.report.note("The standard library is not prepared: this cargo has no --prepare.")
	}
	l.prepared, l.warm = filepath.Join(l.scratch, "prepared"), filepath.Join(l.scratch, "warm")
	if err := l.serveOn(ctx, l.prepared, nil, func(*server) error { return nil }); err != nil {
		return err
	}
	toolchain, err := l.warmModules(ctx)
	if err != nil {
		return err
	}
	l.bare, err = l.newBare(ctx, toolchain)
	return err
}

// warmModules builds everything once, keeps nothing of it but the modules, and
// says which Go compiled it.
func (l *lab) warmModules(ctx context.Context) (toolchain string, err error) {
	once := filepath.Join(l.scratch, "once")
	if err := copyTree(ctx, l.prepared, once); err != nil {
		return "", err
	}
	err = l.serveOn(ctx, once, nil, func(s *server) error {
		for _, name := range l.apps.names {
			for _, goos := range l.systems(name) {
				progress("building %s for %s once, for its modules", name, goos)
				id, err := s.post(ctx, target(name, goos, catalog[name].version))
				if err != nil {
					return err
				}
				r, err := s.wait(ctx, id)
				if err != nil {
					return fmt.Errorf("%s for %s: %w", name, goos, err)
				}
				if toolchain == "" {
					if toolchain, err = s.compiler(ctx, r); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if err := copyTree(ctx, l.prepared, l.warm); err != nil {
		return "", err
	}
	modules := filepath.Join("cache", "modules")
	if err := remove(filepath.Join(l.warm, modules)); err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(l.warm, "cache"), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return toolchain, errors.Join(
		copyTree(ctx, filepath.Join(once, modules), filepath.Join(l.warm, modules)),
		remove(once),
	)
}

// systems are what the chosen cases build an app for. An app with a Makefile has no modules.
func (l *lab) systems(name string) []string {
	if !compiled(name) {
		return nil
	}
	return l.needed[name]
}

// compiler is the version of Go that compiled what r made.
func (s *server) compiler(ctx context.Context, r record) (string, error) {
	resp, err := s.do(ctx, http.MethodGet, r.Links.Download)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("download %s: %s", r.Links.Download, resp.Status)
	}
	unzipped, err := gzip.NewReader(resp.Body)
	if err != nil {
		return "", err
	}
	archive := tar.NewReader(unzipped)
	for {
		if _, err := archive.Next(); err != nil {
			return "", fmt.Errorf("find a Go program in %s: %w", r.Links.Download, err)
		}
		content, err := io.ReadAll(io.LimitReader(archive, 1<<28))
		if err != nil {
			return "", err
		}
		if info, err := buildinfo.Read(bytes.NewReader(content)); err == nil {
			return info.GoVersion, nil
		}
	}
}
