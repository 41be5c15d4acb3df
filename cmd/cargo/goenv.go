package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"time"
)

// moduleVars are the settings of the go command that say where modules come
// from and how they are trusted.
var moduleVars = []string{"GOPROXY", "GOSUMDB", "GONOSUMDB", "GONOPROXY", "GOPRIVATE"}

// moduleEnv is this host's own setting: what the go command says where there
// is one, since it knows its configuration file, and else the environment.
func moduleEnv(ctx context.Context) map[string]string {
	env := map[string]string{}
	for _, v := range moduleVars {
		env[v] = os.Getenv(v)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append([]string{"env", "-json"}, moduleVars...)...)
	cmd.Dir = "/" // no module and no toolchain line may have a say
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local", "GOWORK=off")
	if out, err := cmd.Output(); err == nil {
		_ = json.Unmarshal(out, &env) // what it does not say stays as the environment has it
	}
	return env
}
