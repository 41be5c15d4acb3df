package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/monochromegane/cargo/executor"
)

// packages are what a Makefile of a Go project usually calls, besides go itself.
var packages = []string{
	"base-files", "bash", "bzip2", "coreutils", "dash", "debianutils", "diffutils", "findutils", "git", "grep", "gzip",
	"hostname", "libc-bin", "make", "mawk", "patch", "sed", "tar", "unzip", "xz-utils", "zip",
}

// unwanted are packages that come as dependencies of scripts and documents
// which nothing in a build calls: git's own commands do not need perl.
var unwanted = regexp.MustCompile(`perl|^dpkg$|^git-man$`)

// dropped are the paths that no build reads.
var dropped = regexp.MustCompile(`^(etc/(init\.d|rc[0-6S]\.d|cron\..*|default|update-motd\.d)|var|` +
	`usr/share/(bash-completion|bug|debianutils|doc|doc-base|git-core/contrib|gitweb|info|lintian|locale|man|menu|perl5)|` +
	`usr/lib/[^/]+/gconv|usr/lib/git-core/git-(daemon|http-.*|imap-send|shell)|usr/(bin|lib/git-core)/(git-shell|scalar))(/|$)`)

// userland downloads the packages into a directory below dir and merges what is in them.
func userland(ctx context.Context, dir string) (files, error) {
	debs, err := download(ctx, filepath.Join(dir, "apt"))
	if err != nil {
		return nil, err
	}
	l := files{}
	for _, deb := range debs {
		if err := l.unpack(ctx, deb); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	l.finish()
	return l, nil
}

// download fetches the packages and what they depend on with the host's apt
// sources, but with a state of its own: nothing counts as installed, and the
// host's lists are neither needed nor changed.
func download(ctx context.Context, dir string) (debs []string, err error) {
	for _, sub := range []string{"lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	status := filepath.Join(dir, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return nil, err
	}
	apt := func(args ...string) ([]byte, error) {
		return command(ctx, filepath.Join(dir, "debs"), "apt-get", append([]string{"-qq",
			"-o", "Dir::State=" + dir, "-o", "Dir::State::lists=" + filepath.Join(dir, "lists"), "-o", "Dir::State::status=" + status,
			"-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "APT::Sandbox::User=",
			"-o", "Acquire::Retries=3", "-o", "APT::Install-Recommends=false"}, args...)...)
	}
	if _, err := apt("update"); err != nil {
		return nil, err
	}
	plan, err := apt(append([]string{"--simulate", "install"}, packages...)...)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(plan)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Inst" && !unwanted.MatchString(f[1]) {
			names = append(names, f[1])
		}
	}
	if _, err := apt(append([]string{"download"}, names...)...); err != nil {
		return nil, err
	}
	debs, err = filepath.Glob(filepath.Join(dir, "debs", "*.deb"))
	if err == nil && len(debs) != len(names) {
		err = fmt.Errorf("apt-get download gave %d of %d packages", len(debs), len(names))
	}
	slices.Sort(debs)
	return debs, err
}

// command runs a tool of the distribution and returns its standard output.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%w: the image is assembled with the tools of Debian or Ubuntu; elsewhere, give cargo serve an --image from a registry", err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// unpack adds the files of a package. Directories come from what lies in them.
func (l files) unpack(ctx context.Context, deb string) error {
	data, err := command(ctx, "", "dpkg-deb", "--fsys-tarfile", deb)
	if err != nil {
		return err
	}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		was := path.Clean(h.Name)
		name := merged(was)
		if dropped.MatchString(name) {
			continue
		}
		mode := fs.FileMode(h.Mode).Perm() // without set-user-id and set-group-id
		switch h.Typeflag {
		case tar.TypeReg:
			content := make([]byte, h.Size)
			if _, err := io.ReadFull(tr, content); err != nil {
				return err
			}
			l.bytes(name, mode, content)
		case tar.TypeLink:
			l[name] = file{kind: tar.TypeLink, mode: mode, link: merged(path.Clean(h.Linkname))}
		case tar.TypeSymlink:
			target := h.Linkname
			if name != was && !path.IsAbs(target) {
				target = path.Join("/", path.Dir(was), target)
			}
			l.symlink(name, target)
		}
	}
}

// merged moves what packages still ship in /bin, /sbin and /lib* below /usr.
func merged(name string) string {
	switch first, _, _ := strings.Cut(name, "/"); first {
	case "bin", "sbin", "lib", "lib32", "lib64", "libx32":
		return "usr/" + name
	}
	return name
}

// finish adds what the packages' own scripts would have made, and what the executors need.
func (l files) finish() {
	l.parents()
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if _, ok := l["usr/"+name]; ok {
			l.symlink(name, "usr/"+name)
		}
	}
	for name, target := range map[string]string{
		"usr/bin/sh": "dash", "usr/bin/awk": "mawk", "usr/bin/which": "which.debianutils", "etc/mtab": "../proc/self/mounts",
	} {
		l.symlink(name, target)
	}
	for _, name := range []string{"dev", "go", "home", "proc", "root", "run", "sys", "var"} {
		l.dir(name, 0o755)
	}
	for _, name := range []string{"tmp", "var/tmp"} {
		l.dir(name, 0o777|fs.ModeSticky)
	}
	// One user under two ids: what containerd maps into its user namespace runs as itself on Docker.
	passwd := "root:x:0:0:root:/root:/bin/sh\n"
	group := "root:x:0:\n"
	for _, id := range []int{executor.UID, executor.HostUID} {
		passwd += fmt.Sprintf("build:x:%d:%d:build:/go:/bin/sh\n", id, id)
		group += fmt.Sprintf("build:x:%d:\n", id)
	}
	l.bytes("etc/passwd", 0o644, []byte(passwd+"nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"))
	l.bytes("etc/group", 0o644, []byte(group+"nogroup:x:65534:\n"))
	l.bytes("etc/hosts", 0o644, []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n"))
	l.bytes("etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files\n"))
}
