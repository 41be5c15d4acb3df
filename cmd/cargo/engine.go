package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/monochromegane/cargo/executor"
	"github.com/monochromegane/cargo/executor/containerd"
	"github.com/monochromegane/cargo/executor/docker"
	"github.com/monochromegane/cargo/stdlib"
)

// An engine is an executor with its images.
type engine interface {
	executor.Executor
	EnsureImage(ctx context.Context, ref string, progress func(msg string, args ...any)) (executor.Image, error)
	// ProbeFiles fails where the engine does not see this program's files
	// and mounts in dir.
	ProbeFiles(ctx context.Context, image executor.Image, dir string) error
	Close() error
}

// pingTimeout is how long an engine may take to answer.
const pingTimeout = 5 * time.Second

// openEngine connects to the engine called name and makes sure that it answers.
func openEngine(ctx context.Context, cfg config, name string, log *slog.Logger) (engine, error) {
	owner := owner(cfg.dataDir)
	var e engine
	var err error
	if name == "docker" {
		e, err = docker.New(docker.Options{Host: cfg.dockerHost, CertPath: cfg.dockerCertPath, APIVersion: os.Getenv("DOCKER_API_VERSION"), Owner: owner, Limits: cfg.limits, Log: log})
	} else {
		e, err = containerd.New(containerd.Options{Address: cfg.containerdAddress, Owner: owner, Limits: cfg.limits, Log: log})
	}
	if err != nil {
		return nil, usageError{fmt.Errorf("--executor %s: %w", name, err)}
	}
	pctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	info, err := e.Ping(pctx)
	if err != nil {
		return nil, usageError{errors.Join(fmt.Errorf("--executor %s: %w", name, err), e.Close())}
	}
	log.Info("executor answers", "executor", info.Name, "version", info.Version)
	return e, nil
}

// owner labels what this server makes in an engine, so that two servers on
// one host leave each other's containers alone.
func owner(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return hex.EncodeToString(sum[:8])
}

// readyImage makes the engine hold the builder image and proves that a build can run in it.
func readyImage(ctx context.Context, cfg config, e engine, log *slog.Logger) (executor.Image, error) {
	image, err := e.EnsureImage(ctx, cfg.image, log.Info)
	if err != nil {
		return image, usageError{fmt.Errorf("--image: %w; name one that can be pulled, or an archive (`make builder-image` makes bin/builder.tar)", err)}
	}
	if err := e.ProbeFiles(ctx, image, cfg.workspaceDir); err != nil {
		return image, usageError{fmt.Errorf("--executor %s: %w", cfg.executor, err)}
	}
	return image, nil
}

// inspect asks the builder image what go command it has. That it has none is
// put right by naming another image; that the engine is gone is not.
func inspect(ctx context.Context, cfg config, e engine, image executor.Image) (stdlib.Toolchain, error) {
	toolchain, err := stdlib.Inspect(ctx, e, image.Ref)
	switch {
	case err == nil:
		return toolchain, nil
	case errors.Is(err, executor.ErrUnavailable):
		return toolchain, fmt.Errorf("--executor %s: %w", cfg.executor, err)
	}
	return toolchain, usageError{fmt.Errorf("--image %s: %w; name an image with Go in it", cfg.image, err)}
}

// reapFormer removes what a server on this data directory left in the engine
// that it used before, when that was another one. It is tried again at the
// next start if that engine does not answer now.
func reapFormer(ctx context.Context, cfg config, log *slog.Logger) error {
	path := filepath.Join(cfg.dataDir, "executor")
	former, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if name := strings.TrimSpace(string(former)); name != "" && name != cfg.executor {
		e, err := openEngine(ctx, cfg, name, log)
		if err != nil {
			log.Warn("cannot look for containers left in the former executor", "executor", name, "err", err)
			return nil
		}
		n, err := e.Reap(ctx)
		if err := errors.Join(err, e.Close()); err != nil {
			return fmt.Errorf("reap in the former executor %s: %w", name, err)
		}
		log.Info("reaped in the former executor", "executor", name, "containers", n)
	}
	return os.WriteFile(path, []byte(cfg.executor+"\n"), 0o600)
}
