package main

import (
	"archive/tar"
	"archive/zip"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"runtime"
	"strings"
)

// goVersion is the toolchain in the image. Builds that ask for a newer one
// fetch it through the module proxy.
const goVersion = "1.26.8"

// goSums are the checksums of the toolchain's module by architecture, as the
// checksum database has them. The go command verifies them too, but may be told not to.
var goSums = map[string]string{
	"amd64": "h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM=",
	"arm64": "h1:sYL/O6MqS68ML0kjsQ36WoYIpJqkw60TxizWUYUKQMc=",
}

// unneeded are the parts of a toolchain that serve the development of Go itself.
var unneeded = regexp.MustCompile(`^(api|doc|misc|test)/|/testdata/|_test\.go$`)

type toolchain struct {
	*zip.ReadCloser
	files files
}

// goToolchain has the go command download the toolchain's module and verify
// its checksum. The caller closes what it returns, after the files are read.
func goToolchain(ctx context.Context, dir string) (*toolchain, error) {
	sum, ok := goSums[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no checksum of go%s is known for %s", goVersion, runtime.GOARCH)
	}
	module := fmt.Sprintf("golang.org/toolchain@v0.0.1-go%s.linux-%s", goVersion, runtime.GOARCH)
	out, err := command(ctx, dir, "go", "mod", "download", "-json", module)
	if err != nil {
		return nil, err
	}
	var info struct{ Zip, Sum string }
	if err := json.Unmarshal(out, &info); err != nil {
		return nil, fmt.Errorf("go mod download %s: %w", module, err)
	}
	if info.Sum != sum {
		return nil, fmt.Errorf("%s has the checksum %s, want %s", module, info.Sum, sum)
	}
	z, err := zip.OpenReader(info.Zip)
	if err != nil {
		return nil, err
	}
	t := &toolchain{ReadCloser: z, files: files{}}
	for _, f := range z.File {
		name, ok := strings.CutPrefix(f.Name, module+"/")
		if !ok || unneeded.MatchString(name) {
			continue
		}
		e := file{kind: tar.TypeReg, mode: 0o644, size: int64(f.UncompressedSize64), open: f.Open}
		if strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "pkg/tool/") { // module zips carry no modes
			e.mode = 0o755
		}
		t.files[path.Join("usr/local/go", name)] = e
	}
	return t, nil
}
