package executortest

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/monochromegane/cargo/executor"
)

func testPing(r *run) {
	info, err := r.Executor.Ping(r.Context())
	if err != nil || info.Name == "" || info.Version == "" {
		r.Errorf("Ping = %+v, %v", info, err)
	}
}

func testExitZero(r *run) {
	if out := r.output(r.step("echo hello")); out != "hello\n" {
		r.Errorf("stdout %q", out)
	}
}

// 2 is also what make exits with when the kernel has killed its child, 137 what
// a shell reports then, and 255 what a client library says that knows nothing.
func testExitStatus(r *run) {
	for _, code := range []int{1, 2, 127, 137, 255} {
		_, _, err := r.run(r.Context(), r.step("exit "+strconv.Itoa(code)))
		r.exits(err, code)
	}
}

func testExitSignal(r *run) {
	const sigsegv = 11
	_, _, err := r.run(r.Context(), r.command("probe", "segv"))
	r.exits(err, 128+sigsegv)
}

func testCommandMissing(r *run) {
	_, _, err := r.run(r.Context(), r.command("no-such-command"))
	if err == nil || errors.Is(err, executor.ErrNoImage) || errors.Is(err, executor.ErrUnavailable) {
		r.Errorf("Run = %v", err)
	}
}

func testImageMissing(r *run) {
	step := r.step("exit 0")
	step.Image = "localhost/cargo/no-such-image:1"
	_, _, err := r.run(r.Context(), step)
	r.fault(err)
	if !errors.Is(err, executor.ErrNoImage) {
		r.Errorf("Run = %v, want %v", err, executor.ErrNoImage)
	}
}

// The step ends with its command, whatever else still runs and holds the
// output open.
func testLeftRunning(r *run) {
	if out := r.output(r.step("sleep 3600 & echo done")); out != "done\n" {
		r.Errorf("stdout %q", out)
	}
}

func testArgs(r *run) {
	want := []string{"", " ", "$HOME", "`id`", "$(id)", "a;b", "a && b", "*", "'", `"`, `\`, "a\nb", "-x", "--", "ü", "%s", "#", "|", ">x"}
	var got []string
	out := r.output(r.command(append([]string{"probe", "args"}, want...)...))
	if err := json.Unmarshal([]byte(out), &got); err != nil || !slices.Equal(got, want) {
		r.Errorf("arguments %q, want %q (%v)", got, want, err)
	}
}

func testEnv(r *run) {
	step := r.step(`printf '%s|' "$IMAGE" "$ADDED" "$EMPTY" "$ODD"`)
	step.Env = []string{"IMAGE=overridden", "ADDED=1", "EMPTY=", "ODD=a=b $c \"'\n;"}
	out := r.output(step)
	if want := "overridden|1||a=b $c \"'\n;|"; out != want {
		r.Errorf("environment %q, want %q", out, want)
	}
	// The image's own environment is there where the step does not replace it.
	if out := r.output(r.step("echo $IMAGE $PATH")); !strings.HasPrefix(out, "executortest /") {
		r.Errorf("environment of the image: %q", out)
	}
	// Nothing of the server's own is.
	if out := r.output(r.step("env")); strings.Contains(out, "TMPDIR") || strings.Contains(out, orphanEnv) {
		r.Errorf("environment %q", out)
	}
}

func testDir(r *run) {
	step := r.step("pwd")
	step.Dir = "/tmp"
	if out := r.output(step); out != "/tmp\n" {
		r.Errorf("working directory %q", out)
	}
}

// The image of the suite names another directory, and that must not matter.
func testDirDefault(r *run) {
	if out := r.output(r.step("pwd")); out != "/\n" {
		r.Errorf("working directory %q", out)
	}
}

func testStdin(r *run) {
	if out := r.output(r.step("cat; echo end")); out != "end\n" {
		r.Errorf("stdout %q", out)
	}
}
