package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// An nginx serves the files of a directory.
type nginx struct {
	*process
	url string
}

// nginxConf has everything that nginx writes below its prefix, %[1]s. Its
// workers are as many as Cargo may use processors, %[2]d.
const nginxConf = `daemon off;
user root;
worker_processes %[2]d;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
	access_log off;
	sendfile on;
	default_type application/gzip;
	keepalive_requests 1000000;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[3]s;
		root %[4]s;
	}
}
`

// startNginx starts an nginx that serves what is in dir.
func (l *lab) startNginx(ctx context.Context, dir string) (*nginx, error) {
	program, err := l.tool("nginx", "nginx/usr/sbin/nginx")
	if err != nil {
		return nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	prefix := filepath.Join(dir, "nginx")
	if err := os.Mkdir(prefix, 0o755); err != nil {
		return nil, err
	}
	conf := filepath.Join(prefix, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, prefix, runtime.NumCPU(), address, dir), 0o644); err != nil {
		return nil, err
	}
	p, err := start(ctx, prefix+".log", nil, program, "-p", prefix, "-e", "stderr", "-c", conf)
	if err != nil {
		return nil, err
	}
	if err := p.listens(ctx, address); err != nil {
		p.stop()
		return nil, err
	}
	return &nginx{p, "http://" + address}, nil
}
