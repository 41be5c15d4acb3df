package artifact_test

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/monochromegane/cargo/artifact"
)

// newTree makes a tree with files at slash paths; a content that begins with
// "#!" makes the file executable.
func newTree(t *testing.T, files map[string]string) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(p, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func linux(o artifact.CollectOptions) artifact.CollectOptions {
	o.GOOS, o.GOARCH = "linux", "amd64"
	return o
}

func among(paths ...string) func(string) bool {
	return func(p string) bool { return slices.Contains(paths, p) }
}

func ignoring(paths ...string) func(string, bool) bool {
	return func(p string, _ bool) bool { return slices.Contains(paths, p) }
}

// names are the collected paths, those of executables with a star.
func names(c artifact.Collected) []string {
	var out []string
	for _, f := range c.Files {
		star := ""
		if f.Executable {
			star = "*"
		}
		out = append(out, f.Path+star)
	}
	return out
}

func TestCollectTakesWhatTheBuildAdded(t *testing.T) {
	linuxAMD64, windows := string(linuxBinary()), string(peSample(0x8664, 0x22))
	for _, tc := range []struct {
		name    string
		files   map[string]string
		o       artifact.CollectOptions
		want    []string
		skipped []artifact.Skipped
	}{
		{
			name:  "binary beside the sources",
			files: map[string]string{"main.go": "package main", "app": linuxAMD64, ".git/HEAD": "ref"},
			o:     artifact.CollectOptions{Tracked: among("main.go")},
			want:  []string{"app*"},
		},
		{
			name:  "ignored: the binary, not the rest",
			files: map[string]string{"bin/app": linuxAMD64, "bin/cache/x.json": "{}", "bin/run.sh": "#!/bin/sh", "LICENSES": "text"},
			o:     artifact.CollectOptions{Ignored: ignoring("bin")},
			want:  []string{"LICENSES", "bin/app*"},
		},
		{
			name:  "a whole directory",
			files: map[string]string{"b": linuxAMD64, "a": linuxAMD64},
			want:  []string{"a*", "b*"},
		},
		{
			name:  "only other files, as the old Cargo packed them",
			files: map[string]string{"site/index.html": "<p>", "run": "#!/bin/sh", "main.go": "package main"},
			o:     artifact.CollectOptions{Tracked: among("main.go")},
			want:  []string{"run*", "site/index.html"},
		},
		{
			name:    "another platform beside the target",
			files:   map[string]string{"app": linuxAMD64, "app.exe": windows},
			want:    []string{"app*"},
			skipped: []artifact.Skipped{{Path: "app.exe", Why: "is a windows/amd64 executable"}},
		},
		{
			name: "objects and libraries are ordinary files",
			files: map[string]string{
				"app": linuxAMD64, "x.o": string(elfSample{kind: elf.ET_REL, machine: elf.EM_AARCH64}.bytes()),
				"x.so":  string(elfSample{kind: elf.ET_DYN, machine: elf.EM_AARCH64, segment: elf.PT_DYNAMIC, content: make([]byte, 32)}.bytes()),
				"x.a":   "!<arch>\n",
				"x.dll": string(peSample(0x8664, 0x2022)), "X.class": string(javaClass()), "short": "\x7fELF", "empty": "",
			},
			o:    artifact.CollectOptions{Ignored: ignoring("x.o")},
			want: []string{"X.class", "app*", "empty", "short", "x.a", "x.dll", "x.so"},
		},
		{
			name:  "a tracked file that became a directory",
			files: map[string]string{"app/app": linuxAMD64},
			o:     artifact.CollectOptions{Tracked: among("app")},
			want:  []string{"app/app*"},
		},
		{
			name:  "no .git at any depth and in any case",
			files: map[string]string{"app": linuxAMD64, "sub/.git/hooks/pre-commit": "#!/bin/sh", "x/.GIT": "gitdir: y"},
			want:  []string{"app*"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, _ := newTree(t, tc.files)
			c, err := artifact.Collect(t.Context(), root, linux(tc.o))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, names(c)); d != "" {
				t.Errorf("files (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tc.skipped, c.Skipped); d != "" {
				t.Errorf("skipped (-want +got):\n%s", d)
			}
		})
	}
}

func TestCollectTellsPlatformsApart(t *testing.T) {
	le := elfSample{machine: elf.EM_X86_64}
	with := func(f func(*elfSample)) []byte { s := le; f(&s); return s.bytes() }
	for _, tc := range []struct {
		name    string
		content []byte
		is      string   // space-separated platforms that accept it
		not     []string // with the reason given for the first
		why     string
	}{
		{"go linux", linuxBinary(), "linux/amd64", []string{"freebsd/amd64", "android/amd64", "linux/arm64"}, "is a linux/amd64 executable"},
		{"go android", with(func(s *elfSample) { s.goos, s.goarch, s.machine = "android", "arm64", elf.EM_AARCH64 }), "android/arm64", []string{"linux/arm64"}, "is an android/arm64 executable"},
		{"go illumos", with(func(s *elfSample) { s.goos, s.goarch = "illumos", "amd64" }), "illumos/amd64", []string{"solaris/amd64"}, "is an illumos/amd64 executable"},
		{"build information against the header", with(func(s *elfSample) { s.goos, s.goarch = "linux", "arm64" }), "linux/amd64 freebsd/amd64", []string{"linux/arm64"}, "is an ELF executable for amd64"},
		{"plain elf", le.bytes(), "linux/amd64 freebsd/amd64 solaris/amd64 android/amd64", []string{"linux/386", "windows/amd64"}, "is an ELF executable for amd64"},
		{"elf of another machine", with(func(s *elfSample) { s.machine = elf.EM_SPARCV9 }), "", []string{"linux/amd64"}, "is an ELF executable for a machine that Go does not know"},
		{"elf big endian", with(func(s *elfSample) { s.machine, s.order = elf.EM_PPC64, binary.BigEndian }), "linux/ppc64", []string{"linux/ppc64le"}, "is an ELF executable for ppc64"},
		{"elf mips64le", with(func(s *elfSample) { s.machine = elf.EM_MIPS }), "linux/mips64le", []string{"linux/mipsle", "linux/mips64"}, "is an ELF executable for mips64le"},
		{"elf freebsd abi", with(func(s *elfSample) { s.abi = elf.ELFOSABI_FREEBSD }), "freebsd/amd64", []string{"linux/amd64"}, "is a freebsd/amd64 executable"},
		{"elf netbsd note", with(func(s *elfSample) { s.note = "NetBSD" }), "netbsd/amd64", []string{"linux/amd64"}, "is a netbsd/amd64 executable"},
		{"elf gnu tag", with(func(s *elfSample) { s.note = "GNU" }), "linux/amd64 android/amd64", []string{"freebsd/amd64"}, "is an ELF executable for amd64"},
		{"elf pie", with(func(s *elfSample) {
			s.kind, s.segment, s.content = elf.ET_DYN, elf.PT_INTERP, []byte("/lib/ld.so\x00")
		}), "linux/amd64", []string{"linux/arm64"}, "is an ELF executable for amd64"},
		{"elf static pie", with(func(s *elfSample) {
			s.kind, s.segment = elf.ET_DYN, elf.PT_DYNAMIC
			s.content = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(elf.DT_FLAGS_1)), uint64(elf.DF_1_PIE))
		}), "linux/amd64", []string{"linux/arm64"}, "is an ELF executable for amd64"},
		{"pe arm64", peSample(0xaa64, 0x22), "windows/arm64", []string{"windows/amd64"}, "is a windows/arm64 executable"},
		{"macho macos", machoSample(cpuARM64, 2, 1), "darwin/arm64", []string{"ios/arm64", "darwin/amd64"}, "is a darwin/arm64 executable"},
		{"macho ios", machoSample(cpuARM64, 2, 2), "ios/arm64", []string{"darwin/arm64"}, "is an ios/arm64 executable"},
		{"macho says nothing", machoSample(cpuAMD64, 2, 0), "ios/amd64 darwin/amd64", []string{"linux/amd64"}, "is a Mach-O executable for amd64"},
		{"universal", universalSample(machoSample(cpuAMD64, 2, 1), machoSample(cpuARM64, 2, 1)), "darwin/amd64 darwin/arm64", []string{"ios/arm64"}, "is a universal Mach-O executable for amd64 and arm64"},
		{"wasm js", wasmSample("gojs"), "js/wasm", []string{"wasip1/wasm"}, "is a js/wasm executable"},
		{"wasm wasip1", wasmSample("wasi_snapshot_preview1"), "wasip1/wasm", []string{"js/wasm"}, "is a wasip1/wasm executable"},
		{"wasm tinygo js", wasmSample("wasi_snapshot_preview1", "gojs"), "js/wasm", []string{"wasip1/wasm"}, "is a js/wasm executable"},
		{"wasm of no system", wasmSample("env"), "js/wasm wasip1/wasm", []string{"linux/amd64"}, "is a wasm executable for wasm"},
		{"plan 9", plan9Sample(0x8a97), "plan9/amd64", []string{"plan9/386"}, "is a plan9/amd64 executable"},
		{"xcoff", xcoffSample(0x01f7, 2), "aix/ppc64", []string{"linux/ppc64"}, "is an aix/ppc64 executable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, _ := newTree(t, map[string]string{"bin/app": string(tc.content)})
			collect := func(p string) (artifact.Collected, error) {
				goos, goarch, _ := strings.Cut(p, "/")
				return artifact.Collect(t.Context(), root, artifact.CollectOptions{GOOS: goos, GOARCH: goarch, Ignored: ignoring("bin")})
			}
			for _, p := range strings.Fields(tc.is) {
				if c, err := collect(p); err != nil || len(c.Files) != 1 {
					t.Errorf("%s: %v, %v; want it accepted", p, names(c), err)
				}
			}
			for _, p := range tc.not {
				c, err := collect(p)
				if !errors.Is(err, artifact.ErrWrongPlatform) {
					t.Errorf("%s: %v, %v; want ErrWrongPlatform", p, names(c), err)
					continue
				}
				if d := cmp.Diff([]artifact.Skipped{{Path: "bin/app", Why: tc.why}}, c.Skipped); d != "" {
					t.Errorf("%s: skipped (-want +got):\n%s", p, d)
				}
			}
		})
	}
}

