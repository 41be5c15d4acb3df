package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// A queue behind TLS, client certificates and credentials files can be used
// with the flags for them, and whoever has the wrong ones is told so.
func TestSecureQueue(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := newAuthority(t), newAuthority(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	ours.write(t, path("ca.pem"))
	theirs.write(t, path("other-ca.pem"))
	ours.issue(t, path("server"))
	ours.issue(t, path("client"))
	theirs.issue(t, path("other-client"))
	if err := os.MkdirAll(path("data/storage"), 0o700); err != nil { // which fsck wants to see
		t.Fatal(err)
	}
	creds := newCredentials(t, dir)
	token := "nats-Token-9876543210"
	writeSecret(t, path("token"), token+"\n")
	writeSecret(t, path("wrong-token"), "wrong-"+token)
	writeSecret(t, path("no.creds"), "nothing of the kind")

	inTLS := fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }\n", path("server.pem"), path("server.key"), path("ca.pem"))
	certified := natsAlone(t, dir, "certified", inTLS+creds.config)
	simple := natsAlone(t, dir, "simple", fmt.Sprintf("authorization { token: %q }\n", token))

	pair := func(name string) []string {
		return []string{"--queue-cert", path(name + ".pem"), "--queue-key", path(name + ".key")}
	}
	join := func(lists ...[]string) (all []string) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	good := join([]string{"--queue", "tls://" + certified, "--queue-ca", path("ca.pem")}, pair("client"))
	for _, c := range []struct {
		name string
		args []string
		env  string
		want string // in what it says; "": it works
	}{
		{"certificate and credentials", join(good, []string{"--queue-creds", creds.good}), "", ""},
		{"an address that does not say tls", join([]string{"--queue", certified, "--queue-creds", creds.good, "--queue-ca", path("ca.pem")}, pair("client")), "", ""},
		{"token in a file", []string{"--queue", simple, "--queue-token-file", path("token")}, "", ""},
		{"token in the environment", []string{"--queue", simple}, token, ""},

		{"no credentials", good, "", "--queue-creds"},
		{"another account's credentials", join(good, []string{"--queue-creds", creds.wrong}), "", "--queue-creds"},
		{"credentials that are over", join(good, []string{"--queue-creds", creds.over}), "", "--queue-creds"},
		{"no credentials file", join(good, []string{"--queue-creds", path("no.creds")}), "", "--queue-creds"},
		{"another authority", join([]string{"--queue", "tls://" + certified, "--queue-ca", path("other-ca.pem"), "--queue-creds", creds.good}, pair("client")), "", "--queue-ca"},
		{"no authority", join([]string{"--queue", "tls://" + certified, "--queue-creds", creds.good}, pair("client")), "", "--queue-ca"},
		{"no certificate", []string{"--queue", "tls://" + certified, "--queue-ca", path("ca.pem"), "--queue-creds", creds.good}, "", "--queue-cert"},
		{"another authority's certificate", join([]string{"--queue", "tls://" + certified, "--queue-ca", path("ca.pem"), "--queue-creds", creds.good}, pair("other-client")), "", "--queue-cert"},
		{"another's key", join(good, []string{"--queue-creds", creds.good, "--queue-key", path("other-client.key")}), "", "--queue-key"},
		{"tls where there is none", []string{"--queue", "tls://" + simple, "--queue-token-file", path("token")}, "", "tls://"},
		{"no token", []string{"--queue", simple}, "", "--queue-token-file"},
		{"a wrong token in a file", []string{"--queue", simple, "--queue-token-file", path("wrong-token")}, "", "--queue-token-file"},
		{"a wrong token in the environment", []string{"--queue", simple}, "wrong-" + token, "CARGO_QUEUE_TOKEN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code := secureFsck(t, dir, c.args, c.env)
			if c.want == "" {
				if code != exitOK || !strings.Contains(out, "0 records") {
					t.Errorf("exit status %d: %s", code, out)
				}
				return
			}
			if code != exitUsage || strings.Count(out, "\n") != 1 || !strings.Contains(out, c.want) {
				t.Errorf("exit status %d, want %d and one line that names %s:\n%s", code, exitUsage, c.want, out)
			}
			for _, secret := range append(creds.secrets, token) {
				if strings.Contains(out, secret) {
					t.Errorf("a secret is in: %s", out)
				}
			}
		})
	}
}

