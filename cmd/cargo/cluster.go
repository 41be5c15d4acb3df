package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/monochromegane/cargo/queue"
)

// cluster is where --queue leads, nil if it is not set.
func (p *parser) cluster() *queue.Cluster {
	urls := p.queueURLs()
	if len(p.c.StringSlice("queue")) == 0 {
		for _, flag := range []string{"queue-creds", "queue-token-file", "queue-ca", "queue-cert", "queue-key"} {
			if p.c.String(flag) != "" {
				p.fail("--%s is for --queue, which is not set", flag)
			}
		}
		return nil
	}
	replicas := p.c.Int("queue-replicas")
	if replicas < 1 || replicas > 5 || replicas%2 == 0 {
		p.fail("--queue-replicas %d: want 1, 3 or 5, and no more than the cluster has servers", replicas)
	}
	creds, _ := p.secretPath("queue-creds")
	return &queue.Cluster{
		URLs:        urls,
		Credentials: creds,
		Token:       p.queueToken(),
		TLS:         p.queueTLS(),
		Replicas:    replicas,
	}
}

func (p *parser) queueURLs() []string {
	var urls []string
	for _, list := range p.c.StringSlice("queue") {
		for text := range strings.SplitSeq(list, ",") {
			if text = strings.TrimSpace(text); text == "" {
				continue
			}
			if !strings.Contains(text, "://") {
				text = "nats://" + text
			}
			u, err := url.Parse(text)
			switch {
			case err != nil || u.Scheme != "nats" && u.Scheme != "tls" || u.Host == "" || strings.Trim(u.Path, "/") != "":
				p.fail("--queue: want addresses such as nats://a:4222,nats://b:4222, or tls:// ones") // not repeated: it may hold a password
			case u.User != nil:
				p.fail("--queue %s: an address holds no credentials; use --queue-creds, --queue-token-file or CARGO_QUEUE_TOKEN", u.Host)
			default:
				urls = append(urls, u.Scheme+"://"+u.Host)
			}
		}
	}
	return urls
}

// secretPath is the path in a flag that names a file with a secret in it, "" if
// there is none. What is wrong with the file is reported, and is not ok.
func (p *parser) secretPath(flag string) (path string, ok bool) {
	if path = p.c.String(flag); path == "" {
		return "", true
	}
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		p.fail("--%s %s: %v", flag, path, cause(err))
	case fi.Mode().Perm()&0o077 != 0:
		p.fail("--%s %s: others can read it (mode %04o); run: chmod 600 %s", flag, path, fi.Mode().Perm(), path)
	default:
		return path, true
	}
	return path, false
}

// maxTokenFile is longer than any token.
const maxTokenFile = 64 << 10

// queueToken comes from a file or the environment, not from a flag: process
// lists show flags.
func (p *parser) queueToken() string {
	path, ok := p.secretPath("queue-token-file")
	if !ok {
		return ""
	}
	if path == "" {
		return os.Getenv("CARGO_QUEUE_TOKEN")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		p.fail("--queue-token-file %s: %v", path, cause(err))
		return ""
	}
	token := strings.TrimSpace(string(text))
	if token == "" || len(text) > maxTokenFile {
		p.fail("--queue-token-file %s: want one token in it, and nothing else", path)
	}
	return token
}

// queueTLS is nil where no flag asks for anything: then the system's roots count.
func (p *parser) queueTLS() *tls.Config {
	ca, cert, key := p.c.String("queue-ca"), p.c.String("queue-cert"), p.c.String("queue-key")
	if ca == "" && cert == "" && key == "" {
		return nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		roots, err := readRoots(ca)
		if err != nil {
			p.fail("--queue-ca %s: %v", ca, err)
		}
		cfg.RootCAs = roots
	}
	if (cert == "") != (key == "") {
		p.fail("--queue-cert and --queue-key go together")
		return cfg
	}
	if cert != "" {
		if _, ok := p.secretPath("queue-key"); !ok {
			return cfg
		}
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			p.fail("--queue-cert %s, --queue-key %s: %v", cert, key, cause(err))
			return cfg
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg
}

func readRoots(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, cause(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, errors.New("holds no certificate in PEM")
	}
	return roots, nil
}

// concurrency is how many builds run here: none, if others do that.
func (p *parser) concurrency() int {
	n := p.c.Int("concurrency")
	alone := len(p.c.StringSlice("queue")) == 0
	switch {
	case n < 0 || n == 0 && p.worker:
		p.fail("--concurrency %d: want one or more", n)
	case n == 0 && alone:
		p.fail("--concurrency 0 without --queue: nobody would build; workers on other machines need a NATS cluster")
	case p.worker && alone:
		p.fail("cargo worker needs --queue: the cluster that its builds come from")
	}
	return n
}

func (p *parser) labels() map[string]string {
	labels, err := queue.ParseLabels(p.c.String("labels"))
	if err != nil {
		p.fail("--labels: %v", err)
	}
	return labels
}

// workerName is what this process is called among workers: unique for each machine
// and data directory, and the same after a restart.
func workerName(dataDir string) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name this worker: %w", err)
	}
	return host + "-" + owner(dataDir)[:8], nil
}