func TestCollectKnowsARealBinary(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := newTree(t, map[string]string{"bin/self": string(content)})
	c, err := artifact.Collect(t.Context(), root, artifact.CollectOptions{GOOS: runtime.GOOS, GOARCH: runtime.GOARCH, Ignored: ignoring("bin")})
	if err != nil || len(c.Files) != 1 {
		t.Errorf("own platform: %v, %v", names(c), err)
	}
	_, err = artifact.Collect(t.Context(), root, artifact.CollectOptions{GOOS: "freebsd", GOARCH: runtime.GOARCH})
	if !errors.Is(err, artifact.ErrWrongPlatform) {
		t.Errorf("freebsd: %v, want ErrWrongPlatform", err)
	}
}

func TestCollectRefusesWhatIsNoPlainFile(t *testing.T) {
	root, dir := newTree(t, map[string]string{
		"app": string(linuxBinary()), "out/one": "x", "-rf": "x", "a\nb": "x", "caf\xe9": "x", "back\\slash": "x", "bidi\u202e": "x",
		"sub/-dash/x": "x", "C:/CON": "x", "app:stream": "x", "what?": "x", "dot.": "x", "sub./x": "x", "space ": "x", "two words": "x", "hidden/link-target": "x",
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	must(os.Symlink("/etc/passwd", at("abs")))
	must(os.Symlink("../../../etc", at("up")))
	must(os.Symlink("app", at("inside")))
	must(os.Symlink("out", at("dirlink")))
	must(os.Symlink("x", at("hidden/l")))
	must(os.Link(at("out/one"), at("out/two")))
	must(syscall.Mkfifo(at("fifo"), 0o666))
	must(os.Chmod(at("app"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(os.Truncate(at("hidden/link-target"), 1<<40)) // ignored, sparse: never read whole
	if err := syscall.Mknod(at("null"), syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		must(os.WriteFile(at("null"), nil, 0o644)) // not root
		must(os.Remove(at("null")))
		must(syscall.Mkfifo(at("null"), 0o666))
	}
	deep := strings.TrimSuffix(strings.Repeat("d/", 120), "/")
	must(os.MkdirAll(at(deep), 0o755))
	must(os.WriteFile(at(deep+"/bottom"), []byte("x"), 0o644))
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("l", 200)+"/", 6), "/")
	must(os.MkdirAll(filepath.Dir(at(long)), 0o755))
	must(os.WriteFile(at(long), []byte("x"), 0o644))

	c, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{Ignored: ignoring("hidden")}))
	must(err)
	if d := cmp.Diff([]string{"app*", "two words"}, names(c)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	const weird = "has a name that is not plain: control characters, one of \\:*?\"<>|, a leading dash, a final dot or space, or no valid UTF-8"
	got := map[string]string{}
	for _, s := range c.Skipped {
		got[s.Path] = s.Why
	}
	want := map[string]string{
		"abs": "is a symbolic link", "up": "is a symbolic link", "inside": "is a symbolic link", "dirlink": "is a symbolic link",
		"out/one": "is a hard link", "out/two": "is a hard link", "fifo": "is a FIFO", "null": got["null"],
		`"-rf"`: weird, `"a\nb"`: weird, `"caf\xe9"`: weird, `"back\\slash"`: weird, `"bidi\u202e"`: weird, `"sub/-dash/x"`: weird,
		`"C:/CON"`: weird, `"app:stream"`: weird, `"what?"`: weird, `"dot."`: weird, `"sub./x"`: weird, `"space "`: weird,
		deep[:200] + "...": "lies deeper than 100 directories",
		long[:200] + "...": "has a path of more than 1024 bytes",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("skipped (-want +got):\n%s", d)
	}
	if got["null"] != "is a device" && got["null"] != "is a FIFO" {
		t.Errorf("null %q", got["null"])
	}
}

func TestCollectErrors(t *testing.T) {
	windows := string(peSample(0x8664, 0x22))
	for _, tc := range []struct {
		name  string
		files map[string]string
		o     artifact.CollectOptions
		want  error
		text  string
	}{
		{"nothing", nil, artifact.CollectOptions{}, artifact.ErrNoArtifact, "added no executable for linux/amd64"},
		{"nothing new", map[string]string{"a": string(linuxBinary())}, artifact.CollectOptions{Tracked: among("a")}, artifact.ErrNoArtifact, ""},
		{"only ignored", map[string]string{"a.log": "x"}, artifact.CollectOptions{Ignored: ignoring("a.log")}, artifact.ErrNoArtifact, ""},
		{"only refused", map[string]string{"-a": "x"}, artifact.CollectOptions{}, artifact.ErrNoArtifact, `"-a" has a name`},
		{"wrong platform", map[string]string{"bin/a": windows, "README": "x"}, artifact.CollectOptions{}, artifact.ErrWrongPlatform, "no executable for linux/amd64: bin/a is a windows/amd64 executable"},
		{"too many bytes", map[string]string{"a": "12345", "b": "12345"}, artifact.CollectOptions{Limit: 9}, artifact.ErrTooLarge, "--artifact-limit"},
		{"too many files", map[string]string{"a": "", "b": ""}, artifact.CollectOptions{Files: 1}, artifact.ErrTooLarge, "more than 1 files"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root, _ := newTree(t, tc.files)
			_, err := artifact.Collect(t.Context(), root, linux(tc.o))
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("Collect = %v, want %v with %q", err, tc.want, tc.text)
			}
		})
	}
	t.Run("exactly the limit", func(t *testing.T) {
		root, _ := newTree(t, map[string]string{"a": "12345", "b": "12345"})
		if _, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{Limit: 10, Files: 2})); err != nil {
			t.Error(err)
		}
	})
	t.Run("a sparse terabyte", func(t *testing.T) {
		root, dir := newTree(t, map[string]string{"a": "x"})
		if err := os.Truncate(filepath.Join(dir, "a"), 1<<40); err != nil {
			t.Fatal(err)
		}
		if _, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{})); !errors.Is(err, artifact.ErrTooLarge) {
			t.Errorf("Collect = %v, want ErrTooLarge", err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		root, _ := newTree(t, map[string]string{"a": "x"})
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		if _, err := artifact.Collect(ctx, root, linux(artifact.CollectOptions{})); !errors.Is(err, cause) {
			t.Errorf("Collect = %v, want the cause", err)
		}
	})
}

func TestCollectBoundsWhatItLists(t *testing.T) {
	files := map[string]string{"app": string(linuxBinary())}
	for i := range 130 {
		files[fmt.Sprintf("-%03d", i)] = ""
	}
	root, _ := newTree(t, files)
	c, err := artifact.Collect(t.Context(), root, linux(artifact.CollectOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Skipped) != 100 || c.Omitted != 30 {
		t.Errorf("%d skipped and %d omitted, want 100 and 30", len(c.Skipped), c.Omitted)
	}
}