// secureFsck runs `cargo fsck`, which makes the queue where it is not there
// yet, and returns what it says.
func secureFsck(t *testing.T, dir string, args []string, token string) (out string, code int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = append([]string{"cargo", "fsck", "--rebuild-records", "--queue-replicas", "1", "--data-dir", filepath.Join(dir, "data")}, args...)
	cmd.Env = append(os.Environ(), "CARGO_QUEUE_TOKEN="+token)
	text, _ := cmd.CombinedOutput() // the exit status says it
	return string(text), cmd.ProcessState.ExitCode()
}

// natsAlone starts one NATS server with JetStream, and returns its address.
func natsAlone(t *testing.T, dir, name, config string) string {
	t.Helper()
	program := bin(t, "nats-server")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	file := filepath.Join(dir, name+".conf")
	writeSecret(t, file, fmt.Sprintf("server_name: %s\nlisten: %q\njetstream { store_dir: %q }\n%s", name, address, filepath.Join(dir, name), config))
	newProcess(t, name, dir, nil, program, "-c", file)
	listening(t, address)
	return address
}

func writeSecret(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// An authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a authority) write(t *testing.T, path string) {
	t.Helper()
	writeSecret(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})))
}

// issue writes a certificate of 127.0.0.1 to path.pem, and its key to path.key.
func (a authority) issue(t *testing.T, path string) {
	t.Helper()
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "cargo"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeSecret(t, path+".pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeSecret(t, path+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}

// credentials are an operator's account with JetStream, and files of its users.
type credentials struct {
	config            string // of the server that knows the account
	good, wrong, over string // paths
	secrets           []string
}

func newCredentials(t *testing.T, dir string) credentials {
	t.Helper()
	operator, account, system, stranger := newIdentity(t, nkeys.CreateOperator), newIdentity(t, nkeys.CreateAccount), newIdentity(t, nkeys.CreateAccount), newIdentity(t, nkeys.CreateAccount)
	encode := func(claims jwt.Claims, by identity) string {
		text, err := claims.Encode(by.pair)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	a := jwt.NewAccountClaims(account.public)
	a.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: jwt.NoLimit, MemoryStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
	o := jwt.NewOperatorClaims(operator.public)
	o.SystemAccount = system.public
	c := credentials{config: fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n%s: %s\n%s: %s\n}\n", encode(o, operator), system.public,
		account.public, encode(a, operator), system.public, encode(jwt.NewAccountClaims(system.public), operator))}
	user := func(name string, of identity, expires time.Time) string {
		u := newIdentity(t, nkeys.CreateUser)
		claims := jwt.NewUserClaims(u.public)
		claims.Expires = expires.Unix()
		token := encode(claims, of)
		seed, err := u.pair.Seed()
		if err != nil {
			t.Fatal(err)
		}
		text, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			t.Fatal(err)
		}
		c.secrets = append(c.secrets, token, string(seed))
		path := filepath.Join(dir, name+".creds")
		writeSecret(t, path, string(text))
		return path
	}
	c.good = user("good", account, time.Now().Add(time.Hour))
	c.wrong = user("wrong", stranger, time.Now().Add(time.Hour))
	c.over = user("over", account, time.Now().Add(-time.Hour))
	return c
}

type identity struct {
	pair   nkeys.KeyPair
	public string
}

func newIdentity(t *testing.T, create func() (nkeys.KeyPair, error)) identity {
	t.Helper()
	pair, err := create()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return identity{pair, public}
}
