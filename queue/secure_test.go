package queue_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/monochromegane/cargo/queue"
)

// certificate makes one for 127.0.0.1, in two files, and who trusts it.
func certificate(t *testing.T, dir string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	must(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must(err)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	must(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	parsed, err := x509.ParseCertificate(der)
	must(err)
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return cert, key, pool
}

// A server with TLS and a token lets in who has both, and others are told which
// flag is missing.
func TestSecureServer(t *testing.T) {
	const token = "a-token-that-nobody-sees"
	dir := t.TempDir()
	cert, key, pool := certificate(t, dir)
	c := newCluster(t, dir, 1, "authorization { token: "+token+" }", fmt.Sprintf("tls { cert_file: %q, key_file: %q }", cert, key))
	t.Cleanup(c.kill)
	trusts := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	with := func(token string, config *tls.Config) *queue.Cluster {
		return &queue.Cluster{URLs: c.urls, Token: token, TLS: config, Replicas: 1}
	}
	submit(t, open(t, queue.Options{Cluster: with(token, trusts)}), newBuild("v1"), nil)
	for name, tc := range map[string]struct {
		cluster *queue.Cluster
		want    string
	}{
		"no token":        {with("", trusts), "--queue-token-file"},
		"another token":   {with(token+"x", trusts), "--queue-token-file"},
		"a stranger's CA": {with(token, nil), "--queue-ca"},
	} {
		_, err := queue.Open(t.Context(), queue.Options{Cluster: tc.cluster})
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), token) {
			t.Errorf("%s: Open = %v, want a word of %q", name, err, tc.want)
		}
	}
}
