package worker

import (
	"math"
	"strconv"

	"github.com/monochromegane/cargo/executor"
)

// env is the environment of every step, the image's own beneath it.
func (j *job) env() []string {
	env := []string{
		"GOOS=" + j.build.GOOS,
		"GOARCH=" + j.build.GOARCH,
		"CGO_ENABLED=0",
		"HOME=" + goPath + "/home",
		"GOPATH=" + goPath,
		"GOCACHE=" + cacheDir,
		"GOMODCACHE=" + modDir,
		"GOTMPDIR=" + tmpDir, // /tmp counts as memory
		"TMPDIR=" + tmpDir,
		// git's answer differs with the image's git; the recipe stamps the version.
		// -trimpath is part of the go command's keys: a Makefile that does not say
		// it would find nothing of what was compiled for others.
		"GOFLAGS=-buildvcs=false -trimpath",
		"GOPROXY=http://" + executor.DoorAddr,
		"GOTOOLCHAIN=auto", // the official image says local; a newer one comes through the door
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(j.tree.Time.Unix(), 10),
		"TZ=UTC",
		"LC_ALL=C.UTF-8",
	}
	if cpus := j.Limits.CPUs; cpus > 0 {
		// Without /sys the Go runtime cannot see the quota.
		env = append(env, "GOMAXPROCS="+strconv.Itoa(int(math.Ceil(cpus))))
	}
	env = append(env, j.ModuleEnv...)
	return append(env, j.plan.Env...)
}
